"""Each score against its formula, written out in loops."""

import pytest
import torch
from torch import Tensor

from star_export.contract import ALWAYS_KEPT
from star_export.graphs.decoder import always_keeping_text
from star_export.graphs.scores import DECODER_SCORES, VISION_SCORES, LayerView, received, text
from star_export.specs import RECEIVED, TEXT

HEADS, KV_HEADS, TOKENS, WIDTH = 4, 2, 9, 8
VISUAL, QUERY_ROWS = [2, 3, 4, 5], [6, 7, 8]


def test_received_is_the_mean_over_heads_and_patches() -> None:
    attention = torch.randn(3, HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = received(attention)
    assert found.shape == (3, TOKENS)
    for tile in range(3):
        for patch in range(TOKENS):
            rows = [attention[tile, head, row, patch] for head in range(HEADS) for row in range(TOKENS)]
            assert found[tile, patch] == pytest.approx(float(sum(rows)) / len(rows), rel=1e-5)


def view(kv_heads: int) -> LayerView:
    random = torch.Generator().manual_seed(1)
    query = torch.randn(1, HEADS, TOKENS, WIDTH, generator=random)
    key = torch.randn(1, kv_heads, TOKENS, WIDTH, generator=random)
    return LayerView(query, key, torch.tensor([QUERY_ROWS]), torch.tensor([VISUAL]))


def causal_probability(found: LayerView, head: int, row: int, column: int) -> float:
    key = found.key[0, head * found.key.shape[1] // HEADS]
    weights: Tensor = (found.query[0, head, row] @ key[: row + 1].T / WIDTH**0.5).softmax(-1)
    return float(weights[column]) if column <= row else 0.0


@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS, 1])
def test_text_is_the_causal_attention_from_the_question(kv_heads: int) -> None:
    given = view(kv_heads)
    found = text(given)
    assert found.shape == (1, TOKENS)
    for column in range(TOKENS):
        asked = [causal_probability(given, head, row, column) for head in range(HEADS) for row in QUERY_ROWS]
        assert found[0, column] == pytest.approx(sum(asked) / len(asked), rel=1e-5, abs=1e-9)


def test_text_always_stays() -> None:
    scores = torch.arange(TOKENS, dtype=torch.float32)[None]
    found = always_keeping_text(scores, torch.tensor([VISUAL]))[0]
    for place in range(TOKENS):
        assert found[place] == (scores[0, place] if place in VISUAL else ALWAYS_KEPT)


def test_the_tables_hold_the_scores_of_star() -> None:
    assert VISION_SCORES[RECEIVED] is received
    assert DECODER_SCORES[TEXT] is text
