"""``star-export build``."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.check import check_with_progress, print_table
from star_export.cli.output import err, megabytes, print_json, quiet_libraries, step_progress
from star_export.errors import EXIT_CHECK_FAILED
from star_export.specs import DEFAULT_DROP_RATIO

if TYPE_CHECKING:
    from star_export.build import BuildReport
    from star_export.validation.report import ParityReport

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
    fp32_layers: opt.Fp32LayersOption = None,
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
        output=output or Path(Path(model).resolve().name + ("-star" if prune else "-full")),
        keep=keep,
        keep_ratio=keep_ratio,
        max_keep=max_keep,
        drop_ratio=drop_ratio,
        prune_layer=prune_layer,
        prune=prune,
        max_text_tokens=max_text_tokens,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        fp32_layers=tuple(fp32_layers or ()),
        overwrite=overwrite,
    )
    with step_progress() as progress:
        report = build_bundle(options, progress)
    parity = _check(report, backend) if check else None
    if json:
        print_json(report.to_dict() | ({"parity": parity.to_dict()} if parity else {}))
    else:
        _print_report(report)
        if parity is not None:
            print_table(parity)
    if parity is not None and not parity.passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _check(report: "BuildReport", backend: str) -> "ParityReport":
    from star_export.validation.probes import make_probes

    return check_with_progress(report.folder, backend=backend, probes=make_probes(2))


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
