"""STAR's budgets, the cache capacities, and the errors that keep both possible."""

import json
from dataclasses import replace
from typing import Any

import pytest

from star_export.errors import SettingsError
from star_export.specs import (
    ExportSpec,
    ModelSpec,
    StarSpec,
    TextSpec,
    VisionSpec,
    check_capacities,
    check_fp32_layers,
    check_keep,
    default_prune_layer,
    resolve_star,
    stage1_count,
)
from star_export.typed import convert


def llava(*, side: int = 24, layers: int = 32, positions: int = 4096) -> ModelSpec:
    """LLaVA-1.5-7B, but for the grid of ``side x side`` patches and the decoder's depth."""
    vision = VisionSpec(
        image_size=14 * side, patch_size=14, hidden_size=1024, intermediate_size=4096, num_layers=23,
        num_heads=16, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    )  # fmt: skip
    text = TextSpec(
        hidden_size=4096, intermediate_size=11008, num_layers=layers, num_heads=32, num_kv_heads=8,
        head_dim=128, vocab_size=32064, hidden_act="silu", rms_norm_eps=1e-5, attention_bias=False,
        mlp_bias=False, tie_word_embeddings=False, max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    return ModelSpec(
        vision=vision,
        text=text,
        projector_act="gelu",
        projector_bias=True,
        image_token_id=32000,
        eos_token_ids=(2, 7),
    )


def export_spec(model: ModelSpec, star: StarSpec | None, *, text: int = 100, new: int = 50) -> ExportSpec:
    return ExportSpec(model=model, star=star, max_text_tokens=text, max_new_tokens=new, dtype="float16")


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
    assert resolve_star(llava()) == StarSpec(
        drop_ratio=0.1, stage1_keep=518, prune_layer=14, keep=64, max_keep=64
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep": 115}, {"keep": 115, "max_keep": 115}),
        ({"keep_ratio": 0.2}, {"keep": 115, "max_keep": 115}),  # 115.2
        ({"keep_ratio": 0.05}, {"keep": 29, "max_keep": 29}),  # 28.8
        ({"max_keep": 288}, {"keep": 64, "max_keep": 288}),
        ({"keep": 1}, {"keep": 1}),
        ({"keep": 517}, {"keep": 517, "stage1_keep": 518}),
        ({"keep": 517, "max_keep": 517}, {"keep": 517, "max_keep": 517}),
        ({"drop_ratio": 0.0, "keep": 575}, {"stage1_keep": 576, "keep": 575}),
        ({"prune_layer": 1}, {"prune_layer": 1}),
        ({"prune_layer": 31}, {"prune_layer": 31}),
    ],
)
def test_resolve_star(options: dict[str, Any], expected: dict[str, Any]) -> None:
    star = resolve_star(llava(), **options)
    assert {name: getattr(star, name) for name in expected} == expected


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
        resolve_star(llava(), **options)


def test_default_keep_must_fit_a_small_grid() -> None:
    with pytest.raises(SettingsError, match="keep=64 is not below the 58 tokens"):
        resolve_star(llava(side=8))  # 64 patches


def test_check_keep_of_a_request() -> None:
    star = resolve_star(llava(), max_keep=288)
    for keep in (1, 64, 288):
        check_keep(star, keep)
    with pytest.raises(SettingsError, match="keep=289 is over this bundle's maximum of 288"):
        check_keep(star, 289)


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
    spec = replace(export_spec(llava(), None), fp32_layers=(pattern,))
    names = ("layers.1.mlp.up_proj", "layers.1.self_attn.q_proj", "layers.11.mlp.up_proj")
    found = {name: spec.weight_dtype(f"language_model.{name}.weight") for name in names}
    assert found == {name: "float32" if name in kept else "float16" for name in names}
    assert spec.weight_dtype("lm_head.weight") == "float16"


MODULES = ["language_model.layers.0.mlp.up_proj", "lm_head", "multi_modal_projector.linear_1"]


def test_fp32_layers_are_names_of_the_model() -> None:
    spec = replace(export_spec(llava(), None), fp32_layers=("language_model.layers.0", "lm_*", "*.mlp"))
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
    spec = replace(export_spec(llava(), None), fp32_layers=("lm_head",))
    data = json.loads(json.dumps(spec.to_dict()))
    assert convert(data, ExportSpec) == spec
    del data["fp32_layers"]
    assert convert(data, ExportSpec) == replace(spec, fp32_layers=())


def test_capacities_of_both_groups() -> None:
    spec = export_spec(llava(), resolve_star(llava(), max_keep=288))
    assert (spec.image_tokens, spec.num_early_layers) == (518, 14)
    assert (spec.early_capacity, spec.late_capacity) == (518 + 100 + 50, 288 + 100 + 50)
    assert [spec.cache_capacity(layer) for layer in (0, 13, 14, 31)] == [668, 668, 438, 438]


def test_capacities_unpruned() -> None:
    spec = export_spec(llava(), None)
    assert (spec.image_tokens, spec.num_early_layers) == (576, 32)
    assert (spec.early_capacity, spec.late_capacity) == (576 + 100 + 50, 0)
    assert {spec.cache_capacity(layer) for layer in range(32)} == {726}


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("float32", 4), ("bfloat16", 2)])
def test_kv_bytes(dtype: Any, size: int) -> None:
    spec = replace(export_spec(llava(), None), dtype=dtype)
    assert spec.kv_bytes(10, 3) == 2 * 10 * 3 * 8 * 128 * size  # key and value, 8 KV heads of 128


def test_bytes_of_a_sequence_are_those_of_both_groups() -> None:
    spec, token = export_spec(llava(), resolve_star(llava(), max_keep=288)), 2 * 8 * 128 * 2
    assert spec.sequence_bytes(10, 3) == token * (14 * 10 + 18 * 3)
    assert spec.slot_bytes == token * (14 * 668 + 18 * 438)
    unpruned = export_spec(llava(), None)
    assert unpruned.sequence_bytes(10, 3) == token * 32 * 10
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
        resolve_star(llava(layers=1))
    with pytest.raises(SettingsError, match=r"drop_ratio=0.98 leaves 1 of 64 patches; lower it"):
        resolve_star(llava(side=8), drop_ratio=0.98, keep=1)
    assert resolve_star(llava(side=2), drop_ratio=0.5, keep=1).stage1_keep == 2
    assert resolve_star(llava(layers=2), prune_layer=1).prune_layer == 1


def test_capacities_reach_the_position_limit_exactly() -> None:
    check_capacities(export_spec(llava(positions=726), None))
    with pytest.raises(
        SettingsError, match=r"576 image \+ 100 text \+ 50 new tokens are 726, over the model's 725 positions"
    ):
        check_capacities(export_spec(llava(positions=725), None))


@pytest.mark.parametrize(
    ("counts", "option"), [({"text": 0}, "max_text_tokens"), ({"new": 0}, "max_new_tokens")]
)
def test_capacities_must_be_positive(counts: dict[str, int], option: str) -> None:
    with pytest.raises(SettingsError, match=f"{option} must be at least 1, got 0"):
        check_capacities(export_spec(llava(), None, **counts))


@pytest.mark.parametrize("pruned", [True, False])
def test_round_trip_through_json(pruned: bool) -> None:
    spec = export_spec(llava(), resolve_star(llava()) if pruned else None)
    assert convert(json.loads(json.dumps(spec.to_dict())), ExportSpec) == spec


@pytest.mark.parametrize("part", ["vision", "text"])
def test_reading_refuses_unknown_and_missing_fields(part: str) -> None:
    data = json.loads(json.dumps(export_spec(llava(), None).to_dict()))
    data["model"][part]["colour"] = 1
    with pytest.raises(ValueError, match=rf"model\.{part}\.colour: unknown"):
        convert(data, ExportSpec)
    del data["model"][part]
    with pytest.raises(ValueError, match=f"model: object missing required field {part}"):
        convert(data, ExportSpec)
