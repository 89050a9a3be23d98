"""Options of ``star-export plan`` that ``build`` has not."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_request = partial(typer.Option, rich_help_panel="Request")
_device = partial(typer.Option, rich_help_panel="Estimates")

TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="NAME=X",
        help="Propose schedules that reach this: flops=0.3 (of the unpruned prefill), kv=200MB (of the "
        "request), ttft=150ms (an estimate); repeat for more.",
    ),
]
ImageSizeOption = Annotated[
    str,
    _request("--image-size", metavar="WxH", help="Pixels of the picture, where models cut it into tiles."),
]
TextTokensOption = Annotated[
    int, _request("--text-tokens", metavar="N", help="Prompt tokens that are not visual.")
]
NewTokensOption = Annotated[int, _request("--new-tokens", metavar="N", help="Tokens of the answer.")]
GpuOption = Annotated[
    str | None,
    _device("--gpu", metavar="NAME", help="Estimate for this one, such as l4; `this` measures this CPU."),
]
BandwidthOption = Annotated[
    float | None, _device("--bandwidth", metavar="GB/S", help="Or: memory bandwidth of a device.")
]
FlopsOption = Annotated[
    float | None, _device("--flops", metavar="TFLOP/S", help="And its arithmetic in --dtype.")
]
EfficiencyOption = Annotated[
    float, _device("--efficiency", metavar="X", help="Share of these figures that it reaches.")
]
DrawingOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write what is shown as a page (.html), too."),
]
