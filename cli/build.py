"""``star-export build``."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from star_export.checkpoint.hub import split_revision
from star_export.cli import build_options as opt
from star_export.cli.app import app
from star_export.cli.facts import images, pruning
from star_export.cli.options import JsonOption, refuse
from star_export.cli.output import err, megabytes, print_json, quiet_libraries, step_progress
from star_export.cli.reports import print_parity, run_check
from star_export.errors import EXIT_CHECK_FAILED, InputError, SettingsError
from star_export.specs import DEFAULT_DROP_RATIO

if TYPE_CHECKING:
    from star_export.build import BuildOptions, BuildReport
    from star_export.engines import Runtime
    from star_export.engines.tensorrt.builder import EngineOptions
    from star_export.validation.report import ParityReport

EPILOG = """
**Examples**

`star-export build --model llava-1.5-7b --keep 64 -o llava-7b`

`star-export build --model llava-1.5-7b --schedule balanced-64 -o llava-7b-fast`

`star-export build --model llava-1.5-7b --keep 64 --quantize int4 -o llava-7b-int4`

`star-export build --from-bundle llava-7b --backend tensorrt-rtx`
"""

#: Options that only an export reads; with --from-bundle the graphs are there already.
_EXPORT_ONLY = (
    "model",
    "revision",
    "output",
    "keep",
    "keep_ratio",
    "max_keep",
    "drop_ratio",
    "prune_layer",
    "schedule",
    "stage1",
    "stage2",
    "keep_mass",
    "proportional",
    "prune",
    "max_images",
    "max_tiles",
    "max_image_tokens",
    "max_text_tokens",
    "max_new_tokens",
    "dtype",
    "fp32_layers",
    "quantize",
    "quantize_block",
    "quantize_vision",
    "quantize_embedding",
    "calibrate",
    "chat_template",
    "end_token",
    "overwrite",
)

#: Options that only an engine build reads.
_ENGINE_ONLY = (
    "target",
    "max_batch",
    "capacities",
    "plugins",
    "plugin_library",
    "weights",
    "timing_cache",
    "hardware_compatible",
    "version_compatible",
    "weight_streaming",
    "workspace",
)


@app.command(epilog=EPILOG)
def build(
    context: typer.Context,
    model: opt.ModelOption = None,
    revision: opt.RevisionOption = None,
    chat_template: opt.ChatTemplateOption = None,
    end_token: opt.BuildEndTokensOption = None,
    from_bundle: opt.FromBundleOption = None,
    keep: opt.KeepOption = None,
    keep_ratio: opt.KeepRatioOption = None,
    max_keep: opt.MaxKeepOption = None,
    drop_ratio: opt.DropRatioOption = DEFAULT_DROP_RATIO,
    prune_layer: opt.PruneLayerOption = None,
    schedule: opt.ScheduleOption = None,
    stage1: opt.Stage1Option = None,
    stage2: opt.Stage2Option = None,
    keep_mass: opt.KeepMassOption = None,
    proportional: opt.ProportionalOption = False,
    prune: opt.PruneOption = True,
    max_images: opt.MaxImagesOption = 1,
    max_tiles: opt.MaxTilesOption = None,
    max_image_tokens: opt.MaxImageTokensOption = None,
    max_text_tokens: opt.MaxTextTokensOption = 512,
    max_new_tokens: opt.MaxNewTokensOption = 512,
    max_batch: opt.MaxBatchOption = 8,
    capacities: opt.CapacitiesOption = None,
    dtype: opt.DTypeOption = None,
    fp32_layers: opt.Fp32LayersOption = None,
    quantize: opt.QuantizeOption = None,
    quantize_block: opt.QuantizeBlockOption = None,
    quantize_vision: opt.QuantizeVisionOption = False,
    quantize_embedding: opt.QuantizeEmbeddingOption = False,
    calibrate: opt.CalibrateOption = None,
    backend: opt.BuildBackendOption = "onnxruntime",
    target: opt.TargetsOption = None,
    plugins: opt.PluginsOption = None,
    plugin_library: opt.BuildPluginLibraryOption = None,
    weights: opt.WeightsOption = None,
    timing_cache: opt.TimingCacheOption = None,
    hardware_compatible: opt.HardwareCompatibleOption = False,
    version_compatible: opt.VersionCompatibleOption = False,
    weight_streaming: opt.WeightStreamingOption = False,
    workspace: opt.WorkspaceOption = None,
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    check: opt.CheckOption = False,
    json: JsonOption = False,
) -> None:
    """Export a LLaVA checkpoint to a bundle, and build its engines."""
    quiet_libraries()
    engines = _engine_options(context)
    _refuse_check(context, engines)
    report = _build(context, engines)
    parity = _check(report, context) if check else None
    if json:
        print_json(report.to_dict() | ({"parity": parity.to_dict()} if parity else {}))
    else:
        _print_report(report, engines)
        if parity is not None:
            print_parity(parity)
    if parity is not None and not parity.passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _build(context: typer.Context, engines: "EngineOptions | None") -> "BuildReport":
    """A bundle from a checkpoint, or the engines of one that is there."""
    from star_export.build import add_engines, build

    if (folder := context.params["from_bundle"]) is None:
        options = _build_options(context, engines)
        with step_progress() as progress:
            return build(options, progress)
    refuse(context, _EXPORT_ONLY, "belongs to --model; with --from-bundle the graphs stay as they are")
    if engines is None:
        raise SettingsError("--from-bundle adds engines; give --backend tensorrt or tensorrt-rtx")
    with step_progress() as progress:
        return add_engines(folder, engines, progress)


def _engine_options(context: typer.Context) -> "EngineOptions | None":
    """The engine options that were given; None for a backend that runs the graphs themselves."""
    from star_export.engines.tensorrt.builder import EngineOptions

    if not _runtime(context).entry.builds_engines:
        refuse(context, _ENGINE_ONLY, "needs --backend tensorrt or tensorrt-rtx")
        return None
    given = _fields(context, EngineOptions) | {"targets": tuple(context.params["target"] or ())}
    return EngineOptions(**given | {"capacities": given["capacities"] or ()})


def _runtime(context: typer.Context) -> "Runtime":
    """What will run the bundle."""
    from star_export.engines import Runtime

    return Runtime(**_fields(context, Runtime))


def _build_options(context: typer.Context, engines: "EngineOptions | None") -> "BuildOptions":
    """The export options that were given, with the defaults that depend on others."""
    from star_export.build import BuildOptions

    given = _fields(context, BuildOptions)
    if given["model"] is None:
        raise SettingsError("give --model NAME, or --from-bundle DIR to add engines to a bundle")
    suffix = "-star" if given["prune"] else "-full"
    given["output"] = given["output"] or Path(Path(_without_revision(given["model"])).resolve().name + suffix)
    given["dtype"] = given["dtype"] or _runtime(context).entry.dtypes[0]
    given["fp32_layers"] = tuple(given["fp32_layers"] or ())
    given["end_tokens"] = tuple(context.params["end_token"] or ())
    given["chat_template"] = _read_text(given["chat_template"])
    return BuildOptions(**given, engines=engines)


def _read_text(template: Path | None) -> str | None:
    try:
        return None if template is None else template.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--chat-template {template} cannot be read: {reason}") from error


def _without_revision(model: str) -> str:
    """A folder's name may hold an @ of its own."""
    return model if Path(model).is_dir() else split_revision(model)[0]


def _fields(context: typer.Context, options: Any) -> dict[str, Any]:
    """The command line's values of a dataclass's fields."""
    return {f.name: context.params[f.name] for f in fields(options) if f.name in context.params}


def _refuse_check(context: typer.Context, engines: "EngineOptions | None") -> None:
    """Refuse a check that cannot run here, before minutes of building."""
    if not context.params["check"]:
        return
    from star_export.build import require_export_extra

    require_export_extra()
    entry, dtype = _runtime(context).entry, context.params["dtype"]
    if engines is None and dtype not in (None, *entry.dtypes):
        raise SettingsError(
            f"--check cannot run a {dtype} bundle without TensorRT; give --backend tensorrt or tensorrt-rtx, "
            "or leave out --check and add engines later with --from-bundle"
        )
    entry.check_machine()


def _check(report: "BuildReport", context: typer.Context) -> "ParityReport":
    from star_export.validation.check import check_bundle

    return run_check(check_bundle, report.folder, probes=2, runtime=_runtime(context))


def _print_report(report: "BuildReport", engines: "EngineOptions | None") -> None:
    from star_export.engines.backends import BACKENDS, ONNXRUNTIME

    for step in report.steps:
        size = megabytes(step.bytes) if step.bytes else ""
        err.print(f"  {step.step:<33}{step.seconds:>8.1f} s  {size:>12}")
    spec = report.spec
    total = megabytes(sum(step.bytes for step in report.steps))
    err.print(f"[green]built[/green] {report.folder}: {total}, {spec.dtype}, {images(spec)}, {pruning(spec)}")
    if engines is None and spec.dtype not in BACKENDS[ONNXRUNTIME].dtypes:  # nothing but TensorRT runs it
        err.print(
            f"next: star-export build --from-bundle {report.folder} --backend tensorrt-rtx", soft_wrap=True
        )
        return
    backend = f" --backend {engines.backend}" if engines else ""
    err.print(f"next: star-export run {report.folder} --image FILE --prompt TEXT{backend}", soft_wrap=True)
