"""``star-export plan``."""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from star_export.cli import build_options as opt
from star_export.cli import plan_options as own
from star_export.cli.app import app
from star_export.cli.options import CompareModelOption, JsonOption, refuse
from star_export.cli.output import check_target, err, print_json, quiet_libraries, step_progress
from star_export.cli.plan_tables import plan_parts, proposal_parts, show
from star_export.errors import SettingsError
from star_export.plan import DEFAULT_EFFICIENCY
from star_export.specs import DEFAULT_DROP_RATIO

if TYPE_CHECKING:
    from star_export.build import SpecOptions
    from star_export.checkpoint.checkpoint import Checkpoint
    from star_export.gpus import Device
    from star_export.plan import Plan, Request
    from star_export.specs import ModelSpec
    from star_export.targets import Target

EPILOG = """
**Examples**

`star-export plan --model llava-1.5-7b --keep 115`

`star-export plan --model llava-1.5-7b --schedule balanced-64 --gpu l4 -o plan.html`

`star-export plan --model llava-1.5-7b --keep 64 --quantize int4 --gpu rtx-4090`

`star-export plan --model llava-1.5-7b --target flops=0.4 --target kv=150MB`

`star-export plan --model llava-onevision-qwen2-7b --image-size 1024x768 --gpu rtx-4090 --target ttft=150ms`
"""


@app.command(epilog=EPILOG)
def plan(
    context: typer.Context,
    model: CompareModelOption,
    revision: opt.RevisionOption = None,
    keep: opt.KeepOption = None,
    keep_ratio: opt.KeepRatioOption = None,
    max_keep: opt.MaxKeepOption = None,
    drop_ratio: opt.DropRatioOption = DEFAULT_DROP_RATIO,
    prune_layer: opt.PruneLayerOption = None,
    schedule: opt.ScheduleOption = None,
    stage1: opt.Stage1Option = None,
    stage2: opt.Stage2Option = None,
    prune: opt.PruneOption = True,
    max_images: opt.MaxImagesOption = 1,
    max_tiles: opt.MaxTilesOption = None,
    max_image_tokens: opt.MaxImageTokensOption = None,
    max_text_tokens: opt.MaxTextTokensOption = 512,
    max_new_tokens: opt.MaxNewTokensOption = 512,
    dtype: opt.DTypeOption = None,
    quantize: opt.QuantizeOption = None,
    quantize_block: opt.QuantizeBlockOption = None,
    quantize_vision: opt.QuantizeVisionOption = False,
    quantize_embedding: opt.QuantizeEmbeddingOption = False,
    image_size: own.ImageSizeOption = "640x480",
    text_tokens: own.TextTokensOption = 64,
    new_tokens: own.NewTokensOption = 128,
    gpu: own.GpuOption = None,
    bandwidth: own.BandwidthOption = None,
    flops: own.FlopsOption = None,
    efficiency: own.EfficiencyOption = DEFAULT_EFFICIENCY,
    target: own.TargetOption = None,
    output: own.DrawingOption = None,
    json: JsonOption = False,
) -> None:
    """Work out what a schedule costs, from a model's shape alone, or propose schedules."""
    from star_export.plan import Request
    from star_export.targets import parse_target

    quiet_libraries()
    _check_page(output)
    targets = [parse_target(text) for text in target or ()]
    if targets:
        refuse(context, _SCHEDULES, "has no meaning with --target, which proposes schedules")
    device = _device(gpu, bandwidth, flops)
    request = Request(image_size=_size(image_size), text_tokens=text_tokens, new_tokens=new_tokens)
    options, shape = _options(context, device), _shape(model, revision)
    plan_of = partial(_plan, *shape, request, device, efficiency)
    if targets:
        _propose(options, plan_of, targets, output, json=json)
        return
    planned = plan_of(options)
    if json:
        print_json(planned.to_dict())
    show(plan_parts(planned), output, quiet=json)


#: Options that say what a target is there to find.
_SCHEDULES = (
    "keep",
    "keep_ratio",
    "max_keep",
    "drop_ratio",
    "prune_layer",
    "schedule",
    "stage1",
    "stage2",
    "prune",
)


def _shape(model: str, revision: str | None) -> "tuple[ModelSpec, Checkpoint | None]":
    """Its shape and where it was read; stderr says when it was not from a config."""
    from star_export.build import require_export_extra
    from star_export.checkpoint.shape import built_in, read_shape

    if revision is None and (shape := built_in(model)) is not None:
        err.print(f"{model}: built-in shape; no config was read")
        return shape, None
    require_export_extra("transformers", "huggingface_hub")
    with step_progress() as progress:
        checkpoint = read_shape(model, revision=revision, progress=progress)
    return checkpoint.model, checkpoint


def _options(context: typer.Context, device: "Device | None") -> "SpecOptions":
    """The options that a build has too."""
    from star_export.build import SpecOptions

    given = {field.name: context.params[field.name] for field in fields(SpecOptions)}
    given["dtype"] = given["dtype"] or (device.dtypes[0] if device else "float16")
    return SpecOptions(**given)


def _device(gpu: str | None, bandwidth: float | None, flops: float | None) -> "Device | None":
    from star_export.gpus import find_device
    from star_export.measure.machine import measure_machine

    return find_device(gpu, bandwidth, flops, measure=measure_machine)


def _plan(
    shape: "ModelSpec",
    checkpoint: "Checkpoint | None",
    request: "Request",
    device: "Device | None",
    efficiency: float,
    options: "SpecOptions",
) -> "Plan":
    from star_export.build import resolve_sizes
    from star_export.plan import plan

    return plan(resolve_sizes(options, shape, checkpoint), request, device, efficiency=efficiency)


def _propose(
    options: "SpecOptions",
    plan_of: "Callable[[SpecOptions], Plan]",
    targets: "Sequence[Target]",
    output: Path | None,
    *,
    json: bool,
) -> None:
    from star_export.targets import propose

    proposals = propose(options, plan_of, targets)
    if json:
        found = [{"options": proposal.options} | proposal.plan.to_dict() for proposal in proposals]
        print_json({"targets": [target.text for target in targets], "proposals": found})
    show(proposal_parts(proposals), output, quiet=json)


def _size(text: str) -> tuple[int, int]:
    """``(height, width)`` of ``640x480``."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise SettingsError(f"--image-size {text} is no size in pixels; expected WxH such as 640x480")
    return int(match[2]), int(match[1])


def _check_page(output: Path | None) -> None:
    if output is not None:
        check_target("--output", output)
        if output.suffix != ".html":
            raise SettingsError(f"--output {output} must end in .html")
