"""Which tokens each method leaves, and what it costs."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from star_export.errors import SettingsError
from star_export.evaluation.methods import (
    BALANCED_STAR,
    FASTV,
    RULES,
    STAGE2,
    STAR,
    UNPRUNED,
    Level,
    Method,
    all_methods,
    check_rules,
    prune_layer,
)
from star_export.flops import Layout
from star_export.specs import ExportSpec, ModelSpec, resolve_images, resolve_star
from tests.shapes import NEXT, ONEVISION


def star(model: ModelSpec) -> ExportSpec:
    """STAR's own settings."""
    images = resolve_images(model, room=32000)
    return ExportSpec(
        model=model, schedule=resolve_star(model, images, keep=1, max_keep=500), images=images,
        max_text_tokens=128, max_new_tokens=32, append_tokens=1, dtype="float32",
    )  # fmt: skip


#: CLIP's 576 patches and 32 layers, as LLaVA-1.5-7B has them.
LLAVA = star(replace(NEXT, model_type="llava", tiling=None))
PATCHES = (576, 0)
ONEVISION_STAR = star(ONEVISION)
#: Visual tokens and newlines of 640x480 pixels, and of pictures that have one tile behind the first.
LARGE, SMALL = (2929, 40), (1485, 27)


def found(spec: ExportSpec, level: Level, pictures: Sequence[tuple[int, int]] = (PATCHES,)) -> list[Method]:
    return list(all_methods(check_rules((), spec), [level], spec, pictures))[1:]


def layout(rule: str, spec: ExportSpec, level: Level, picture: tuple[int, int] = PATCHES) -> Layout:
    left = Method(rule=rule, level=level).layout(spec, picture)
    assert left is not None
    return left


def average_tokens(method: Method, spec: ExportSpec, picture: tuple[int, int]) -> float:
    left = method.layout(spec, picture)
    assert left is not None
    layers = spec.model.text.num_layers
    return sum(left.tokens(layers)) / layers


@pytest.mark.parametrize("keep", [288, 115, 58, 29])
def test_at_a_budget_all_have_stars_average(keep: int) -> None:
    methods, wanted = found(LLAVA, Level(keep=keep)), (14 * 518 + 18 * keep) / 32
    assert {STAR, FASTV, "spread", "random"} <= {method.rule for method in methods}
    for method in methods:
        assert average_tokens(method, LLAVA, PATCHES) == pytest.approx(wanted, abs=0.6)


@pytest.mark.parametrize("average", [128, 64, 32, 16])
def test_at_an_average_all_have_it(average: int) -> None:
    for method in found(LLAVA, Level(average=average)):
        assert average_tokens(method, LLAVA, PATCHES) == pytest.approx(average, abs=0.6)


def test_where_each_rule_prunes() -> None:
    level = Level(average=64)
    assert layout(STAR, LLAVA, Level(keep=58)) == Layout(entering=518, stages=((14, 58),))
    assert layout("spread", LLAVA, level) == layout("divprune", LLAVA, level) == Layout(entering=64)
    assert layout("balanced-raters", LLAVA, level) == Layout(entering=128, stages=((14, 14),))
    assert layout(BALANCED_STAR, LLAVA, level) == layout("balanced-text", LLAVA, level)
    assert layout(FASTV, LLAVA, level) == Layout(entering=576, stages=((2, 30),))
    assert layout(STAGE2, LLAVA, Level(keep=288)) == Layout(entering=576, stages=((14, 243),))
    assert Method(rule=UNPRUNED).layout(LLAVA, PATCHES) == Layout(entering=576)
    assert prune_layer("spread", LLAVA) is None


def test_a_method_that_cannot_have_an_average_is_left_out() -> None:
    """STAR's first 14 layers alone have more than 128; so have stage 2's and, at 32, FastV's two."""
    rules = {method.rule for method in found(LLAVA, Level(average=128))}
    assert set(RULES) - rules == {STAR, STAGE2}
    assert {method.rule for method in found(LLAVA, Level(average=32))} == set(RULES) - {STAR, STAGE2, FASTV}
    # Twice STAR's average is more than a picture has.
    assert not any(method.rule.startswith("balanced") for method in found(LLAVA, Level(keep=288)))


def test_pictures_of_different_sizes() -> None:
    """Stage 1 keeps a share of each picture's patches and all newlines; an average is the same for all."""
    spec = ONEVISION_STAR
    entering = [layout(STAR, spec, Level(keep=320), size).entering for size in (LARGE, SMALL)]
    assert entering == [2600 + 40, 1312 + 27]
    fair = Method(rule=FASTV, level=Level(keep=320))
    for size in (LARGE, SMALL):
        wanted = average_tokens(Method(rule=STAR, level=Level(keep=320)), spec, size)
        assert average_tokens(fair, spec, size) == pytest.approx(wanted, abs=0.5)
        assert layout("spread", spec, Level(average=320), size).entering == 320
    assert layout("spread", spec, Level(average=2000), SMALL).entering == 1485


def test_arithmetic_counts_the_rows_that_score() -> None:
    sizes, level = {"text_tokens": 40, "query_tokens": 20}, Level(average=64)
    flops = {
        rule: Method(rule=rule, level=level).flops(LLAVA, PATCHES, **sizes).exact
        for rule in ("balanced-text", "balanced-last", "balanced-drift", "spread")
    }
    assert flops["balanced-text"] > flops["balanced-last"] > flops["balanced-drift"]
    row = 2 * (128 + 40) * LLAVA.model.text.num_heads * LLAVA.model.text.head_dim
    assert flops["balanced-text"] - flops["balanced-drift"] == 20 * row


def test_methods_are_chosen_by_name() -> None:
    assert check_rules(("spread", "star"), LLAVA) == ("star", "spread")
    with pytest.raises(SettingsError, match=r"did you mean balanced-text\? methods are star, stage-2, fastv"):
        check_rules(("balanced-txt",), LLAVA)


def test_a_score_that_a_tower_lacks_is_refused_or_left_out() -> None:
    with pytest.raises(SettingsError, match="needs a class token"):
        check_rules(("cls",), ONEVISION_STAR)
    assert set(RULES) - set(check_rules((), ONEVISION_STAR)) == {"cls"}
