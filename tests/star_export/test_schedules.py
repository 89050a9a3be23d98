"""Schedules as users write them, and what they become for a model and its pictures."""

from dataclasses import replace
from typing import Any

import pytest

from star_export.errors import SettingsError
from star_export.specs import (
    ExportSpec,
    ModelSpec,
    Schedule,
    Stage,
    check_keep,
    check_schedule,
    parse_schedule,
    resolve_images,
    resolve_schedule,
)
from tests.shapes import NEXT

ROOM = 1 << 20
WHOLE = replace(NEXT, model_type="llava", tiling=None)  # 576 visual tokens, 32 layers
SIGLIP = replace(WHOLE, vision=replace(WHOLE.vision, model_type="siglip_vision_model", has_cls=False))


def resolve(text: str, model: ModelSpec = WHOLE, *, max_images: int = 1, **options: Any) -> Schedule:
    images = resolve_images(model, room=ROOM, max_images=max_images)
    schedule = resolve_schedule(model, images, text, **options)
    check_schedule(schedule, model, images)
    return schedule


def rows(schedule: Schedule) -> list[tuple[int, str, int, int, float | None]]:
    return [(s.after_layer, s.score, s.tokens, s.max_tokens, s.share) for s in schedule]


@pytest.mark.parametrize(
    ("text", "layers", "expected"),
    [
        ("128@0,14@14", 32, ["128@0", "14@14"]),
        (" 300@0 , 100@2,50@4", 6, ["300@0", "100@2", "50@4"]),
        ("64@2", 6, ["64@2"]),
        ("90%@0,12.5%@3", 6, ["90%@0", "12.5%@3"]),
        ("fast", 32, ["64@0"]),
        ("fast-16", 32, ["16@0"]),
        ("balanced", 32, ["128@0", "14@14"]),
        ("balanced-64", 32, ["128@0", "14@14"]),
        ("balanced-64", 40, ["128@0", "17@17"]),  # 17 * 128 + 23 * 16.7
        ("balanced-1", 32, ["2@0", "1@14"]),
    ],
)
def test_parse_schedule(text: str, layers: int, expected: list[str]) -> None:
    assert list(map(str, parse_schedule(text, layers))) == expected


@pytest.mark.parametrize("average", [16, 32, 64, 128])
@pytest.mark.parametrize("layers", [2, 5, 24, 32, 40])
def test_balanced_is_balanced(average: int, layers: int) -> None:
    first, last = parse_schedule(f"balanced-{average}", layers)
    late = layers - last.after_layer
    found = (first.tokens * last.after_layer + last.tokens * late) / layers
    assert abs(found - average) <= max(0.5 * late, last.after_layer * 2 * average / layers - average)


def test_resolve_schedule() -> None:
    assert rows(resolve("128@0,14@14")) == [(0, "spread", 128, 128, None), (14, "text-peaks", 14, 14, None)]
    assert rows(resolve("300@0,100@2,50@4", stage1="cls", stage2="last", max_keep=99)) == [
        (0, "cls", 300, 300, None),
        (2, "last", 100, 100, None),
        (4, "last", 50, 99, None),
    ]
    assert rows(resolve("64@2")) == [(2, "text-peaks", 64, 64, None)]
    assert rows(resolve("128@0,200@14", max_images=3)) == [
        (0, "spread", 128, 3 * 128, None),  # of each picture
        (14, "text-peaks", 200, 200, None),  # of all
    ]


def test_shares() -> None:
    assert rows(resolve("90%@0,10%@14")) == [
        (0, "spread", 518, 518, None),  # all pictures have one size
        (14, "text-peaks", 58, 58, 0.1),
    ]
    assert rows(resolve("90%@0,10%@14", NEXT)) == [
        (0, "spread", 2640, 2640, 0.9),
        (14, "text-peaks", 293, 293, 0.1),  # of what there is before any is pruned
    ]
    assert rows(resolve("128@0,14@14", NEXT)) == [
        (0, "spread", 128, 128, None),
        (14, "text-peaks", 14, 14, None),
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("balancd-64", {}, r"schedule=balancd-64 is no schedule; did you mean balanced-64\? expected stages"),
        ("128", {}, "schedule=128 is no schedule; expected stages TOKENS@LAYER such as 128@0,14@14"),
        ("", {}, "is no schedule"),
        ("128@0,", {}, "is no schedule"),
        ("-4@2", {}, "is no schedule"),
        ("14@14,128@0", {}, "128@0 comes after 14@14; give stages in order of layers"),
        ("128@3,64@3", {}, "64@3 comes after 128@3"),
        ("128@0,14@32", {}, "14@32 is outside; .* 32 layers take stages at 0 .* to 31"),
        ("0@0", {}, "0@0 keeps nothing; give at least 1 token"),
        ("0%@0", {}, "0%@0 is no share between 0 and 100 %"),
        ("100%@2", {}, "100%@2 is no share"),
        ("576@0", {}, "schedule=576@0: 576@0 is not below the 576 visual tokens of a picture; keep fewer"),
        ("balanced-500", {}, "schedule=balanced-500: 1000@0 is not below the 576"),
        ("14@0,128@14", {}, "schedule=14@0,128@14: stage 2 keeps up to 128 tokens, expected at most 13"),
        ("100@2,100@4", {}, "stage 3 keeps up to 100 tokens, expected at most 99"),
        ("fast", {"max_keep": 100}, "max_keep=100 is about a stage inside the decoder"),
        ("128@0,14@14", {"max_keep": 128}, "max_keep=128 is not below the 128 tokens that stage 1 keeps"),
        ("128@0,14@14", {"max_keep": 13}, "14 tokens, over its maximum of 13"),
        ("fast", {"stage2": "last"}, "stage2=last has no meaning with schedule=fast, .* no stage inside"),
        ("64@2", {"stage1": "cls"}, "stage1=cls has no meaning with schedule=64@2, .* no stage before"),
        (
            "fast",
            {"stage1": "spred"},
            r"stage1=spred is no score .* did you mean spread\? scores are received, ",
        ),
        (
            "64@2",
            {"stage2": "received"},
            "stage2=received is no score of this stage; .*scores are text, last",
        ),
    ],
)
def test_schedules_that_are_refused(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve(text, **options)


def test_a_tower_without_cls_has_no_score_of_it() -> None:
    message = "stage1=cls needs a class token, and siglip_vision_model has none; use received, spread, peaks"
    with pytest.raises(SettingsError, match=message):
        resolve("fast", SIGLIP, stage1="cls")
    assert resolve("fast", SIGLIP)[0].score == "spread"


THREE = (
    Stage(after_layer=0, score="received", tokens=300, max_tokens=300),
    Stage(after_layer=2, score="text", tokens=100, max_tokens=150),
    Stage(after_layer=4, score="text", tokens=50, max_tokens=99),
)


@pytest.mark.parametrize("keep", [(300, 100, 50), (300, 150, 99), (60, 50, 40), (3, 2, 1), 99, 1])
def test_budgets_of_every_stage(keep: int | tuple[int, ...]) -> None:
    check_keep(THREE, keep)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ((300, 50), "keep=300,50 has 2 budgets; give one number for the last stage, or 3, one for each"),
        ((), "has 0 budgets"),
        ((301, 100, 50), "keep=301 is over this bundle's maximum of 300; .* schedule=301@0"),
        ((300, 151, 50), "keep=151 is over this bundle's maximum of 150"),
        (
            (300, 100, 100),
            "keep=100 is not below the 100 tokens that stage 2 keeps; choose at most 99 or let",
        ),
        ((100, 100, 50), "keep=100 is not below the 100 tokens that stage 1 keeps; choose at most 99 or let"),
        ((1, 1, 1), "keep=1 is not below the 1 tokens that stage 1 keeps; let that stage keep more"),
        ((0, 1, 1), "keep must be at least 1 visual token, got 0"),
    ],
)
def test_budgets_that_are_refused(keep: tuple[int, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_keep(THREE, keep)


def spec(schedule: Schedule, model: ModelSpec = WHOLE) -> ExportSpec:
    images = resolve_images(model, room=ROOM, max_images=3)
    return ExportSpec(
        model=model, schedule=schedule, images=images, max_text_tokens=100, max_new_tokens=50,
        append_tokens=64, dtype="float16",
    )  # fmt: skip


def test_a_request_has_the_budgets_that_it_asks_for() -> None:
    three = spec(THREE)
    assert three.asked(None) == (300, 100, 50)
    assert three.asked(20) == (300, 100, 20)
    assert three.asked((60, 50, 40)) == (60, 50, 40)
    assert [three.entering(576, keep=keep) for keep in (None, 20, (60, 50, 40))] == [300, 300, 60]
    assert three.lengths(10, 60, (60, 50, 40)) == (70, 60, 50)
    assert three.lengths(10, 30, (60, 50, 40)) == (40, 40, 40)  # pictures that have fewer


def test_a_share_is_the_pictures_own_until_a_request_gives_a_number() -> None:
    tiled = spec(resolve("90%@0,50%@1,10%@14", NEXT, max_images=3), NEXT)
    first, *_ = tiled.asked(None)
    assert tiled.entering(2340, 36) == 2110
    assert tiled.entering(2340, 36, (first, 100, 10)) == 2110
    assert tiled.entering(2340, 36, (500, 100, 10)) == 500
    assert tiled.entering(20, 4, (500, 100, 10)) == 19  # one is dropped at least
    assert tiled.asked(None, 2340) == (first, 1170, 234)
    assert tiled.asked(7, 2340) == (first, 1170, 7)


def test_a_number_of_a_picture_that_has_fewer() -> None:
    counted = spec(resolve("800@0,40@2", NEXT), NEXT)
    assert [counted.entering(tokens, 3) for tokens in (576, 800, 2340)] == [576, 800, 800]
