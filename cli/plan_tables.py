"""What ``star-export plan`` shows."""

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console, RenderableType
from rich.table import Table

from star_export.cli.facts import pruning
from star_export.cli.flags import flag
from star_export.cli.output import megabytes, out
from star_export.errors import option, spelled
from star_export.files import atomic_open

if TYPE_CHECKING:
    from star_export.plan import Cost, Estimate, Plan
    from star_export.specs import ExportSpec
    from star_export.targets import Proposal

_BAR_WIDTH = 40


def show(parts: Sequence[RenderableType], output: Path | None, *, quiet: bool) -> None:
    """Print parts, unless ``quiet``, and write them as a page if there is an ``output``."""
    if not quiet:
        out.print(*parts, sep="\n")
    if output is not None:
        page = Console(record=True, file=io.StringIO(), width=100, highlight=False)
        page.print(*parts, sep="\n")
        with atomic_open(output) as file:
            file.write(page.export_html().encode())


def plan_parts(plan: "Plan") -> tuple[RenderableType, ...]:
    """A plan: what it is of, its picture and its table."""
    return (*_premises(plan), _picture(plan), _costs(plan))


def proposal_parts(proposals: "Sequence[Proposal]") -> tuple[RenderableType, ...]:
    """One row for each proposal."""
    plan = proposals[0].plan
    times = ("TTFT*", "tokens/s*") if plan.device else ()
    caption = "average: visual tokens per layer; FLOPs: of the unpruned prefill"
    table = Table("options", "average", "FLOPs", "KV", *times, caption=caption)
    if plan.device:
        table.caption = f"{caption}; * estimates"
    for column in table.columns:
        column.no_wrap = True
    for proposal in proposals:
        cost, estimate = proposal.plan.planned, proposal.plan.planned.estimate
        spent = (f"{1e3 * estimate.ttft:.1f} ms", f"{estimate.tokens_per_second:.1f}") if estimate else ()
        [choice] = proposal.options.items()
        table.add_row(
            spelled(option(*choice), flag),
            f"{cost.average:.1f}",
            f"{100 * proposal.plan.flops:.1f} %",
            megabytes(cost.kv_bytes),
            *spent,
        )
    return (*_premises(plan, schedule=False), table)


def _premises(plan: "Plan", *, schedule: bool = True) -> Iterator[str]:
    """What the numbers are of."""
    height, width = plan.request.image_size
    size = f" of {width}x{height} pixels" if plan.spec.model.tiling else ""
    yield (
        f"a picture{size}: {plan.image_tokens} visual tokens; prompt: {plan.request.text_tokens} more; "
        f"answer: {plan.request.new_tokens}"
    )
    weights = plan.weight_bytes
    own = plan.spec.quantization
    kinds = ("int8", "int4") if own is None or own.layers is None else (own.type,)
    few = ", ".join(f"{_scaled(weights[kind], 'MB', 'GB')} in {kind}" for kind in kinds)
    yield (
        f"{_scaled(plan.parameters.total, 'M', 'B')} parameters, "
        f"{_scaled(weights['float16'], 'MB', 'GB')} in float16 or bfloat16, "
        f"{_scaled(weights['float32'], 'MB', 'GB')} in float32, "
        f"{few}; here: {_types(plan.spec)}"
    )
    if schedule:
        yield f"schedule: {pruning(plan.spec)}"
    if plan.device is not None:
        yield (
            f"estimates, not measured: {plan.device.name} at {plan.efficiency:g} of "
            f"{plan.device.bandwidth / 1e9:,.1f} GB/s and {plan.device.flops / 1e12:,.3g} TFLOP/s"
        )


def _types(spec: "ExportSpec") -> str:
    """What weights are stored in."""
    how = spec.quantization
    return spec.dtype if how is None else f"{how.type} in blocks of {how.block}, otherwise {spec.dtype}"


def _scaled(count: float, million: str, billion: str) -> str:
    return f"{count / 1e9:.2f} {billion}" if count >= 1e8 else f"{count / 1e6:.2f} {million}"


def _picture(plan: "Plan") -> Table:
    """Visual tokens in each run of layers, as a bar beside the unpruned length."""
    grid = Table.grid(padding=(0, 1))
    first = 0
    for tokens, run in groupby(plan.planned.tokens):
        last = first + len(list(run)) - 1
        bar = Bar(plan.image_tokens, 0, tokens, width=_BAR_WIDTH, color="cyan", bgcolor="grey37")
        grid.add_row(f"layers {first}-{last}" if last > first else f"layer {first}", str(tokens), bar)
        first = last + 1
    return grid


def _costs(plan: "Plan") -> Table:
    """Planned beside unpruned."""
    table = Table("", "planned", "unpruned", "saved")
    for name, value, shown in _COSTS:
        planned, unpruned = value(plan.planned), value(plan.unpruned)
        table.add_row(name, shown(planned), shown(unpruned), f"{100 * (1 - planned / unpruned):.1f} %")
    costs = plan.planned, plan.unpruned
    table.add_row("requests per GB", *(f"{cost.requests_per_gb:.1f}" for cost in costs))
    table.add_row("the same on ONNX Runtime", *(f"{cost.fitted_requests_per_gb:.1f}" for cost in costs))
    planned_estimate, unpruned_estimate = plan.planned.estimate, plan.unpruned.estimate
    if planned_estimate and unpruned_estimate:
        for name, of in _ESTIMATES:
            table.add_row(f"estimate: {name}", of(planned_estimate), of(unpruned_estimate))
    return table


def _flops(value: float) -> str:
    return f"{value / 1e9:,.1f} GFLOP"


def _macs(value: float) -> str:
    return f"{value / 1e9:,.1f} GMAC"


_COSTS: "tuple[tuple[str, Callable[[Cost], float], Callable[[float], str]], ...]" = (
    ("visual tokens per layer", lambda cost: cost.average, lambda value: f"{value:.1f}"),
    ("their arithmetic, FastV's formula", lambda cost: cost.visual_flops, _macs),
    ("prefill, FastV's formula", lambda cost: cost.prefill.fastv, _macs),
    ("prefill, counted exactly", lambda cost: cost.prefill.exact, _flops),
    ("KV caches of the request", lambda cost: cost.kv_bytes, megabytes),
    ("KV caches allocated", lambda cost: cost.slot_bytes, megabytes),
)

_ESTIMATES: "tuple[tuple[str, Callable[[Estimate], str]], ...]" = (
    ("time to the first token", lambda estimate: f"{1e3 * estimate.ttft:.1f} ms"),
    ("tokens per second", lambda estimate: f"{estimate.tokens_per_second:.1f}"),
    (
        "sequences that fit",
        lambda estimate: "?" if estimate.sequences is None else str(estimate.sequences),
    ),
)
