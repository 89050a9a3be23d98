"""What each kept token stands for, against loops, and against the reference's own words."""

import math

import pytest
import torch
from torch import Tensor

from star_export.graphs.proportional import at_places, causal, counted, regrouped, stand_for
from star_export.validation.reference_scores import stands_for

TOKENS, WIDTH, KEPT = 9, 6, [1, 4, 7]


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def in_loops(rows: Tensor, kept: list[int], counts: list[float]) -> list[float]:
    """Of each kept row, the counts of the rows whose best cosine it has, in parts where several have it."""
    stands = [0.0] * len(kept)
    for row, count in zip(rows.tolist(), counts, strict=True):
        cosines = [
            sum(a * b for a, b in zip(row, rows[k].tolist(), strict=True)) / math.hypot(*rows[k].tolist())
            for k in kept
        ]
        nearest = [n for n, cosine in enumerate(cosines) if max(cosines) - cosine < 1e-5]
        for n in nearest:
            stands[n] += count / len(nearest)
    return stands


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [[1.0] * TOKENS, [0.5 + n for n in range(TOKENS)]], ids=["ones", "others"])
def test_stand_for(seed: int, counts: list[float]) -> None:
    x = tokens(seed)
    x[0, 3], x[0, 8] = x[0, 1], 3 * x[0, 1]  # like a kept one
    found = stand_for(x, x[:, KEPT], torch.tensor([counts]))
    expected = torch.tensor(in_loops(x[0], KEPT, counts))
    torch.testing.assert_close(found[0], expected)
    assert found.sum().item() == pytest.approx(sum(counts))
    stays = torch.zeros(TOKENS, dtype=torch.bool)
    stays[KEPT] = True
    torch.testing.assert_close(stands_for(x[0], stays, torch.tensor(counts)), expected)


def test_tokens_that_are_the_same_share() -> None:
    """As newlines: none of them stands for nothing, whose log would be no number."""
    x = tokens()
    x[0, 4] = x[0, 7] = x[0, 1]
    found = stand_for(x, x[:, KEPT])
    torch.testing.assert_close(found, torch.full((1, 3), TOKENS / 3))


def test_the_log_is_the_last_channel() -> None:
    x = tokens().half()
    found = counted(x, x[:, KEPT])
    assert found.dtype == torch.float16
    assert torch.equal(found[..., :-1], x[:, KEPT])
    torch.testing.assert_close(found[..., -1].float().exp(), stand_for(x, x[:, KEPT]), rtol=2e-3, atol=0)


def test_who_stays_takes_over_what_another_stood_for() -> None:
    x, places = tokens(), torch.tensor([[2, 3, 5, 6]])
    bias = at_places(torch.tensor([[3.0, 1.0, 7.0, 2.0]]).log(), places, TOKENS)
    assert bias.exp()[0].tolist() == pytest.approx([1, 1, 3, 1, 1, 7, 2, 1, 1])
    left = torch.tensor([0, 1, 3, 4, 6, 7, 8])  # the visual tokens 3 and 6
    kept = torch.tensor([[2, 4]])
    after = regrouped(bias, x, places, x[:, left], kept).exp()
    expected = in_loops(x[0, places[0]], [1, 3], [3.0, 1.0, 7.0, 2.0])
    assert after[0, kept[0]].tolist() == pytest.approx(expected)
    assert after[0, [0, 1, 3, 5, 6]].tolist() == [1.0] * 5


def test_the_mask_is_causal_and_counts() -> None:
    """The probabilities are those of a sequence in which each token stands as often as it counts."""
    logits = torch.tensor([0.3, -0.2, 0.9])
    mask = causal(torch.tensor([[0.0, math.log(3), math.log(2)]]), torch.float32)
    assert mask.shape == (1, 1, 3, 3)
    found = (logits + mask[0, 0]).softmax(-1)
    repeated = [logits[:1], logits[[0, 1, 1, 1]], logits[[0, 1, 1, 1, 2, 2]]]
    for row, many in enumerate(each.softmax(-1) for each in repeated):
        sums = [many[0], many[1:4].sum(), many[4:].sum()][: row + 1]
        torch.testing.assert_close(found[row, : row + 1], torch.stack(sums))
        assert not found[row, row + 1 :].any()
