"""``star-export build``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from star_export.cli.app import app
from star_export.cli.output import err, megabytes, print_json, quiet_libraries, step_progress
from star_export.cli.options import BackendOption, JsonOption
from star_export.specs import DEFAULT_DROP_RATIO, DEFAULT_KEEP

if TYPE_CHECKING:
    from star_export.build import BuildReport

EPILOG = """
**Examples**

`star-export build --model llava-1.5-7b --keep 64 -o llava-7b`

`star-export build --model ./checkpoint --keep-ratio 0.1 --max-keep 288 -o bundle --check`

`star-export build --model ./checkpoint --no-prune -o baseline`
"""


@app.command(epilog=EPILOG)
def build(
    model: Annotated[
        str, typer.Option("--model", "-m", help="llava-1.5-7b, llava-1.5-13b, a hub id or a local folder.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Bundle folder to make; by default named after the model.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", help=f"Visual tokens left after stage 2.  [default: {DEFAULT_KEEP}]")
    ] = None,
    keep_ratio: Annotated[
        float | None, typer.Option("--keep-ratio", help="The same as a share of all patches, such as 0.1.")
    ] = None,
    max_keep: Annotated[
        int | None, typer.Option("--max-keep", help="Largest --keep that `run` may ask for.  [default: --keep]")
    ] = None,
    drop_ratio: Annotated[
        float, typer.Option("--drop-ratio", help="Share of patches that stage 1 drops (R).")
    ] = DEFAULT_DROP_RATIO,
    prune_layer: Annotated[
        int | None,
        typer.Option("--prune-layer", help="Decoder layers that see every stage-1 token (K).  [default: 0.4375 of all]"),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="--no-prune builds the unpruned baseline.")
    ] = True,
    max_text_tokens: Annotated[
        int, typer.Option(help="Text tokens a prompt may have; sizes the KV caches.")
    ] = 512,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens that can be generated; sizes the KV caches.")
    ] = 512,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="float32 for CPUs, float16 for GPUs.")
    ] = "float32",
    backend: BackendOption = "onnxruntime",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check the bundle against PyTorch right away.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Export a LLaVA checkpoint to a bundle."""
    quiet_libraries()
    from star_export.build import BuildOptions
    from star_export.build import build as build_bundle
    from star_export.engines import check_backend

    check_backend(backend)
    options = BuildOptions(
        model=model,
        output=output or Path(Path(model).name + ("" if prune else "-full")),
        keep=keep,
        keep_ratio=keep_ratio,
        max_keep=max_keep,
        drop_ratio=drop_ratio,
        prune_layer=prune_layer,
        prune=prune,
        max_text_tokens=max_text_tokens,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        overwrite=overwrite,
    )
    with step_progress() as progress:
        report = build_bundle(options, progress)
    if json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if check:
        from star_export.cli.check import check_and_print

        check_and_print(report.folder, model=model, backend=backend)


def _print_report(report: "BuildReport") -> None:
    for step in report.steps:
        size = megabytes(step.bytes) if step.bytes else ""
        err.print(f"  {step.step:<28}{step.seconds:>8.1f} s  {size:>12}")
    spec = report.spec
    total = megabytes(sum(step.bytes for step in report.steps))
    budget = "no pruning"
    if spec.star is not None:
        patches = spec.model.vision.num_patches
        budget = f"{patches} -> {spec.star.stage1_keep} -> {spec.star.keep} visual tokens"
    err.print(f"[green]built[/green] {report.folder}: {total}, {spec.dtype}, {budget}")
    err.print(f"next: star-export run {report.folder} --image picture.png --prompt 'What is this?'")
