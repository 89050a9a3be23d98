"""Arithmetic of a prefill against numbers worked out by hand."""

import pytest

from star_export.flops import Layout, PrefillFlops, prefill_flops, pruned_layout, vision_flops
from star_export.specs import ExportSpec, ImageLimits, Schedule, Stage, TextSpec
from tests.shapes import ONEVISION


def text(
    *, hidden: int, intermediate: int, heads: int, kv_heads: int, layers: int, vocab: int
) -> TextSpec:  # fmt: skip
    return TextSpec(
        hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=hidden // heads, vocab_size=vocab, hidden_act="silu",
        rms_norm_eps=1e-6, q_bias=False, k_bias=False, v_bias=False, o_bias=False,
        mlp_bias=False, tie_word_embeddings=False, max_position_embeddings=4096, rope_parameters={},
        sliding_window=None,
    )  # fmt: skip


#: Width 8, MLP 10, two query heads of size 4 on one key head.
TINY = text(hidden=8, intermediate=10, heads=2, kv_heads=1, layers=3, vocab=20)
TINY_FULL, TINY_STAR = Layout(entering=16), Layout(entering=14, stages=((1, 5),))
SEVEN_B = text(hidden=4096, intermediate=11008, heads=32, kv_heads=32, layers=32, vocab=32064)


def tiny(layout: Layout) -> PrefillFlops:
    return prefill_flops(TINY, layout, text_tokens=6, query_tokens=4)


def seven_b(keep: int | None) -> PrefillFlops:
    """LLaVA-1.5-7B with STAR, or unpruned."""
    layout = Layout(entering=576) if keep is None else Layout(entering=518, stages=((14, keep),))
    return prefill_flops(SEVEN_B, layout, text_tokens=40, query_tokens=30)


def test_fastv_by_hand() -> None:
    # 4nd^2 + 2n^2d + 2ndm with d = 8, m = 10.
    early = 4 * 20 * 64 + 2 * 400 * 8 + 2 * 20 * 80  # n = 14 + 6
    late = 4 * 11 * 64 + 2 * 121 * 8 + 2 * 11 * 80  # n = 5 + 6
    full = 4 * 22 * 64 + 2 * 484 * 8 + 2 * 22 * 80  # n = 16 + 6
    assert (early, late, full) == (14720, 6512, 16896)
    assert tiny(TINY_STAR).fastv == 14720 + 2 * 6512
    assert tiny(TINY_FULL).fastv == 3 * 16896


def test_exact_without_pruning_by_hand() -> None:
    n = 22
    projections = 2 * n * 8 * (8 + 4 + 4 + 8)  # q, k, v, o
    attention = 2 * (2 * n * n * 4) * 2  # two products of two heads
    mlp = 3 * (2 * n * 8 * 10)
    head = 2 * 8 * 20
    assert (projections, attention, mlp, head) == (8448, 15488, 10560, 320)
    assert tiny(TINY_FULL).exact == 3 * (8448 + 15488 + 10560) + 320


def test_exact_with_pruning_is_the_layers_plus_the_scoring_map() -> None:
    early = 2 * 20 * 8 * 24 + 2 * (2 * 400 * 4) * 2 + 3 * (2 * 20 * 80)
    late = 2 * 11 * 8 * 24 + 2 * (2 * 121 * 4) * 2 + 3 * (2 * 11 * 80)
    scoring = tiny(TINY_STAR).exact - (early + 2 * late + 320)
    assert (early, late) == (30080, 13376)
    assert scoring == 2 * 4 * 20 * 4 * 2  # 4 question rows, 20 keys, 2 heads of 4


def test_a_third_stage_by_hand() -> None:
    two, three = (tiny(Layout(entering=14, stages=stages)) for stages in (((1, 5),), ((1, 5), (2, 3))))
    late, last = 13376, 2 * 9 * 8 * 24 + 2 * (2 * 81 * 4) * 2 + 3 * (2 * 9 * 80)  # n = 3 + 6
    assert three.exact - two.exact == last - late + 2 * 4 * 11 * 4 * 2  # 11 keys score the second stage
    assert Layout(entering=14, stages=((1, 5), (2, 3))).tokens(4) == [14, 5, 3, 3]


@pytest.mark.parametrize("keep", [1, 29, 58, 115, 288, 517])
def test_a_smaller_budget_takes_less(keep: int) -> None:
    small, large, full = seven_b(keep), seven_b(keep + 1), seven_b(None)
    assert small.exact < large.exact < full.exact
    assert small.fastv < large.fastv < full.fastv


def test_llava_7b_at_58_tokens() -> None:
    # Per token pair of terms, in units of 2d^2 = 2d * 4096: n * (2 + 2.6875) + n^2 / 4096.
    def layer(n: int) -> float:
        return n * (2 + 11008 / 4096) + n * n / 4096

    ratio = (14 * layer(518 + 40) + 18 * layer(58 + 40)) / (32 * layer(576 + 40))
    pruned, full = seven_b(58), seven_b(None)
    assert ratio == pytest.approx(0.4823, abs=1e-4)
    assert pruned.fastv / full.fastv == pytest.approx(ratio, rel=1e-12)
    # What the graph really does saves as much, within one point.
    assert pruned.exact / full.exact == pytest.approx(ratio, abs=0.01)
    # 2 x 6.5e9 weights x 616 tokens, logits of one token only, plus attention.
    assert full.exact == pytest.approx(2 * 6.476e9 * 616, rel=0.03)


def test_a_bundles_layout() -> None:
    """A request that has fewer visual tokens than a stage may keep passes it whole."""

    def stage(after_layer: int, score: str, tokens: int) -> Stage:
        return Stage(after_layer=after_layer, score=score, tokens=tokens, max_tokens=tokens)

    schedule: Schedule = (stage(4, "text", 200), stage(8, "text", 64))
    limits = ImageLimits(max_images=1, max_tiles=37, max_image_tokens=7290)
    spec = ExportSpec(
        model=ONEVISION, schedule=schedule, images=limits, max_text_tokens=128, max_new_tokens=32,
        append_tokens=1, dtype="float32",
    )  # fmt: skip
    assert pruned_layout(spec, entering=2640, keep=50).stages == ((4, 200), (8, 50))
    assert pruned_layout(spec, entering=150, keep=64).stages == ((4, 150), (8, 64))
    assert pruned_layout(spec, entering=50, keep=64).stages == ((4, 50), (8, 50))


def test_a_tower_by_hand() -> None:
    """SigLIP of OneVision: 729 patches of width 1152, an MLP of 4304, 26 layers, no CLS."""
    projections = 4 * 2 * 729 * 1152 * 1152
    mlp = 2 * 2 * 729 * 1152 * 4304
    attention = 2 * 2 * 729 * 729 * 1152
    assert vision_flops(ONEVISION.vision, 1) == 26 * (projections + mlp + attention)
    assert vision_flops(ONEVISION.vision, 5) == 5 * vision_flops(ONEVISION.vision, 1)


def test_what_pruning_can_save_of_a_large_picture() -> None:
    """The table of docs/performance.md: 2,929 visual tokens of OneVision-0.5B, down to 320."""

    def ratio(entering: int, layer: int) -> float:
        layout = Layout(entering=entering, stages=((layer, 320),))
        full, pruned = (
            prefill_flops(ONEVISION.text, found, text_tokens=26, query_tokens=11).exact
            for found in (Layout(entering=2929), layout)
        )
        return full / pruned

    found = [ratio(2640, 11), ratio(2640, 4), ratio(1485, 11), ratio(1485, 8)]
    assert found == pytest.approx([2.21, 4.51, 3.95, 4.79], abs=0.005)
