"""What pruning keeps against what it costs, as a plot; needs matplotlib."""

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from star_export.errors import PlatformError

T = TypeVar("T")
#: Costs with what they keep, both in the plot's units.
Points = Sequence[tuple[float, float]]


def require_plotting() -> None:
    """Refuse to go on without matplotlib.

    Raises:
        PlatformError: If it is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise PlatformError("the plot needs matplotlib; run: pip install 'star-export[eval]'")


def pareto(items: Sequence[T], *, cost: Callable[[T], float], worth: Callable[[T], float]) -> list[T]:
    """Those that are worth more than every other one of the same cost or less, the dearest first."""
    front: list[T] = []
    for item in sorted(items, key=lambda item: (cost(item), -worth(item))):
        if not front or worth(item) > worth(front[-1]):
            front.append(item)
    return front[::-1]


def draw(
    lines: Mapping[str, Points],
    front: Points,
    *,
    strong: Mapping[str, str],
    title: str,
    cost: str,
    worth: str,
) -> bytes:
    """A PNG with one line each, and the Pareto front dashed.

    Args:
        lines: By name.
        front: The Pareto front.
        strong: Colours of lines that stand out.
        title: What it is of.
        cost: The x axis, which is logarithmic.
        worth: The y axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        style: dict[str, Any] = {"linewidth": 0.9, "markersize": 3, "alpha": 0.7}
        if name in strong:
            style = {"linewidth": 2.2, "markersize": 5, "zorder": 3, "color": strong[name]}
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name, **style)
    axes.plot(*zip(*front, strict=True), "k--", linewidth=1, label="Pareto front")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(cost)
    axes.set_ylabel(worth)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
