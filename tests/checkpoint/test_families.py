"""A config of any age becomes the model's shape; what it leaves out is transformers' default, never ours."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, LlavaConfig

from star_export.build import BuildOptions, resolve_spec
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.config import read_model
from star_export.checkpoint.decoders import DECODERS
from star_export.checkpoint.families import FAMILIES
from star_export.checkpoint.supported import ACTIVATIONS
from star_export.checkpoint.towers import TOWERS
from star_export.contract import DECODE
from star_export.errors import CheckpointError
from star_export.graphs import layers, towers
from star_export.graphs.export import fake_module
from star_export.specs import ModelSpec, TextSpec, VisionSpec

#: As the checkpoints of LLaVA-1.5 were published, by transformers 4.36.
PUBLISHED: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}

LLAVA_1_5_7B = ModelSpec(
    model_type="llava",
    vision=VisionSpec(
        model_type="clip_vision_model", image_size=336, patch_size=14, hidden_size=1024,
        intermediate_size=4096, num_layers=23, num_heads=16, hidden_act="quick_gelu", layer_norm_eps=1e-5,
        feature_layers=(23,), has_cls=True, feature_select="default",
    ),
    text=TextSpec(
        hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32, num_kv_heads=32,
        head_dim=128, vocab_size=32064, hidden_act="silu", rms_norm_eps=1e-5, mlp_bias=False,
        q_bias=False, k_bias=False, v_bias=False, o_bias=False, tie_word_embeddings=False,
        max_position_embeddings=4096, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        sliding_window=None,
    ),
    projector_act="gelu",
    projector_bias=True,
    image_token_id=32000,
    eos_token_ids=(2,),
    tiling=None,
)  # fmt: skip


def model_of(folder: Path, config: dict[str, Any], *, generation: dict[str, Any] | None = None) -> ModelSpec:
    """What is read of a folder with these files."""
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_model(folder)


def with_text(**values: object) -> dict[str, Any]:
    """The published config with other values of its decoder."""
    return PUBLISHED | {"text_config": PUBLISHED["text_config"] | values}


def with_vision(**values: object) -> dict[str, Any]:
    """The published config with other values of its vision tower."""
    return PUBLISHED | {"vision_config": PUBLISHED["vision_config"] | values}


def test_the_published_config(tmp_path: Path) -> None:
    assert model_of(tmp_path, PUBLISHED) == LLAVA_1_5_7B


def test_the_same_saved_by_transformers_today(tmp_path: Path) -> None:
    LlavaConfig(**PUBLISHED).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["text_config"].keys() >= {"rope_parameters", "head_dim", "attention_bias"}
    assert read_model(tmp_path) == LLAVA_1_5_7B


def test_a_config_that_leaves_everything_out(tmp_path: Path) -> None:
    """It means LlavaConfig's defaults, which have another epsilon, vocabulary and position range."""
    text = replace(LLAVA_1_5_7B.text, rms_norm_eps=1e-6, vocab_size=32000, max_position_embeddings=2048)
    config = {"model_type": "llava", "image_token_index": 31999}
    assert model_of(tmp_path, config) == replace(LLAVA_1_5_7B, text=text, image_token_id=31999)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (with_text(num_attention_heads=16), {"num_heads": 16, "num_kv_heads": 16, "head_dim": 256}),
        (with_text(head_dim=None, num_key_value_heads=None), {}),
        (with_text(num_key_value_heads=8), {"num_kv_heads": 8}),
        (with_text(head_dim=64), {"head_dim": 64}),
        (with_text(attention_bias=True), dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), True)),
        (with_text(mlp_bias=True), {"mlp_bias": True}),
        (with_text(tie_word_embeddings=True), {"tie_word_embeddings": True}),
        (PUBLISHED | {"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
        (with_text(rope_theta=5e5), {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (with_text(rope_scaling=None), {}),
        (
            with_text(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}),
            {
                "rope_parameters": {
                    "type": "linear", "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5,
                }
            },
        ),
        (
            with_text(rope_parameters={"rope_type": "linear", "factor": 2.0}),
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        ),
    ],
)  # fmt: skip
def test_decoders_of_old_and_new_configs(
    tmp_path: Path, config: dict[str, Any], change: dict[str, Any]
) -> None:
    assert model_of(tmp_path, config).text == replace(LLAVA_1_5_7B.text, **change)


@pytest.mark.parametrize(
    ("layer", "states"),
    [
        (-2, (23,)),
        (-1, (24,)),
        (22, (22,)),
        (1, (1,)),
        ([-2], (23,)),
        ([-2, -5, 6, 0, -25], (23, 20, 6, 0, 0)),
        ([6, 6], (6, 6)),
    ],
)
def test_layers_of_the_tower(tmp_path: Path, layer: object, states: tuple[int, ...]) -> None:
    """In the order of the config; those behind the last that is used are not exported."""
    model = model_of(tmp_path, PUBLISHED | {"vision_feature_layer": layer})
    assert model.vision == replace(LLAVA_1_5_7B.vision, num_layers=max(states), feature_layers=states)


def test_cls_may_be_a_visual_token(tmp_path: Path) -> None:
    model = model_of(tmp_path, PUBLISHED | {"vision_feature_select_strategy": "full"})
    assert model.vision == replace(LLAVA_1_5_7B.vision, feature_select="full")
    assert (LLAVA_1_5_7B.vision.tile_tokens, model.vision.tile_tokens) == (576, 577)


def test_the_image_token_by_its_newer_name(tmp_path: Path) -> None:
    config = {name: value for name, value in PUBLISHED.items() if name != "image_token_index"}
    assert model_of(tmp_path, config | {"image_token_id": 7}).image_token_id == 7


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": ["llava"]},
            r"model_type \['llava'\] is not supported; supported: llava, ",
        ),
        (
            with_vision(image_size=[336, 336]),
            r"\[336, 336\] has no square patches of patch_size 14",
        ),
        (with_vision(image_size=None), "image_size None has no square patches of patch_size 14"),
        (with_vision(patch_size=0), "image_size 336 has no square patches of patch_size 0"),
        (with_vision(patch_size=337), "image_size 336 has no square patches of patch_size 337"),
        (PUBLISHED | {"vision_feature_layer": []}, r"vision_feature_layer \[\] takes no layer of the tower"),
        (
            PUBLISHED | {"vision_feature_layer": [0]},
            r"vision_feature_layer \[0\] takes no layer",
        ),
        (PUBLISHED | {"vision_feature_layer": [3, 25]}, "vision_feature_layer 25 is outside the 24-layer"),
        (with_vision(hidden_act="relu"), "vision activation 'relu' is not supported; supported: gelu, "),
        (PUBLISHED | {"projector_hidden_act": "relu"}, "projector activation 'relu' is not supported"),
        (with_text(num_key_value_heads=0), "num_attention_heads 32 is no multiple of num_key_value_heads 0"),
        (with_text(num_key_value_heads=5), "num_attention_heads 32 is no multiple of num_key_value_heads 5"),
        (with_text(num_hidden_layers=0), "no usable config: text.num_layers: expected int >= 1, found 0"),
        (with_text(rms_norm_eps=-1.0), "text.rms_norm_eps: expected float > 0.0, found -1.0"),
        (with_text(eos_token_id=-2), r"no usable config: eos_token_ids\[0\]: expected int >= 0, found -2"),
    ],
)
def test_values_that_no_model_has(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_of(tmp_path, config)


@pytest.mark.parametrize(
    ("generation", "ids"),
    [
        (None, (5,)),
        ({}, (5,)),
        ({"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [2, 7]}, (2, 7)),
        ({"eos_token_id": None}, ()),
    ],
)
def test_end_tokens(tmp_path: Path, generation: dict[str, Any] | None, ids: tuple[int, ...]) -> None:
    assert model_of(tmp_path, with_text(eos_token_id=5), generation=generation).eos_token_ids == ids


@pytest.mark.parametrize("ids", ["2", [2, "7"], 2.5, [[2]]])
def test_end_tokens_of_another_type(tmp_path: Path, ids: object) -> None:
    with pytest.raises(CheckpointError, match=r"eos_token_ids\[[01]\]: expected int, got "):
        model_of(tmp_path, PUBLISHED, generation={"eos_token_id": ids})


def test_keys_are_what_transformers_calls_them() -> None:
    assert set(CONFIG_MAPPING) >= {*FAMILIES, *TOWERS, *DECODERS}


@pytest.mark.parametrize("name", ["qwen3", "ministral", "gpt2", "qwen2_vl", "sam"])
def test_other_decoders_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """Also those whose configs lack keys that are read."""
    message = f"decoder '{name}' is not supported; supported: llama, mistral, qwen2$"
    with pytest.raises(CheckpointError, match=message):
        model_of(tmp_path, PUBLISHED | {"text_config": {"model_type": name}})


@pytest.mark.parametrize("name", ["siglip2_vision_model", "pixtral", "clip", "sam", "llama"])
def test_other_towers_are_refused_by_name(tmp_path: Path, name: str) -> None:
    message = f"vision tower '{name}' is not supported; supported: clip_vision_model, siglip_vision_model$"
    with pytest.raises(CheckpointError, match=message):
        model_of(tmp_path, PUBLISHED | {"vision_config": {"model_type": name}})


def test_what_is_read_can_be_exported() -> None:
    assert set(TOWERS) == set(towers.TOWERS)
    assert set(ACTIVATIONS) == set(layers.ACTIVATIONS)


@pytest.mark.parametrize("biased", ["q", "k", "v", "o", "qkv", ""])
def test_each_projection_has_its_own_bias(checkpoint: Callable[[str], Path], biased: str) -> None:
    opened = open_checkpoint(str(checkpoint("mha")))
    spec = resolve_spec(BuildOptions(model="mha", output=Path("bundle")), opened)
    text = replace(spec.model.text, **{f"{name}_bias": name in biased for name in "qkvo"})
    module = fake_module(DECODE, replace(spec, model=replace(spec.model, text=text)))
    prefix = "language_model.layers.0.self_attn."
    found = {name.removeprefix(prefix) for name in module.state_dict() if name.startswith(prefix)}
    assert {name for name in found if name.endswith("bias")} == {f"{name}_proj.bias" for name in biased}
