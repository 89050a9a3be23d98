from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.bundle import open_bundle
from star_export.contract import contract
from star_export.engines.tensorrt.profiles import engine_profiles, tuned_ranges
from star_export.specs import ExportSpec


@pytest.fixture(params=[("mha", True), ("deep", True), ("gqa", False)])
def spec(request: pytest.FixtureRequest, bundle: Callable[..., Path]) -> ExportSpec:
    name, prune = request.param
    return open_bundle(bundle(name, prune=prune, dtype="float16")).spec


def test_every_dynamic_input_has_a_profile_and_no_other(spec: ExportSpec) -> None:
    profiles = engine_profiles(spec, max_batch=4)
    for graph, io in contract(spec).items():
        dynamic = {t.name for t in io.inputs if any(isinstance(size, str) for size in t.shape)}
        assert set(profiles[graph]) == dynamic
        for tensor in io.inputs:
            if tensor.name in dynamic:
                profile = profiles[graph][tensor.name]
                for low, typical, high in zip(profile.min, profile.opt, profile.max, strict=True):
                    assert 1 <= low <= typical <= high


def test_ranges_come_from_the_capacities_and_agree_at_every_corner(spec: ExportSpec) -> None:
    ranges = tuned_ranges(spec, 4)
    assert ranges["B"] == (1, 1, 4)
    assert ranges["S"][2] == spec.image_tokens + spec.max_text_tokens
    assert ranges["V"] == (spec.image_tokens,) * 3
    if not spec.schedule:
        assert set(ranges) == {"B", "V", "S"}
        return
    assert ranges["N2"] == (1, spec.keep, spec.schedule[1].max_tokens)
    assert ranges["N1"] == (spec.schedule[0].tokens,) * 3
    for corner in range(3):
        text = ranges["S"][corner] - ranges["V"][corner]
        assert 1 <= ranges["Q"][corner] <= text
        assert ranges["N2"][corner] < ranges["V"][corner]
        assert ranges["S"][corner] < spec.groups[0].capacity
        assert text + ranges["N2"][corner] < spec.groups[1].capacity
