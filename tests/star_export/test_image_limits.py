"""What pictures a bundle takes, and how many of their visual tokens enter the decoder and stay."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from star_export.contract import size_ranges
from star_export.errors import SettingsError
from star_export.specs import (
    ExportSpec,
    ImageLimits,
    ModelSpec,
    Stage,
    check_capacities,
    check_images,
    check_keep,
    check_schedule,
    entering_tokens,
    largest_request,
    picture_grid,
    resolve_images,
    resolve_star,
    smallest_image,
)
from tests.shapes import NEXT, ONEVISION

ROOM = 1 << 20
WHOLE = replace(NEXT, model_type="llava", tiling=None)  # LLaVA-1.5: a picture is one tile
SIZES = [
    (480, 640),
    (640, 480),
    (336, 336),
    (1, 200),
    (200, 1),
    (1080, 1920),
    (3000, 200),
    (700, 690),
    (97, 31),
]


def export_spec(model: ModelSpec, *, prune: bool = True, **options: Any) -> ExportSpec:
    limits = {name: options.pop(name) for name in ("max_images", "max_tiles") if name in options}
    images = resolve_images(model, room=ROOM, **limits)
    schedule = resolve_star(model, images, **options) if prune else ()
    return ExportSpec(
        model=model, schedule=schedule, images=images, max_text_tokens=100, max_new_tokens=50,
        append_tokens=64, dtype="float16",
    )  # fmt: skip


def picture(model: ModelSpec, size: tuple[int, int]) -> tuple[int, int]:
    """Visual tokens and newlines of a picture that is cut."""
    assert model.tiling is not None
    vision = model.vision
    grid = picture_grid(size, model.tiling, tile=vision.image_size, side=vision.grid_side)
    return vision.tile_tokens + grid.tokens, grid.shape[0]


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (WHOLE, {}, (1, 1, 576)),
        (WHOLE, {"max_images": 3}, (3, 1, 3 * 576)),
        (WHOLE, {"max_images": 3, "max_image_tokens": 1728}, (3, 1, 3 * 576)),
        (WHOLE, {"max_image_tokens": 5000}, (1, 1, 576)),  # no more than there can be
        (NEXT, {}, (1, 5, 2928)),  # 576 + 48 * (48 + 1)
        (NEXT, {"max_images": 2}, (2, 5, 2 * 2928)),
        (NEXT, {"max_tiles": 4}, (1, 4, 2376)),  # 576 + 72 * (24 + 1)
        (NEXT, {"max_tiles": 3}, (1, 3, 1776)),  # 576 + 48 * (24 + 1)
        (ONEVISION, {"max_tiles": 2}, (1, 2, 729 + 27 * 28)),
        (ONEVISION, {"max_tiles": 2, "max_images": 5}, (5, 2, 5 * 730)),  # several are not cut
        (ONEVISION, {"max_images": 3}, (3, 37, 8829)),  # one that is cut has more
    ],
)
def test_limits(model: ModelSpec, options: dict[str, int], expected: tuple[int, int, int]) -> None:
    limits = resolve_images(model, room=ROOM, **options)
    assert (limits.max_images, limits.max_tiles, limits.max_image_tokens) == expected
    check_images(limits, model)


def test_without_being_asked_pictures_get_the_room_that_there_is() -> None:
    assert resolve_images(ONEVISION, room=4000).max_image_tokens == 4000
    assert resolve_images(ONEVISION, room=4000, max_image_tokens=5000).max_image_tokens == 5000
    assert resolve_images(ONEVISION, room=-700).max_image_tokens == 729  # check_capacities refuses it


@pytest.mark.parametrize("window", [None, 4096])
def test_what_a_build_asks_for_must_fit_positions_and_window(window: int | None) -> None:
    text = replace(
        NEXT.text, sliding_window=window, max_position_embeddings=4096 if window is None else 32768
    )
    spec = replace(export_spec(NEXT, prune=False, max_images=2), model=replace(NEXT, text=text))
    what = "4096 positions" if window is None else "4096 tokens of its sliding window"
    with pytest.raises(
        SettingsError, match=rf"5856 image \+ 100 .* over the model's {what}; .*max_image_tok"
    ):
        check_capacities(spec)
    check_capacities(replace(spec, images=replace(spec.images, max_image_tokens=4096 - 150)))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (WHOLE, {"max_tiles": 2}, "max_tiles must be from 1 to 1 for this model, got 2"),
        (ONEVISION, {"max_tiles": 1}, "max_tiles must be from 2 to 37 for this model, got 1"),
        (NEXT, {"max_tiles": 2}, "max_tiles must be from 3 to 5 for this model, got 2"),
        (NEXT, {"max_tiles": 6}, "max_tiles must be from 3 to 5 for this model, got 6"),
        (NEXT, {"max_images": 0}, "max_images must be at least 1, got 0"),
        (WHOLE, {"max_images": 3, "max_image_tokens": 1000}, "have 1728 .* room for 1000; give at most 1"),
        (ONEVISION, {"max_images": 10**9}, f"room for {ROOM}; give at most {ROOM // 729}"),
        (NEXT, {"max_image_tokens": 575}, "max_image_tokens=575 has no room for a picture, which has 576"),
    ],
)
def test_limits_that_cannot_be(model: ModelSpec, options: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve_images(model, room=ROOM, **options)


@pytest.mark.parametrize(
    ("model", "limits", "message"),
    [
        (WHOLE, (1, 1, 575), "no room for any picture"),
        (NEXT, (1, 5, 575), "no room for any picture"),
        (NEXT, (1, 2, 9999), "no room for any picture"),  # every pin point has two tiles at least
        (
            replace(NEXT, tiling=replace(NEXT.tiling, pinpoints=((336, 600),))),
            (1, 5, 9999),
            "no whole tiles of 336",
        ),
        (replace(NEXT, tiling=replace(NEXT.tiling, pinpoints=())), (1, 5, 9999), "no whole tiles of 336"),
    ],
)
def test_limits_of_a_manifest_that_cannot_be(
    model: ModelSpec, limits: tuple[int, int, int], message: str
) -> None:
    images = ImageLimits(max_images=limits[0], max_tiles=limits[1], max_image_tokens=limits[2])
    with pytest.raises(SettingsError, match=message):
        check_images(images, model)


@pytest.mark.parametrize("model", [NEXT, ONEVISION])
@pytest.mark.parametrize("drop_ratio", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("prune", [True, False])
def test_every_picture_lies_within_the_sizes(model: ModelSpec, prune: bool, drop_ratio: float) -> None:
    spec = export_spec(model, prune=prune, max_images=3, **({"drop_ratio": drop_ratio} if prune else {}))
    sizes = size_ranges(spec)
    requests = [(picture(model, size),) for size in SIZES]
    whole = (model.vision.tile_tokens + 1, 1)
    requests += [(whole,) * 3] if model is ONEVISION else [requests[0] + requests[2] + requests[4]]
    for pictures in requests:
        entering = [spec.entering(*one) for one in pictures]
        text, visual = spec.max_text_tokens, sum(entering)
        found = {"V": visual, "S": visual + text}
        for (tokens, _), kept in zip(pictures, entering, strict=True):
            assert sizes["P"].min <= tokens <= (sizes["P"].max or 0)
            if prune:
                assert sizes["D1"].min <= tokens - kept <= (sizes["D1"].max or 0)
        assert all(sizes[name].min <= size <= (sizes[name].max or 0) for name, size in found.items())
        assert spec.groups[0].capacity >= visual + text + spec.max_new_tokens


def stage1(share: float | None, tokens: int = 1) -> Stage:
    return Stage(after_layer=0, score="received", tokens=tokens, max_tokens=9999, share=share)


@pytest.mark.parametrize(
    ("stage", "tokens", "newlines", "entering"),
    [
        (stage1(None, 518), 576, 0, 518),
        (stage1(0.9), 2340, 36, 2110),  # 2073.6 of 2304 patches, and 36 newlines
        (stage1(0.9), 2929, 40, 2640),  # 2600.1 of 2889
        (stage1(0.5), 15, 10, 13),  # 2.5: halves go up
        (stage1(1.0), 2340, 36, 2339),  # one is always dropped
        (stage1(0.99), 20, 4, 19),
    ],
)
def test_what_enters_the_decoder(stage: Stage, tokens: int, newlines: int, entering: int) -> None:
    assert entering_tokens(stage, tokens, newlines) == entering


@pytest.mark.parametrize("model", [NEXT, ONEVISION])
def test_the_smallest_picture_is_the_smallest(model: ModelSpec) -> None:
    spec = export_spec(model)
    assert smallest_image(model) == (model.vision.tile_tokens, 0)
    least = spec.entering(*smallest_image(model))
    assert all(spec.entering(*picture(model, size)) >= least for size in SIZES)


@pytest.mark.parametrize("model", [NEXT, ONEVISION])
def test_the_largest_request_is_a_picture_that_there_is(model: ModelSpec) -> None:
    spec = export_spec(model)
    assert spec.stage1 is not None
    assert spec.image_tokens == spec.stage1.tokens == spec.max_visual_tokens
    assert spec.largest_image == spec.images.max_image_tokens
    sizes = [(h, w) for h in range(100, 3000, 100) for w in range(100, 3000, 100)]
    pictures = [picture(model, size) for size in sizes]
    most = max(tokens for tokens, _ in pictures)
    assert 0.98 * spec.largest_image < most <= spec.largest_image
    count = partial(entering_tokens, spec.stage1)
    assert largest_request(model, spec.images, count) >= max(count(*one) for one in pictures)
    few = replace(spec.images, max_image_tokens=2000)
    assert max(t for t, _ in pictures if t <= 2000) <= largest_request(model, few, lambda t, _: t) <= 2000


def test_star_of_pictures_that_are_cut() -> None:
    spec = export_spec(NEXT)
    assert spec.schedule == (
        Stage(after_layer=0, score="received", tokens=2640, max_tokens=2640, share=0.9),
        Stage(after_layer=14, score="text", tokens=320, max_tokens=320),
    )
    check_schedule(spec.schedule, NEXT, spec.images)
    three = export_spec(WHOLE, max_images=3)
    assert [(stage.tokens, stage.max_tokens, stage.share) for stage in three.schedule] == [
        (518, 3 * 518, None), (64, 64, None),
    ]  # fmt: skip
    check_keep(export_spec(WHOLE, max_images=3, max_keep=1553).schedule, 1553)


def test_a_share_is_of_pictures_of_several_sizes() -> None:
    check_schedule((replace(stage1(None, 400), max_tokens=400),), NEXT, resolve_images(NEXT, room=ROOM))
    with pytest.raises(SettingsError, match=r"stage 1 keeps a share .* all have one size; give a number"):
        check_schedule((replace(stage1(0.9, 400), max_tokens=400),), WHOLE, resolve_images(WHOLE, room=ROOM))


def test_a_ratio_is_of_what_the_request_has() -> None:
    spec = export_spec(NEXT, keep_ratio=0.1)
    assert spec.keep == spec.schedule[1].max_tokens == 293  # of 2928
    assert [spec.asked(None, tokens)[1] for tokens in (2928, 2340, 576, 4)] == [293, 234, 58, 1]
    assert spec.asked(7, 2340) == (spec.image_tokens, 7)
    fixed = export_spec(NEXT)
    assert [fixed.asked(None, tokens)[1] for tokens in (2928, 576)] == [320, 320]
    assert export_spec(NEXT, prune=False).asked(None, 576) == ()


def test_no_stage_keeps_more_than_enters() -> None:
    spec = export_spec(NEXT)
    assert spec.budgets() == spec.budgets(entering=2640) == (320,)
    assert spec.budgets(entering=200) == spec.budgets(300, entering=200) == (200,)
    assert spec.lengths(10, 200) == (210, 210)
    assert spec.lengths(10, 2000, 40) == (2010, 50)
    text = Stage(after_layer=20, score="text", tokens=100, max_tokens=100)
    three = replace(spec, schedule=(*spec.schedule, text))
    assert three.budgets(entering=150) == (150, 100)
    assert three.budgets(7, entering=150) == (150, 7)
