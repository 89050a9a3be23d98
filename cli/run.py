"""``star-export run``."""

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.facts import timings
from star_export.cli.output import err, print_json

EPILOG = """
**Examples**

`star-export run llava-7b --image dog.png --prompt "What is this?"`

`star-export run llava-7b --image dog.png --prompt "Describe it." --keep 29 --json`

`star-export run llava-7b --image dog.png --prompt "Which animal?" --schema '{"enum": ["cat", "dog"]}'`

`star-export run onevision --image dog.png --image cat.png --prompt "Which is larger?"`
"""


@app.command(epilog=EPILOG)
def run(
    folder: opt.BundleArgument,
    image: opt.ImagesOption,
    prompt: opt.PromptOption,
    keep: opt.RunKeepOption = None,
    max_new_tokens: opt.RunNewTokensOption = None,
    temperature: opt.TemperatureOption = 0.0,
    top_p: opt.TopPOption = 1.0,
    seed: opt.SeedOption = None,
    stop: opt.StopOption = None,
    end_token: opt.EndTokensOption = None,
    schema: opt.SchemaOption = None,
    top_logprobs: opt.TopLogprobsOption = None,
    backend: opt.BackendOption = "onnxruntime",
    plugin_library: opt.PluginLibraryOption = None,
    threads: opt.ThreadsOption = None,
    verify: opt.VerifyOption = False,
    json: opt.JsonOption = False,
) -> None:
    """Answer a prompt about pictures, streaming the text."""
    from star_export.answer.grammar import read_schema
    from star_export.answer.pipeline import open_pipeline
    from star_export.answer.sampling import Sampling
    from star_export.engines import Runtime

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, top_logprobs=top_logprobs)
    given = None if schema is None else read_schema(schema)
    runtime = Runtime(backend=backend, threads=threads, plugin_library=plugin_library)
    pipeline = open_pipeline(folder, runtime, verify=verify)
    generation = pipeline.generate(
        image,
        prompt,
        keep=keep,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop or (),
        end_tokens=end_token or (),
        schema=given,
    )
    if json:
        print_json(generation.result().to_dict())
        return
    for piece in generation:
        print(piece, end="", flush=True)
    print()
    result = generation.result()
    visual = f"{len(result.stage1_indices)} -> {len(result.stage2_indices)} visual tokens"
    err.print(f"[dim]{visual}, {timings(result.timings_ms)}[/dim]")
