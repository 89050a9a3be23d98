"""Schedules that tune tries of its own accord, and those that it is told to."""

from dataclasses import replace

import pytest

from star_export.errors import SettingsError
from star_export.evaluation.trials import built_trials, own_trials
from star_export.flops import Layout
from star_export.specs import ExportSpec, ModelSpec, resolve_images, resolve_star
from star_export.specs.schedules import resolve_schedule
from tests.shapes import NEXT, ONEVISION


def star(model: ModelSpec) -> ExportSpec:
    images = resolve_images(model, room=32000)
    return ExportSpec(
        model=model, schedule=resolve_star(model, images, keep=64, max_keep=288), images=images,
        max_text_tokens=128, max_new_tokens=32, append_tokens=1, dtype="float32",
    )  # fmt: skip


LLAVA = star(replace(NEXT, model_type="llava", tiling=None))


def schedule(text: str) -> ExportSpec:
    return replace(LLAVA, schedule=resolve_schedule(LLAVA.model, LLAVA.images, text))


def test_a_bundle_is_tried_from_its_largest_budgets_down() -> None:
    trials = own_trials(LLAVA, ())
    assert [trial.keep for trial in trials[:4]] == [(518, 259), (518, 129), (518, 64), (259, 129)]
    assert trials[-1].keep == (32, 4)
    assert len({trial.name for trial in trials}) == len(trials) == 15
    assert (trials[0].schedule, trials[0].name) == ("518@0,259@14", "518@0,259@14 received text")
    assert trials[0].layout((576, 0)) == Layout(entering=518, stages=((14, 259),))
    assert all(trial.own for trial in trials)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [("64@0", (64,), (4,)), ("64@14", (64,), (4,)), ("128@0,40@8,10@16", (128, 40, 10), (8, 4, 4))],
)
def test_every_kind_of_schedule_has_budgets(text: str, first: tuple[int, ...], last: tuple[int, ...]) -> None:
    trials = own_trials(schedule(text), ())
    assert trials[0].keep == first
    assert trials[-1].keep <= last
    for trial in trials:
        assert all(after < before for before, after in zip(trial.keep, trial.keep[1:], strict=False))


def test_budgets_that_are_asked_for_are_checked() -> None:
    assert [t.keep for t in own_trials(LLAVA, (29, (128, 14), 29))] == [(518, 29), (128, 14)]
    for keep, message in ((300, "over this bundle's maximum of 288"), ((1, 2, 3), "has 3 budgets")):
        with pytest.raises(SettingsError, match=message):
            own_trials(LLAVA, (keep,))
    with pytest.raises(SettingsError, match="has no budgets to try; give layers, stage1 or stage2"):
        own_trials(replace(LLAVA, schedule=()), ())


def test_a_share_of_each_picture_stays_one() -> None:
    spec = star(ONEVISION)
    trials = own_trials(spec, ())
    assert {trial.keep[0] for trial in trials} == {spec.image_tokens}
    assert trials[0].schedule == f"90%@0,{trials[0].keep[1]}@{spec.decoder_stages[0].after_layer}"
    assert trials[0].layout((2929, 40)).entering == 2640


def test_structures_are_every_combination() -> None:
    trials = built_trials(LLAVA, [(), (14,), (8, 16)], ["spread", "peaks"], ["text"], ())
    kinds = {(t.spec.schedule[0].score, tuple(s.after_layer for s in t.spec.schedule)) for t in trials}
    assert kinds == {
        (score, (0, *inside)) for score in ("spread", "peaks") for inside in ((), (14,), (8, 16))
    }
    assert max(trial.keep[0] for trial in trials) == 288
    assert not any(trial.own for trial in trials)
    (alone,) = built_trials(LLAVA, (), ["spread"], (), ((128, 14),))
    assert alone.name == "128@0,14@14 spread text"


def test_before_the_decoder_alone_the_score_inside_makes_no_difference() -> None:
    trials = built_trials(LLAVA, [()], ["spread"], ["text", "last"], (64, 32))
    assert [trial.name for trial in trials] == ["64@0 spread", "32@0 spread"]


@pytest.mark.parametrize(
    ("layers", "stage1", "stage2", "keep", "message"),
    [
        ((32,), "spread", "text", (64, 8), "8@32 is outside; this decoder's 32 layers"),
        ((14,), "spred", "text", (64, 8), "did you mean spread"),
        ((14,), "spread", "txt", (64, 8), "did you mean text"),
        ((14,), "spread", "text", (64, 64), "stage 2"),
        ((14,), "spread", "text", 64, "has 1 budgets; give 2, one before the decoder and one for each of"),
        ((16, 8), "spread", "text", (64, 32, 8), "give stages in order of layers"),
    ],
)
def test_structures_that_cannot_be_are_refused(
    layers: tuple[int, ...], stage1: str, stage2: str, keep: int | tuple[int, ...], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        built_trials(LLAVA, [layers], [stage1], [stage2], (keep,))
