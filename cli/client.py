"""``star-export client``."""

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.output import err, print_json

EPILOG = """
**Examples**

`star-export client localhost:8001 --image dog.png --prompt "What is this?"`

`star-export client grpc://triton.example:8001 --image dog.png --prompt "Describe it." --keep 29 --json`

`star-export client localhost:8001 --image dog.png --messages talk.json --no-reprune`
"""


@app.command(epilog=EPILOG)
def client(
    url: opt.UrlArgument,
    image: opt.ImagesOption,
    prompt: opt.OnePromptOption = None,
    messages: opt.MessagesOption = None,
    reprune: opt.LastQuestionOption = True,
    keep: opt.RunKeepOption = None,
    max_new_tokens: opt.RunNewTokensOption = None,
    temperature: opt.TemperatureOption = 0.0,
    top_p: opt.TopPOption = 1.0,
    seed: opt.SeedOption = None,
    stop: opt.StopOption = None,
    schema: opt.SchemaOption = None,
    top_logprobs: opt.TopLogprobsOption = None,
    timeout: opt.ClientTimeoutOption = 300.0,
    json: opt.JsonOption = False,
) -> None:
    """Ask a Triton server about pictures, streaming the text."""
    from star_export.answer.grammar import read_schema
    from star_export.serving.triton.client import collect, question, stream

    responses = stream(
        url,
        image,
        question(prompt, messages),
        timeout=timeout,
        keep=keep,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=stop or None,
        reprune=None if reprune else False,
        schema=None if schema is None else read_schema(schema),
        top_logprobs=top_logprobs,
    )
    if json:
        print_json(collect(responses))
        return
    shown = []
    for response in responses:
        shown.append(response)
        print(response["text"], end="", flush=True)
    print()
    whole = collect(iter(shown))
    usage, timings = whole["usage"], whole["timings_ms"]
    err.print(
        f"[dim]{usage['stage1_tokens']} -> {usage['stage2_tokens']} visual tokens, "
        f"{timings['ttft']:.0f} ms to the first token, {timings['total']:.0f} ms in all[/dim]"
    )
