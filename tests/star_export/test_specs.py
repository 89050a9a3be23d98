"""STAR's budgets, the cache capacities, and the errors that keep both possible."""

import json
from dataclasses import replace
from typing import Any

import pytest

from star_export.errors import SettingsError
from star_export.specs import (
    RECEIVED,
    TEXT,
    ExportSpec,
    ImageLimits,
    LayerGroup,
    ModelSpec,
    Schedule,
    Stage,
    TextSpec,
    VisionSpec,
    check_capacities,
    check_fp32_layers,
    check_keep,
    check_schedule,
    default_prune_layer,
    resolve_star,
    stage1_count,
)
from star_export.typed import convert


def llava(*, side: int = 24, layers: int = 32, positions: int = 4096) -> ModelSpec:
    """LLaVA-1.5-7B, but for the grid of ``side x side`` patches and the decoder's depth."""
    vision = VisionSpec(
        model_type="clip_vision_model", image_size=14 * side, patch_size=14, hidden_size=1024,
        intermediate_size=4096, num_layers=23, num_heads=16, hidden_act="quick_gelu", layer_norm_eps=1e-5,
        feature_layers=(23,), has_cls=True, feature_select="default",
    )  # fmt: skip
    text = TextSpec(
        hidden_size=4096, intermediate_size=11008, num_layers=layers, num_heads=32, num_kv_heads=8,
        head_dim=128, vocab_size=32064, hidden_act="silu", rms_norm_eps=1e-5, mlp_bias=False,
        q_bias=False, k_bias=False, v_bias=False, o_bias=False, tie_word_embeddings=False,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, sliding_window=None,
    )  # fmt: skip
    return ModelSpec(
        model_type="llava",
        vision=vision,
        text=text,
        projector_act="gelu",
        projector_bias=True,
        image_token_id=32000,
        eos_token_ids=(2, 7),
        tiling=None,
    )


def export_spec(model: ModelSpec, schedule: Schedule, *, text: int = 100, new: int = 50) -> ExportSpec:
    return ExportSpec(
        model=model, schedule=schedule, images=one(model), max_text_tokens=text, max_new_tokens=new,
        append_tokens=64, dtype="float16",
    )  # fmt: skip


def one(model: ModelSpec) -> ImageLimits:
    """One picture of one tile."""
    return ImageLimits(max_images=1, max_tiles=1, max_image_tokens=model.vision.num_patches)


def star(model: ModelSpec, **options: Any) -> Schedule:
    return resolve_star(model, one(model), **options)


def stage(after_layer: int, tokens: int, max_tokens: int | None = None, share: float | None = None) -> Stage:
    score, most = TEXT if after_layer else RECEIVED, max_tokens or tokens
    return Stage(after_layer=after_layer, score=score, tokens=tokens, max_tokens=most, share=share)


#: A schedule of three stages, so of three layer groups.
THREE = (stage(0, 518), stage(8, 200, 288), stage(20, 64, 100))


@pytest.mark.parametrize(
    ("patches", "drop_ratio", "kept"),
    [
        (576, 0.1, 518),  # 518.4
        (256, 0.1, 230),  # 230.4
        (576, 0.0, 576),
        (576, 0.5, 288),
        (5, 0.5, 3),  # 2.5: halves go up, where Python's round() would give 2
        (1, 0.1, 1),
    ],
)
def test_stage1_count(patches: int, drop_ratio: float, kept: int) -> None:
    assert stage1_count(patches=patches, drop_ratio=drop_ratio) == kept


@pytest.mark.parametrize("drop_ratio", [-0.1, 1.0, 2.0, float("nan")])
def test_stage1_count_refuses(drop_ratio: float) -> None:
    with pytest.raises(SettingsError, match="drop_ratio must be at least 0 and below 1"):
        stage1_count(patches=576, drop_ratio=drop_ratio)


@pytest.mark.parametrize(
    ("layers", "prune_layer"), [(32, 14), (40, 18), (36, 16), (6, 3), (4, 2), (2, 1), (1, 1)]
)
def test_default_prune_layer(layers: int, prune_layer: int) -> None:
    assert default_prune_layer(layers) == prune_layer


def test_resolve_star_defaults() -> None:
    assert star(llava()) == (
        Stage(after_layer=0, score="received", tokens=518, max_tokens=518),
        Stage(after_layer=14, score="text", tokens=64, max_tokens=64),
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep": 115}, (stage(0, 518), stage(14, 115))),
        ({"keep_ratio": 0.2}, (stage(0, 518), stage(14, 115, share=0.2))),  # 115.2
        ({"keep_ratio": 0.05}, (stage(0, 518), stage(14, 29, share=0.05))),  # 28.8
        ({"max_keep": 288}, (stage(0, 518), stage(14, 64, 288))),
        ({"keep": 1}, (stage(0, 518), stage(14, 1))),
        ({"keep": 517}, (stage(0, 518), stage(14, 517))),
        ({"keep": 517, "max_keep": 517}, (stage(0, 518), stage(14, 517))),
        ({"drop_ratio": 0.0, "keep": 575}, (stage(0, 576), stage(14, 575))),
        ({"prune_layer": 1}, (stage(0, 518), stage(1, 64))),
        ({"prune_layer": 31}, (stage(0, 518), stage(31, 64))),
    ],
)
def test_resolve_star(options: dict[str, Any], expected: Schedule) -> None:
    schedule = star(llava(), **options)
    assert schedule == expected
    check_schedule(schedule, llava(), one(llava()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 64, "keep_ratio": 0.1}, "either keep or keep_ratio, not both"),
        ({"keep_ratio": 0.0}, "keep_ratio must be between 0 and 1, got 0"),
        ({"keep_ratio": 1.0}, "keep_ratio must be between 0 and 1, got 1"),
        ({"keep_ratio": 0.95}, "547 is not below the 518 tokens"),
        ({"keep": 0}, "keep must be at least 1 visual token, got 0"),
        ({"keep": -3}, "keep must be at least 1 visual token, got -3"),
        ({"keep": 518}, "keep=518 is not below the 518 tokens .* choose at most 517"),
        ({"max_keep": 518}, "max_keep=518 is not below the 518 tokens"),
        ({"keep": 65, "max_keep": 64}, "65 is over this bundle's maximum of 64; .* max_keep=65"),
        ({"keep": 64, "drop_ratio": 0.9}, "keep=64 is not below the 58 tokens"),
        ({"drop_ratio": 1.0}, "drop_ratio must be at least 0 and below 1, got 1"),
        ({"prune_layer": 0}, "prune_layer must be from 1 to 31 for this 32-layer decoder, got 0"),
        ({"prune_layer": 32}, "prune_layer must be from 1 to 31 for this 32-layer decoder, got 32"),
    ],
)
def test_resolve_star_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        star(llava(), **options)


def test_default_keep_must_fit_a_small_grid() -> None:
    with pytest.raises(SettingsError, match="keep=64 is not below the 58 tokens"):
        star(llava(side=8))  # 64 patches


def test_check_keep_of_a_request() -> None:
    schedule = star(llava(), max_keep=288)
    for keep in (1, 64, 288):
        check_keep(schedule, keep)
    with pytest.raises(SettingsError, match="keep=289 is over this bundle's maximum of 288"):
        check_keep(schedule, 289)
    with pytest.raises(SettingsError, match=r"keep=518 is not below .* choose at most 288"):
        check_keep(schedule, 518)


def test_check_keep_is_about_the_last_stage() -> None:
    for keep in (1, 64, 100):
        check_keep(THREE, keep)
    with pytest.raises(SettingsError, match="101 is over this bundle's maximum of 100"):
        check_keep(THREE, 101)
    with pytest.raises(SettingsError, match="200 is not below the 200 tokens that stage 2 keeps"):
        check_keep(THREE, 200)
    check_keep(THREE[:1], 518)


@pytest.mark.parametrize("schedule", [(), THREE, THREE[:1], THREE[1:], (stage(0, 576),), (stage(31, 1),)])
def test_schedules(schedule: Schedule) -> None:
    check_schedule(schedule, llava(), one(llava()))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((stage(32, 64),), "stage 2 comes after layer 32, expected 0 to 31"),
        ((stage(0, 577),), "stage 1 keeps up to 577 tokens, expected at most 576"),
        ((stage(0, 64, 63),), "stage 1 keeps 64 tokens, over its maximum of 63"),
        ((stage(0, 64), stage(0, 32)), "stage 2 comes after layer 0, expected 1 to 31"),
        ((stage(9, 64), stage(8, 32)), "stage 3 comes after layer 8, expected 10 to 31"),
        ((stage(0, 64), stage(8, 32, 64)), "stage 2 keeps up to 64 tokens, expected at most 63"),
        ((stage(8, 64), stage(9, 64)), "stage 3 keeps up to 64 tokens, expected at most 63"),
    ],
)
def test_schedules_that_cannot_be(schedule: Schedule, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_schedule(schedule, llava(), one(llava()))


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("language_model.layers.1", {"layers.1.mlp.up_proj", "layers.1.self_attn.q_proj"}),
        ("language_model.layers.1.mlp", {"layers.1.mlp.up_proj"}),
        ("language_model.layers.*.mlp", {"layers.1.mlp.up_proj", "layers.11.mlp.up_proj"}),
        ("*.q_proj", {"layers.1.self_attn.q_proj"}),
        ("language_model", {"layers.1.mlp.up_proj", "layers.1.self_attn.q_proj", "layers.11.mlp.up_proj"}),
        ("language_model.layers.1.mlp.up_proj.weight", set()),  # names are of modules
    ],
)
def test_fp32_layers(pattern: str, kept: set[str]) -> None:
    spec = replace(export_spec(llava(), ()), fp32_layers=(pattern,))
    names = ("layers.1.mlp.up_proj", "layers.1.self_attn.q_proj", "layers.11.mlp.up_proj")
    found = {name: spec.weight_dtype(f"language_model.{name}.weight") for name in names}
    assert found == {name: "float32" if name in kept else "float16" for name in names}
    assert spec.weight_dtype("lm_head.weight") == "float16"


MODULES = ["language_model.layers.0.mlp.up_proj", "lm_head", "multi_modal_projector.linear_1"]


def test_fp32_layers_are_names_of_the_model() -> None:
    spec = replace(export_spec(llava(), ()), fp32_layers=("language_model.layers.0", "lm_*", "*.mlp"))
    check_fp32_layers(spec, MODULES)
    with pytest.raises(SettingsError, match="no meaning with dtype=float32"):
        check_fp32_layers(replace(spec, dtype="float32"), MODULES)
    check_fp32_layers(replace(spec, dtype="float32", fp32_layers=()), MODULES)
    message = (
        r"fp32_layers=language_model.layer.0 names nothing in this bundle; did you mean "
        r"language_model.layers.0\? .* begin with language_model, lm_head, multi_modal_projector$"
    )
    with pytest.raises(SettingsError, match=message):
        check_fp32_layers(replace(spec, fp32_layers=("lm_head", "language_model.layer.0")), MODULES)


def test_specs_of_old_manifests_keep_no_layers() -> None:
    spec = replace(export_spec(llava(), ()), fp32_layers=("lm_head",))
    data = json.loads(json.dumps(spec.to_dict()))
    assert convert(data, ExportSpec) == spec
    del data["fp32_layers"]
    assert convert(data, ExportSpec) == replace(spec, fp32_layers=())


def test_capacities_of_both_groups() -> None:
    spec = export_spec(llava(), star(llava(), max_keep=288))
    early, late = 518 + 100 + 50, 288 + 100 + 50
    assert (spec.image_tokens, spec.keep, spec.budgets(), spec.budgets(7)) == (518, 64, (64,), (7,))
    assert spec.groups == (
        LayerGroup(first=0, last=13, capacity=early),
        LayerGroup(first=14, last=31, capacity=late),
    )
    assert [spec.cache_capacity(layer) for layer in (0, 13, 14, 31)] == [early, early, late, late]
    assert spec.lengths(10, 518) == (528, 74)
    assert spec.lengths(10, 30, 7) == (40, 17)


def test_a_schedule_of_three_stages_has_three_groups() -> None:
    spec = export_spec(llava(), THREE)
    assert [(g.first, g.last, g.capacity) for g in spec.groups] == [
        (0, 7, 668), (8, 19, 438), (20, 31, 250),
    ]  # fmt: skip
    assert [layer for group in spec.groups for layer in group.layers] == list(range(32))
    assert [spec.group(layer) for layer in (0, 7, 8, 19, 20, 31)] == [0, 0, 1, 1, 2, 2]
    assert (spec.image_tokens, spec.keep, spec.budgets(), spec.budgets(7)) == (518, 64, (200, 64), (200, 7))
    assert spec.lengths(10, 518, 7) == (528, 210, 17)


@pytest.mark.parametrize(
    ("schedule", "entering", "keep", "capacities"),
    [
        (THREE[:1], 518, 518, [518 + 150]),
        ((stage(0, 100, 200),), 100, 100, [200 + 150]),
        (THREE[1:2], 576, 200, [576 + 150, 288 + 150]),
    ],
)
def test_stages_on_one_side_of_the_border(
    schedule: Schedule, entering: int, keep: int, capacities: list[int]
) -> None:
    spec = export_spec(llava(), schedule)
    assert (spec.image_tokens, spec.keep) == (entering, keep)
    assert [group.capacity for group in spec.groups] == capacities


def test_capacities_unpruned() -> None:
    spec = export_spec(llava(), ())
    assert (spec.image_tokens, spec.keep, spec.budgets(7)) == (576, 576, ())
    assert spec.groups == (LayerGroup(first=0, last=31, capacity=576 + 100 + 50),)
    assert {spec.cache_capacity(layer) for layer in range(32)} == {726}


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("float32", 4), ("bfloat16", 2)])
def test_kv_bytes(dtype: Any, size: int) -> None:
    spec = replace(export_spec(llava(), ()), dtype=dtype)
    assert spec.kv_bytes(10, 3) == 2 * 10 * 3 * 8 * 128 * size  # key and value, 8 KV heads of 128


def test_bytes_of_a_sequence_are_those_of_both_groups() -> None:
    spec, token = export_spec(llava(), star(llava(), max_keep=288)), 2 * 8 * 128 * 2
    assert spec.sequence_bytes((10, 3)) == token * (14 * 10 + 18 * 3)
    assert spec.slot_bytes == token * (14 * 668 + 18 * 438)
    unpruned = export_spec(llava(), ())
    assert unpruned.sequence_bytes((10,)) == token * 32 * 10
    assert unpruned.slot_bytes == token * 32 * 726


def test_patches_of_an_image() -> None:
    assert llava(side=24).vision.num_patches == 576
    assert (
        replace(llava().vision, image_size=30, patch_size=14).num_patches == 4
    )  # what is left over counts not


def test_too_few_to_prune() -> None:
    with pytest.raises(
        SettingsError, match="a decoder of one layer cannot be pruned inside; use prune=False"
    ):
        star(llava(layers=1))
    with pytest.raises(SettingsError, match=r"drop_ratio=0.98 leaves 1 of 64 patches; lower it"):
        star(llava(side=8), drop_ratio=0.98, keep=1)
    assert star(llava(side=2), drop_ratio=0.5, keep=1)[0].tokens == 2
    assert star(llava(layers=2), prune_layer=1)[1].after_layer == 1


def test_capacities_reach_the_position_limit_exactly() -> None:
    check_capacities(export_spec(llava(positions=726), ()))
    with pytest.raises(
        SettingsError, match=r"576 image \+ 100 text \+ 50 new tokens are 726, over the model's 725 positions"
    ):
        check_capacities(export_spec(llava(positions=725), ()))


@pytest.mark.parametrize(
    ("counts", "option"), [({"text": 0}, "max_text_tokens"), ({"new": 0}, "max_new_tokens")]
)
def test_capacities_must_be_positive(counts: dict[str, int], option: str) -> None:
    with pytest.raises(SettingsError, match=f"{option} must be at least 1, got 0"):
        check_capacities(export_spec(llava(), (), **counts))


@pytest.mark.parametrize("pruned", [True, False])
def test_round_trip_through_json(pruned: bool) -> None:
    spec = export_spec(llava(), star(llava()) if pruned else ())
    assert convert(json.loads(json.dumps(spec.to_dict())), ExportSpec) == spec


@pytest.mark.parametrize("part", ["vision", "text"])
def test_reading_refuses_unknown_and_missing_fields(part: str) -> None:
    data = json.loads(json.dumps(export_spec(llava(), ()).to_dict()))
    data["model"][part]["colour"] = 1
    with pytest.raises(ValueError, match=rf"model\.{part}\.colour: unknown"):
        convert(data, ExportSpec)
    del data["model"][part]
    with pytest.raises(ValueError, match=f"model: object missing required field {part}"):
        convert(data, ExportSpec)
