"""``star-export run``."""

from pathlib import Path
from typing import Annotated

import typer

from star_export.cli.app import app
from star_export.cli.options import BackendOption, BundleArgument, JsonOption, ThreadsOption
from star_export.cli.output import err, print_json

EPILOG = """
**Examples**

`star-export run llava-7b --image dog.png --prompt "What is this?"`

`star-export run llava-7b --image dog.png --prompt "Describe it." --keep 29 --json`
"""


@app.command(epilog=EPILOG)
def run(
    folder: BundleArgument,
    image: Annotated[list[Path], typer.Option("--image", "-i", help="The picture: PNG, JPEG, WebP, ...")],
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The question; with <image> in it, the whole prompt as it is.")
    ],
    keep: Annotated[
        int | None, typer.Option("--keep", help="Visual tokens after stage 2.  [default: the bundle's]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens to generate at most.  [default: what the caches hold]")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the most likely tokens with this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    backend: BackendOption = "onnxruntime",
    threads: ThreadsOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash the weights before loading.")] = False,
    json: JsonOption = False,
) -> None:
    """Answer a prompt about a picture, streaming the text."""
    from star_export.pipeline import load
    from star_export.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    pipeline = load(folder, backend=backend, threads=threads, verify=verify)
    generation = pipeline.generate(
        image, prompt, keep=keep, max_new_tokens=max_new_tokens, sampling=sampling
    )
    if json:
        print_json(generation.result().to_dict())
        return
    for piece in generation:
        print(piece, end="", flush=True)
    print()
    result, timings = generation.result(), generation.result().timings_ms
    visual = f"{len(result.stage1_indices)} -> {len(result.stage2_indices)} visual tokens"
    decode = f", {sum(timings.decode) / len(timings.decode):.1f} ms per token" if timings.decode else ""
    err.print(f"[dim]{visual}, vision {timings.vision:.0f} ms, prefill {timings.prefill:.0f} ms{decode}[/dim]")
