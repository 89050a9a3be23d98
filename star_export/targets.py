"""Schedules that reach a goal: the most visual tokens within a share of arithmetic, bytes or milliseconds."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from star_export.build import SpecOptions
from star_export.errors import SettingsError, option
from star_export.plan import Plan
from star_export.specs import BALANCED_PRESET, FAST_PRESET


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Something of a plan that can be limited.

    Attributes:
        what: It in words.
        units: How large each of its units is.
        measure: Its value; None where there is no estimate.
        show: A value as a target spells it, rounded up: a target of it is reached.
    """

    what: str
    units: Mapping[str, float]
    measure: Callable[[Plan], float | None]
    show: Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A limit: ``flops=0.3``.

    Attributes:
        name: A key of :data:`METRICS`.
        limit: The most that a plan may have.
        text: As it was given.
    """

    name: str
    limit: float
    text: str

    def missed(self, plan: Plan) -> bool:
        """Whether a plan has more."""
        found = METRICS[self.name].measure(plan)
        return found is None or found > self.limit


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The largest schedule of one family that reaches all targets.

    Attributes:
        options: What makes it of the options of a build or a plan.
    """

    options: dict[str, Any]
    plan: Plan


def _ttft(plan: Plan) -> float | None:
    return None if plan.planned.estimate is None else plan.planned.estimate.ttft


METRICS = {
    "flops": Metric(
        what="share of the unpruned prefill's arithmetic",
        units={"": 1, "%": 0.01},
        measure=lambda plan: plan.flops,
        show=lambda value: f"{math.ceil(1e3 * value) / 1e3:g}",
    ),
    "kv": Metric(
        what="KV caches of the request with its answer",
        units={"kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
        measure=lambda plan: plan.planned.kv_bytes,
        show=lambda value: f"{math.ceil(value / 1e5) / 10:g}MB",
    ),
    "ttft": Metric(
        what="estimated time to the first token",
        units={"ms": 1e-3, "s": 1},
        measure=_ttft,
        show=lambda value: f"{math.ceil(1e4 * value) / 10:g}ms",
    ),
}

_TARGET = re.compile(r"(?P<name>[^=]*)=(?P<number>\d+(\.\d+)?|\.\d+)\s*(?P<unit>[A-Za-z%]*)")


def parse_target(text: str) -> Target:
    """A target as users write it.

    Raises:
        SettingsError: If its name, number or unit is something else.
    """
    name = text.partition("=")[0]
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError(
            f"{option('targets', text)} limits nothing that is known; {hint}"
            "expected flops=0.3, kv=200MB or ttft=150ms"
        )
    found, units = _TARGET.fullmatch(text), METRICS[name].units
    if found is None or found["unit"] not in units:
        wanted = ", ".join(f"{name}=N{unit}" for unit in units)
        raise SettingsError(f"{option('targets', text)} has no number in a known unit; expected {wanted}")
    limit = float(found["number"]) * units[found["unit"]]
    if limit <= 0 or (name == "flops" and limit > 1):
        most = " and at most 1, the unpruned prefill" if name == "flops" else ""
        raise SettingsError(f"{option('targets', text)} must be above 0{most}")
    return Target(name=name, limit=limit, text=text)


#: Options of a schedule of some number: the larger it is, the more the schedule costs.
Family = Callable[[int], dict[str, Any]]

#: The last one's schedule of 1 is the cheapest there is.
_FAMILIES: tuple[Family, ...] = (
    lambda n: {"keep": n},
    lambda n: {"schedule": f"{BALANCED_PRESET}-{n}"},
    lambda n: {"schedule": f"{FAST_PRESET}-{n}"},
)


def propose(
    options: SpecOptions, plan_of: Callable[[SpecOptions], Plan], targets: Sequence[Target]
) -> tuple[Proposal, ...]:
    """The largest schedule of each family that reaches all targets, those of most visual tokens first.

    Families are STAR at its own drop ratio and layer, ``balanced`` and ``fast``. Where the model reaches the
    targets without any pruning, that is the only proposal.

    Args:
        options: Everything but a schedule.
        plan_of: The plan of some options.
        targets: At least one.

    Raises:
        SettingsError: If none reaches them, with the nearest that can be reached.
    """

    def proposal(choice: dict[str, Any]) -> Proposal:
        return Proposal(options=choice, plan=plan_of(replace(options, **choice)))

    def sized(family: Family, number: int) -> Proposal:
        return proposal(family(number))

    unpruned = proposal({"prune": False})
    _check_measured(unpruned.plan, targets)
    if not _misses(unpruned, targets):
        return (unpruned,)
    most = unpruned.plan.image_tokens
    found = [_largest(partial(sized, family), most, targets) for family in _FAMILIES]
    proposals = [best for best in found if best is not None]
    if not proposals:
        raise _unreachable(sized(_FAMILIES[-1], 1), targets)
    return tuple(sorted(proposals, key=lambda best: -best.plan.planned.average))


def _check_measured(plan: Plan, targets: Sequence[Target]) -> None:
    for target in targets:
        if METRICS[target.name].measure(plan) is None:
            raise SettingsError(
                f"{option('targets', target.text)} is about time; give {option('gpu')}, or "
                f"{option('bandwidth')} and {option('flops')}"
            )


def _misses(proposal: Proposal, targets: Sequence[Target]) -> list[Target]:
    return [target for target in targets if target.missed(proposal.plan)]


def _largest(propose_one: Callable[[int], Proposal], most: int, targets: Sequence[Target]) -> Proposal | None:
    """The proposal of the largest number that the model takes and that reaches the targets."""
    best, least, above = None, 0, most + 1
    while above - least > 1:
        middle = (least + above) // 2
        try:
            tried = propose_one(middle)
        except SettingsError:  # more than a stage has to choose from
            above = middle
            continue
        if _misses(tried, targets):
            above = middle
        else:
            best, least = tried, middle
    return best


def _unreachable(cheapest: Proposal, targets: Sequence[Target]) -> SettingsError:
    """What the cheapest schedule has of the first target that it misses."""
    target = _misses(cheapest, targets)[0]
    metric, [choice] = METRICS[target.name], cheapest.options.items()
    return SettingsError(
        f"{option('targets', target.text)} cannot be met: the {metric.what} is at least "
        f"{metric.show(metric.measure(cheapest.plan) or 0)} here, with {option(*choice)}; give that much, "
        "or a shorter prompt or answer"
    )
