"""Each score against its formula, written out in loops, and against its twin of the reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from star_export.contract import ALWAYS_KEPT
from star_export.graphs import scores as graphs
from star_export.graphs.decoder import always_keeping_text
from star_export.graphs.scores import (
    DECODER_SCORES,
    OF_FEATURES,
    OF_MAPS,
    VISION_SCORES,
    LayerView,
    PictureView,
)
from star_export.specs import RECEIVED, STAGE1_SCORES, STAGE2_SCORES, TEXT
from star_export.validation.reference_scores import LAYER_SCORES, PATCH_SCORES, LayerSeen, TilesSeen

HEADS, KV_HEADS, TOKENS, WIDTH = 4, 2, 11, 8
VISUAL, QUERY_ROWS = [2, 3, 4, 5, 6, 7], [8, 9, 10]
TILES, PATCHES = 2, 9


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(first: int = 1, seed: int = 0) -> PictureView:
    """Tiles with ``first`` tokens before their patches."""
    side = first + PATCHES
    maps = (2 * numbers(TILES, HEADS, side, side, seed=seed)).softmax(-1)
    return PictureView(maps, first, numbers(TILES, PATCHES, WIDTH, seed=seed + 1))


def layer(kv_heads: int = KV_HEADS, seed: int = 1) -> LayerView:
    return LayerView(
        query=2 * numbers(1, HEADS, TOKENS, WIDTH, seed=seed),
        key=numbers(1, kv_heads, TOKENS, WIDTH, seed=seed + 1),
        before=numbers(1, TOKENS, WIDTH, seed=seed + 2),
        after=numbers(1, TOKENS, WIDTH, seed=seed + 3),
        query_rows=torch.tensor([QUERY_ROWS]),
        visual=torch.tensor([VISUAL]),
    )


def causal_map(view: LayerView) -> list[list[list[float]]]:
    """Of each head and row of the question, what it pays to each visual token."""
    return [
        [[probability(view, head, row, column) for column in VISUAL] for row in QUERY_ROWS]
        for head in range(HEADS)
    ]


def probability(view: LayerView, head: int, row: int, column: int) -> float:
    key = view.key[0, head * view.key.shape[1] // HEADS]
    weights: Tensor = (view.query[0, head, row] @ key[: row + 1].T / WIDTH**0.5).softmax(-1)
    return float(weights[column]) if column <= row else 0.0


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def cosine_distance(a: Tensor, b: Tensor) -> float:
    return 1 - float(a @ b) / float(a.norm() * b.norm())


def least_distance(rows: Tensor, merit: list[float], row: int) -> float:
    """To all that have more merit, or as much and come before."""
    better = [j for j in range(len(merit)) if (-merit[j], j) < (-merit[row], row)]
    return min([cosine_distance(rows[row], rows[j]) for j in better], default=2.0)


@pytest.mark.parametrize("first", [0, 1])
def test_received_is_the_mean_over_heads_and_patches(first: int) -> None:
    view = picture(first)
    found = graphs.received(view)
    assert found.shape == (TILES, PATCHES)
    for tile in range(TILES):
        for patch in range(PATCHES):
            rows = range(first, first + PATCHES)
            paid = [float(view.maps[tile, head, row, first + patch]) for head in range(HEADS) for row in rows]
            assert found[tile, patch] == pytest.approx(mean(paid), rel=1e-5)


def test_cls_is_the_mean_over_heads_of_its_row() -> None:
    view = picture()
    found = graphs.cls(view)
    for tile in range(TILES):
        for patch in range(PATCHES):
            paid = [float(view.maps[tile, head, 0, 1 + patch]) for head in range(HEADS)]
            assert found[tile, patch] == pytest.approx(mean(paid), rel=1e-5)


def test_spread_is_the_least_distance_to_larger_norms() -> None:
    view = picture()
    found = graphs.spread(view)
    for tile, rows in enumerate(view.features):
        norms = [float(row.norm()) for row in rows]
        for patch in range(PATCHES):
            assert found[tile, patch] == pytest.approx(least_distance(rows, norms, patch), abs=1e-5)
        assert found[tile].argmax() == rows.norm(dim=-1).argmax()


def test_peaks_weighs_the_distance_by_attention() -> None:
    view = picture()
    found, paid = graphs.peaks(view), graphs.received(view)
    for tile, rows in enumerate(view.features):
        for patch in range(PATCHES):
            expected = float(paid[tile, patch]) * least_distance(rows, paid[tile].tolist(), patch)
            assert found[tile, patch] == pytest.approx(expected, rel=1e-4)


def test_of_equals_the_first_is_better() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[None]
    assert graphs.unlike_better(rows, torch.ones(1, 3)).tolist() == [[2.0, 0.0, 1.0]]


@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS, 1])
def test_text_is_the_causal_attention_from_the_question(kv_heads: int) -> None:
    view = layer(kv_heads)
    found, paid = graphs.text(view), causal_map(view)
    assert found.shape == (1, len(VISUAL))
    for place in range(len(VISUAL)):
        asked = [row[place] for head in paid for row in head]
        assert found[0, place] == pytest.approx(mean(asked), rel=1e-5)


def test_rows_do_not_see_what_comes_after_them() -> None:
    """Of a conversation with a picture behind the first question; the map is causal."""
    view = layer()
    early = LayerView(view.query, view.key, view.before, view.after, torch.tensor([[4]]), view.visual)
    assert (graphs.text(early)[0] > 0).tolist() == [place <= 4 for place in VISUAL]


def test_last_is_the_row_of_the_last_token() -> None:
    view = layer()
    expected = [mean([head[-1][place] for head in causal_map(view)]) for place in range(len(VISUAL))]
    assert graphs.last(view)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_raters_are_rows_that_look_at_the_picture_as_much_as_the_mean() -> None:
    view = layer()
    paid = causal_map(view)
    rows = [[mean([head[row][place] for head in paid]) for place in range(len(VISUAL))] for row in range(3)]
    best = [row for row in rows if sum(row) >= mean([sum(row) for row in rows])]
    assert 0 < len(best) < 3
    expected = [mean([row[place] for row in best]) for place in range(len(VISUAL))]
    assert graphs.raters(view)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_visual_heads_look_at_the_picture_as_much_as_the_mean() -> None:
    view = layer()
    heads = [
        [mean([row[place] for row in head]) for place in range(len(VISUAL))] for head in causal_map(view)
    ]
    best = [head for head in heads if sum(head) >= mean([sum(head) for head in heads])]
    assert 0 < len(best) < HEADS
    expected = [mean([head[place] for head in best]) for place in range(len(VISUAL))]
    assert graphs.visual_heads(view)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_text_peaks_weighs_the_distance_by_the_question() -> None:
    view = layer()
    paid, rows = graphs.text(view)[0].tolist(), view.after[0, VISUAL]
    expected = [paid[place] * least_distance(rows, paid, place) for place in range(len(VISUAL))]
    assert graphs.text_peaks(view)[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_drift_is_the_length_of_the_step() -> None:
    view = layer()
    expected = [float((view.after[0, place] - view.before[0, place]).norm()) for place in VISUAL]
    assert graphs.drift(view)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_short_keys_score_high() -> None:
    view = layer()
    norms = [mean([float(view.key[0, head, place].norm()) for head in range(KV_HEADS)]) for place in VISUAL]
    assert graphs.key_norm(view)[0].tolist() == pytest.approx([1 / norm for norm in norms], rel=1e-5)


def test_equal_heads_and_rows_are_all_among_the_best() -> None:
    """Where rounding lifts their mean above each of them, too."""
    for weight in torch.rand(200, generator=torch.Generator().manual_seed(0)):
        rows = torch.full((7, 2), float(weight))
        assert graphs._mean_of_best(rows, rows.sum(dim=-1))[0].tolist() == pytest.approx([float(weight)] * 2)


@pytest.mark.parametrize("score", STAGE1_SCORES)
@pytest.mark.parametrize("seed", range(3))
def test_the_reference_scores_patches_alike(score: str, seed: int) -> None:
    view = picture(seed=10 * seed)
    seen = TilesSeen(view.maps, view.first_patch, view.features)
    torch.testing.assert_close(VISION_SCORES[score](view), PATCH_SCORES[score](seen), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("score", STAGE2_SCORES)
@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS])
@pytest.mark.parametrize("seed", range(3))
def test_the_reference_scores_tokens_alike(score: str, kv_heads: int, seed: int) -> None:
    view = layer(kv_heads, seed=10 * seed)
    seen = LayerSeen(
        torch.tensor(causal_map(view)), view.before[0, VISUAL], view.after[0, VISUAL], view.key[0, :, VISUAL]
    )
    torch.testing.assert_close(
        DECODER_SCORES[score](view)[0], LAYER_SCORES[score](seen), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("score", STAGE2_SCORES)
def test_scores_do_not_look_at_other_tokens(score: str) -> None:
    """Text rows of the hidden states, and keys of text, rank no visual token by themselves."""
    view = layer()
    text = [place for place in range(TOKENS) if place not in VISUAL]
    other = LayerView(
        view.query, view.key, view.before.index_fill(1, torch.tensor(text), 7.0),
        view.after.index_fill(1, torch.tensor(text), 7.0), view.query_rows, view.visual,
    )  # fmt: skip
    assert torch.equal(DECODER_SCORES[score](view), DECODER_SCORES[score](other))


def test_maps_and_features_are_made_for_the_scores_that_look_at_them() -> None:
    view = picture()
    bare: dict[str, Callable[[], PictureView]] = {
        "maps": lambda: PictureView(None, view.first_patch, view.features),
        "features": lambda: PictureView(view.maps, view.first_patch, torch.zeros_like(view.features)),
    }
    for score, function in VISION_SCORES.items():
        assert (score in OF_FEATURES) == (not torch.equal(function(view), function(bare["features"]())))
        if score not in OF_MAPS:
            assert torch.equal(function(view), function(bare["maps"]()))
    assert set(OF_MAPS) | set(OF_FEATURES) == set(VISION_SCORES)


def test_text_always_stays() -> None:
    scores = torch.arange(1.0, 1.0 + len(VISUAL))[None]
    found = always_keeping_text(scores, torch.tensor([VISUAL]), TOKENS)[0]
    for place in range(TOKENS):
        assert found[place] == (scores[0, VISUAL.index(place)] if place in VISUAL else ALWAYS_KEPT)


def test_the_tables_hold_the_scores_that_have_names() -> None:
    assert list(VISION_SCORES) == list(STAGE1_SCORES) == list(PATCH_SCORES)
    assert list(DECODER_SCORES) == list(STAGE2_SCORES) == list(LAYER_SCORES)
    assert (VISION_SCORES[RECEIVED], DECODER_SCORES[TEXT]) == (graphs.received, graphs.text)
