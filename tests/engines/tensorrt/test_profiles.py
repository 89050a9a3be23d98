from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from star_export.bundle import open_bundle
from star_export.contract import contract
from star_export.engines.tensorrt.profiles import check_topk, engine_profiles, tuned_ranges
from star_export.errors import SettingsError
from star_export.specs import ExportSpec, ModelSpec, resolve_images, resolve_star
from tests.shapes import NEXT, ONEVISION

TILED = {"next": NEXT, "onevision": ONEVISION}


def tiled(model: ModelSpec, *, prune: bool = True, text: int = 100, **options: Any) -> ExportSpec:
    limits = {name: options.pop(name) for name in ("max_images", "max_tiles") if name in options}
    images = resolve_images(model, room=30000, **limits)
    return ExportSpec(
        model=model, schedule=resolve_star(model, images, **options) if prune else (), images=images,
        max_text_tokens=text, max_new_tokens=50, append_tokens=64, dtype="float16",
    )  # fmt: skip


@pytest.fixture(
    params=[
        ("mha", True),
        ("gqa", False),
        ("next", True),
        ("onevision", True),
        ("next", False),
    ]
)
def spec(request: pytest.FixtureRequest, bundle: Callable[..., Path]) -> ExportSpec:
    name, prune = request.param
    if name in TILED:
        return tiled(TILED[name], prune=prune)
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
    assert ranges["C"] == (1, 1, 64)
    assert ranges["S"][2] == spec.image_tokens + spec.max_text_tokens
    tiles = {"T", "P", "D1"} if spec.model.tiling else {"N1"}
    if spec.model.tiling is None:
        assert ranges["V"] == (1 if spec.schedule else spec.image_tokens, *(spec.image_tokens,) * 2)
    if not spec.schedule:
        assert set(ranges) == {"B", "C", "V", "S", "L1"} | (tiles - {"N1", "D1"})
        return
    assert set(ranges) == {"B", "C", "V", "S", "Q", "N2", "L1", "L2"} | tiles
    assert [ranges["L1"], ranges["L2"]] == [(capacity,) * 3 for capacity in spec.capacities]
    assert ranges["N2"] == (1, spec.keep, spec.schedule[1].max_tokens)
    if "N1" in tiles:
        assert ranges["N1"] == (1, *(spec.schedule[0].tokens,) * 2)
    for corner in range(3):
        if "D1" in tiles:
            assert ranges["D1"][corner] < ranges["P"][corner]
        text = ranges["S"][corner] - ranges["V"][corner]
        assert 1 <= ranges["Q"][corner] <= text
        assert ranges["N2"][corner] <= ranges["V"][corner]
        assert ranges["S"][corner] < spec.groups[0].capacity
        assert text + ranges["N2"][corner] < spec.groups[1].capacity


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (NEXT, {"T": 5, "P": 2340, "D1": 230, "V": 2110, "S": 2174}),
        (ONEVISION, {"T": 5, "P": 2929, "D1": 289, "V": 2640, "S": 2704}),
    ],
)
def test_engines_are_tuned_for_a_photo(model: ModelSpec, sizes: dict[str, int]) -> None:
    """Of 640x480, as it comes from a camera."""
    ranges = tuned_ranges(tiled(model), 4)
    assert {name: ranges[name][1] for name in sizes} == sizes


def test_a_photo_that_is_too_large_for_the_bundle_is_not_what_engines_are_tuned_for() -> None:
    ranges = tuned_ranges(tiled(ONEVISION, max_tiles=2), 4)
    assert {name: ranges[name][1:] for name in ("T", "P", "V")} == {
        "T": (2, 2), "P": (1485, 1485), "V": (1339, 1339),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"drop_ratio": 0.45},
            "stage 1 drops up to 3900 tokens, .* 3840; lower drop_ratio or max_image_tokens, or",
        ),
        (
            {"max_keep": 3741},
            "a later stage keeps up to 3841 tokens, .*; lower max_keep or max_text_tokens, or",
        ),
        ({"max_keep": 3700, "text": 141}, "with the text, a later stage keeps up to 3841"),
    ],
)
def test_more_than_tensorrt_can_choose(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_topk(tiled(ONEVISION, **options))


def test_a_request_may_drop_as_many_as_tensorrt_can_choose() -> None:
    """Of a picture in tiles, whose tokens beyond a share are chosen to be dropped."""
    assert tuned_ranges(tiled(NEXT), 4)["D1"] == (1, 230, 2927)
    assert tuned_ranges(tiled(ONEVISION), 4)["D1"][2] == 3840
    plugin = tiled(ONEVISION, drop_ratio=0.45)
    assert tuned_ranges(plugin, 4)["D1"][2] == plugin.max_dropped > 3840


def test_as_many_as_tensorrt_can_choose() -> None:
    check_topk(tiled(ONEVISION))
    check_topk(tiled(ONEVISION, max_keep=3740))
    check_topk(tiled(ONEVISION, prune=False))
    check_topk(tiled(ONEVISION, drop_ratio=0.4))
    whole = replace(NEXT, tiling=None, vision=replace(NEXT.vision, image_size=14 * 66))
    check_topk(tiled(whole, drop_ratio=0.2, max_images=3))  # each picture alone
    with pytest.raises(
        SettingsError, match=r"3920 tokens, .*; raise drop_ratio or keep fewer in schedule, or"
    ):
        check_topk(tiled(whole))
