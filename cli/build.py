"""``star-export build``."""

from pathlib import Path
from typing import TYPE_CHECKING

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.output import err, megabytes, print_json, quiet_libraries, step_progress
from star_export.specs import DEFAULT_DROP_RATIO

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
    model: opt.ModelOption,
    output: opt.OutputOption = None,
    keep: opt.KeepOption = None,
    keep_ratio: opt.KeepRatioOption = None,
    max_keep: opt.MaxKeepOption = None,
    drop_ratio: opt.DropRatioOption = DEFAULT_DROP_RATIO,
    prune_layer: opt.PruneLayerOption = None,
    prune: opt.PruneOption = True,
    max_text_tokens: opt.MaxTextTokensOption = 512,
    max_new_tokens: opt.MaxNewTokensOption = 512,
    dtype: opt.DTypeOption = "float32",
    backend: opt.BackendOption = "onnxruntime",
    overwrite: opt.OverwriteOption = False,
    check: opt.CheckOption = False,
    json: opt.JsonOption = False,
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
    err.print(f"next: star-export run {report.folder} --image FILE --prompt TEXT")
