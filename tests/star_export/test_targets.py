"""Targets as they are written, and the schedules that reach them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from star_export.build import SpecOptions, resolve_sizes
from star_export.checkpoint.published import SHAPES
from star_export.errors import SettingsError
from star_export.gpus import GPUS, Device
from star_export.plan import Plan, Request, plan
from star_export.targets import Proposal, Target, parse_target, propose

REQUEST = Request(image_size=(480, 640), text_tokens=64, new_tokens=128)


def proposed(
    *targets: str, model: str = "llava-1.5-7b", device: Device | None = None
) -> tuple[Sequence[Proposal], list[Target]]:
    wanted = [parse_target(text) for text in targets]
    options = SpecOptions(model=model, dtype="float16")
    return propose(options, lambda given: planned(given, device), wanted), wanted


def planned(options: SpecOptions, device: Device | None = None) -> Plan:
    return plan(resolve_sizes(options, SHAPES[options.model]), REQUEST, device)


def next_larger(proposal: Proposal, model: str, device: Device | None) -> Plan | None:
    """The family's next schedule; None where the model has none."""
    [(name, value)] = proposal.options.items()
    prefix, _, number = str(value).rpartition("-")
    larger = int(number) + 1 if not prefix else f"{prefix}-{int(number) + 1}"
    try:
        return planned(replace(SpecOptions(model=model, dtype="float16"), **{name: larger}), device)
    except SettingsError:
        return None


@pytest.mark.parametrize(
    ("model", "targets", "families"),
    [
        ("llava-1.5-7b", ("flops=0.6",), {"keep", "fast", "balanced"}),
        ("llava-1.5-7b", ("flops=30%",), {"fast", "balanced"}),  # STAR's first layers alone have more
        ("llava-1.5-7b", ("kv=200MB",), {"fast", "balanced"}),
        ("llava-1.5-7b", ("kv=0.25GiB", "flops=0.5", "ttft=100ms"), {"keep", "fast", "balanced"}),
        ("llava-onevision-qwen2-7b", ("kv=0.1GB",), {"keep", "fast", "balanced"}),
    ],
)
def test_proposals_reach_their_targets_and_the_next_larger_do_not(
    model: str, targets: tuple[str, ...], families: set[str]
) -> None:
    proposals, wanted = proposed(*targets, model=model, device=GPUS["rtx-4090"])
    found = {
        str(value).partition("-")[0] if name == "schedule" else name
        for p in proposals
        for name, value in p.options.items()
    }
    assert found == families
    averages = [proposal.plan.planned.average for proposal in proposals]
    assert averages == sorted(averages, reverse=True)
    for proposal in proposals:
        assert not any(target.missed(proposal.plan) for target in wanted)
        larger = next_larger(proposal, model, GPUS["rtx-4090"])
        assert larger is None or any(target.missed(larger) for target in wanted)


def test_nothing_is_pruned_where_nothing_has_to_be() -> None:
    proposals, _ = proposed("flops=1", "kv=403MB")
    assert [proposal.options for proposal in proposals] == [{"prune": False}]


@pytest.mark.parametrize(
    ("target", "nearest"),
    [
        (
            "flops=0.05",
            r"flops=0.05 cannot be met: .* is at least (?P<least>[\d.]+) here, with schedule=fast-1",
        ),
        ("kv=50MB", r"kv=50MB cannot be met: .* is at least (?P<least>[\d.]+MB) here"),
        ("ttft=1ms", r"ttft=1ms cannot be met: the estimated .* is at least (?P<least>[\d.]+ms) here"),
    ],
)
def test_the_nearest_that_can_be_met_can_be_met(target: str, nearest: str) -> None:
    import re

    with pytest.raises(SettingsError) as caught:
        proposed(target, "flops=0.9", device=GPUS["l4"])
    found = re.search(nearest, str(caught.value))
    assert found is not None, caught.value
    proposals, _ = proposed(f"{target.partition('=')[0]}={found['least']}", device=GPUS["l4"])
    assert proposals


def test_a_time_needs_a_device() -> None:
    with pytest.raises(SettingsError, match=r"ttft=150ms is about time; give gpu, or bandwidth and flops"):
        proposed("ttft=150ms")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("flops=0.3", 0.3),
        ("flops=.5", 0.5),
        ("flops=30%", 0.3),
        ("kv=200MB", 2e8),
        ("kv=1.5GiB", 1.5 * 2**30),
        ("kv=200 MB", 2e8),
        ("ttft=150ms", 0.15),
        ("ttft=2s", 2),
    ],
)
def test_targets(text: str, limit: float) -> None:
    assert parse_target(text).limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=3", "limits nothing that is known; expected flops=0.3, kv=200MB or ttft=150ms"),
        ("flop=0.3", "did you mean flops"),
        ("flops", "has no number in a known unit; expected flops=N, flops=N%"),
        ("flops=x", "has no number in a known unit"),
        ("flops=nan", "has no number in a known unit"),
        ("kv=200", "expected kv=NkB, kv=NMB"),
        ("ttft=150", "expected ttft=Nms, ttft=Ns"),
        ("flops=0", "must be above 0 and at most 1, the unpruned prefill"),
        ("flops=1.5", "must be above 0 and at most 1"),
        ("kv=0MB", "must be above 0"),
        ("kv=-1MB", "has no number"),
    ],
)
def test_targets_that_are_none(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_target(text)
