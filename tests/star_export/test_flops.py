"""Arithmetic of a prefill against numbers worked out by hand."""

import pytest

from star_export.flops import Layout, layout_flops, prefill_flops
from star_export.specs import ExportSpec, ImageLimits, ModelSpec, Schedule, Stage, TextSpec, VisionSpec


def spec(
    *, patches_per_side: int, hidden: int, intermediate: int, heads: int, kv_heads: int, layers: int,
    vocab: int, schedule: Schedule,
) -> ExportSpec:  # fmt: skip
    vision = VisionSpec(
        model_type="clip_vision_model", image_size=14 * patches_per_side, patch_size=14, hidden_size=8,
        intermediate_size=16, num_layers=1, num_heads=2, hidden_act="quick_gelu", layer_norm_eps=1e-5,
        feature_layers=(1,), has_cls=True, feature_select="default",
    )  # fmt: skip
    text = TextSpec(
        hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=hidden // heads, vocab_size=vocab, hidden_act="silu",
        rms_norm_eps=1e-6, q_bias=False, k_bias=False, v_bias=False, o_bias=False,
        mlp_bias=False, tie_word_embeddings=False, max_position_embeddings=4096, rope_parameters={},
        sliding_window=None,
    )  # fmt: skip
    model = ModelSpec(
        model_type="llava", vision=vision, text=text, projector_act="gelu", projector_bias=True,
        image_token_id=4, eos_token_ids=(2,), tiling=None,
    )  # fmt: skip
    images = ImageLimits(max_images=1, max_tiles=1, max_image_tokens=patches_per_side**2)
    return ExportSpec(
        model=model, schedule=schedule, images=images, max_text_tokens=128, max_new_tokens=32,
        append_tokens=64, dtype="float32",
    )  # fmt: skip


def star(stage1: int, layer: int, keep: int) -> Schedule:
    return (
        Stage(after_layer=0, score="received", tokens=stage1, max_tokens=stage1),
        Stage(after_layer=layer, score="text", tokens=keep, max_tokens=keep),
    )


TINY = star(14, 1, 5)


def tiny(schedule: Schedule = TINY) -> ExportSpec:
    # 16 patches, width 8, MLP 10, two query heads of size 4 on one key head.
    return spec(
        patches_per_side=4,
        hidden=8,
        intermediate=10,
        heads=2,
        kv_heads=1,
        layers=3,
        vocab=20,
        schedule=schedule,
    )


def seven_b() -> ExportSpec:
    return spec(
        patches_per_side=24, hidden=4096, intermediate=11008, heads=32, kv_heads=32, layers=32,
        vocab=32064, schedule=star(518, 14, 288),
    )  # fmt: skip


def test_fastv_by_hand() -> None:
    # 4nd^2 + 2n^2d + 2ndm with d = 8, m = 10.
    early = 4 * 20 * 64 + 2 * 400 * 8 + 2 * 20 * 80  # n = 14 + 6
    late = 4 * 11 * 64 + 2 * 121 * 8 + 2 * 11 * 80  # n = 5 + 6
    full = 4 * 22 * 64 + 2 * 484 * 8 + 2 * 22 * 80  # n = 16 + 6
    assert (early, late, full) == (14720, 6512, 16896)
    assert prefill_flops(tiny(), text_tokens=6, query_tokens=4, keep=5).fastv == 14720 + 2 * 6512
    assert prefill_flops(tiny(), text_tokens=6, query_tokens=4, keep=None).fastv == 3 * 16896


def test_exact_without_pruning_by_hand() -> None:
    n = 22
    projections = 2 * n * 8 * (8 + 4 + 4 + 8)  # q, k, v, o
    attention = 2 * (2 * n * n * 4) * 2  # two products of two heads
    mlp = 3 * (2 * n * 8 * 10)
    head = 2 * 8 * 20
    assert (projections, attention, mlp, head) == (8448, 15488, 10560, 320)
    found = prefill_flops(tiny(), text_tokens=6, query_tokens=4, keep=None).exact
    assert found == 3 * (8448 + 15488 + 10560) + 320
    assert prefill_flops(tiny(()), text_tokens=6, query_tokens=4, keep=None).exact == found
    assert (
        prefill_flops(tiny(()), text_tokens=6, query_tokens=4, keep=5).exact == found
    )  # an unpruned bundle never prunes


def test_exact_with_pruning_is_the_layers_plus_the_scoring_map() -> None:
    early = 2 * 20 * 8 * 24 + 2 * (2 * 400 * 4) * 2 + 3 * (2 * 20 * 80)
    late = 2 * 11 * 8 * 24 + 2 * (2 * 121 * 4) * 2 + 3 * (2 * 11 * 80)
    scoring = prefill_flops(tiny(), text_tokens=6, query_tokens=4, keep=5).exact - (early + 2 * late + 320)
    assert (early, late) == (30080, 13376)
    assert scoring == 2 * 4 * 20 * 4 * 2  # 4 question rows, 20 keys, 2 heads of 4


def test_a_third_stage_by_hand() -> None:
    text = tiny().model.text
    two, three = (
        layout_flops(text, Layout(entering=14, stages=stages), text_tokens=6, query_tokens=4)
        for stages in (((1, 5),), ((1, 5), (2, 3)))
    )
    late, last = 13376, 2 * 9 * 8 * 24 + 2 * (2 * 81 * 4) * 2 + 3 * (2 * 9 * 80)  # n = 3 + 6
    assert three.exact - two.exact == last - late + 2 * 4 * 11 * 4 * 2  # 11 keys score the second stage
    assert Layout(entering=14, stages=((1, 5), (2, 3))).tokens(4) == [14, 5, 3, 3]


@pytest.mark.parametrize("keep", [1, 29, 58, 115, 288, 517])
def test_a_smaller_budget_takes_less(keep: int) -> None:
    small, large = (
        prefill_flops(seven_b(), text_tokens=40, query_tokens=30, keep=k) for k in (keep, keep + 1)
    )
    full = prefill_flops(seven_b(), text_tokens=40, query_tokens=30, keep=None)
    assert small.exact < large.exact < full.exact
    assert small.fastv < large.fastv < full.fastv


def test_llava_7b_at_58_tokens() -> None:
    # Per token pair of terms, in units of 2d^2 = 2d * 4096: n * (2 + 2.6875) + n^2 / 4096.
    def layer(n: int) -> float:
        return n * (2 + 11008 / 4096) + n * n / 4096

    ratio = (14 * layer(518 + 40) + 18 * layer(58 + 40)) / (32 * layer(576 + 40))
    pruned, full = (prefill_flops(seven_b(), text_tokens=40, query_tokens=30, keep=k) for k in (58, None))
    assert ratio == pytest.approx(0.4823, abs=1e-4)
    assert pruned.fastv / full.fastv == pytest.approx(ratio, rel=1e-12)
    # What the graph really does saves as much, within one point.
    assert pruned.exact / full.exact == pytest.approx(ratio, abs=0.01)
    # 2 x 6.5e9 weights x 616 tokens, logits of one token only, plus attention.
    assert full.exact == pytest.approx(2 * 6.476e9 * 616, rel=0.03)
