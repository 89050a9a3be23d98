"""Configs of NeXT, OneVision and Interleave, as they were published and as transformers saves them today."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from star_export.checkpoint.config import read_model
from star_export.errors import CheckpointError
from star_export.specs import ModelSpec, TextSpec, Tiling, VisionSpec

CLIP = {
    "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
    "vocab_size": 32000,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "siglip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
NEXT_POINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
NEXT: dict[str, Any] = {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "ignore_index": -100,
    "image_grid_pinpoints": NEXT_POINTS,
    "image_token_index": 32000,
    "model_type": "llava_next",
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2", "architectures": ["MistralForCausalLM"],
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
        "torch_dtype": "bfloat16", "vocab_size": 32064,
    },
    "torch_dtype": "float16",
    "transformers_version": "4.39.0.dev0",
    "use_image_newline_parameter": True,
    "vision_config": CLIP,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}  # fmt: skip
ONEVISION: dict[str, Any] = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "image_grid_pinpoints": [[384 * rows, 384 * cols] for rows in range(1, 7) for cols in range(1, 7)],
    "image_token_index": 151646,
    "model_type": "llava_onevision",
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "Qwen/Qwen2-0.5B-Instruct", "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643, "eos_token_id": 151645, "hidden_size": 896, "intermediate_size": 4864,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 152000,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.45.0.dev0",
    "use_image_newline_parameter": True,
    "video_token_index": 151647,
    "vision_aspect_ratio": "anyres_max_9",
    "vision_config": SIGLIP,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}  # fmt: skip
INTERLEAVE = {
    name: value for name, value in ONEVISION.items() if not name.startswith(("image_grid", "v"))
} | {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_seq_length": 576,  # of another tower
    "model_type": "llava",
    "vision_config": SIGLIP,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}

CLIP_L = VisionSpec(
    model_type="clip_vision_model", image_size=336, patch_size=14, hidden_size=1024, intermediate_size=4096,
    num_layers=23, num_heads=16, hidden_act="quick_gelu", layer_norm_eps=1e-5, feature_layers=(23,),
    has_cls=True, feature_select="default",
)  # fmt: skip
SIGLIP_SO = VisionSpec(
    model_type="siglip_vision_model", image_size=384, patch_size=14, hidden_size=1152,
    intermediate_size=4304, num_layers=26, num_heads=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6,
    feature_layers=(26,), has_cls=False, feature_select="full",
)  # fmt: skip
MISTRAL = TextSpec(
    hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    vocab_size=32064, hidden_act="silu", rms_norm_eps=1e-5, q_bias=False, k_bias=False, v_bias=False,
    o_bias=False, mlp_bias=False, tie_word_embeddings=False, max_position_embeddings=32768,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6}, sliding_window=None,
)  # fmt: skip
QWEN2 = TextSpec(
    hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64,
    vocab_size=152000, hidden_act="silu", rms_norm_eps=1e-6, q_bias=True, k_bias=True, v_bias=True,
    o_bias=False, mlp_bias=False, tie_word_embeddings=True, max_position_embeddings=32768,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6}, sliding_window=None,
)  # fmt: skip


def joined(
    model_type: str, vision: VisionSpec, text: TextSpec, tiling: Tiling | None, **ids: Any
) -> ModelSpec:
    common = {"projector_act": "gelu", "projector_bias": True}
    return ModelSpec(model_type=model_type, vision=vision, text=text, tiling=tiling, **common, **ids)


TILINGS = {
    "next": Tiling(pinpoints=tuple((h, w) for h, w in NEXT_POINTS), max_grid=None, several_whole=False),
    "onevision": Tiling(
        pinpoints=tuple((h, w) for h, w in ONEVISION["image_grid_pinpoints"]), max_grid=9, several_whole=True
    ),
}
QWEN_IDS: dict[str, Any] = {"image_token_id": 151646, "eos_token_ids": (151645,)}
PUBLISHED = {
    "next": (
        NEXT,
        joined("llava_next", CLIP_L, MISTRAL, TILINGS["next"], image_token_id=32000, eos_token_ids=(2,)),
    ),
    "onevision": (ONEVISION, joined("llava_onevision", SIGLIP_SO, QWEN2, TILINGS["onevision"], **QWEN_IDS)),
    "interleave": (INTERLEAVE, joined("llava", SIGLIP_SO, QWEN2, None, **QWEN_IDS)),
}


def model_of(folder: Path, config: dict[str, Any]) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return read_model(folder)


def with_text(config: dict[str, Any], **values: object) -> dict[str, Any]:
    return config | {"text_config": config["text_config"] | values}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published(tmp_path: Path, name: str) -> None:
    config, model = PUBLISHED[name]
    assert model_of(tmp_path, config) == model


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_saved_today(tmp_path: Path, name: str) -> None:
    config, model = PUBLISHED[name]
    CONFIG_MAPPING[config["model_type"]](**config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved["text_config"]
    assert "rope_theta" not in saved["text_config"]
    assert read_model(tmp_path) == model


def test_tokens_of_a_tile() -> None:
    assert (CLIP_L.tile_tokens, SIGLIP_SO.tile_tokens) == (576, 729)


@pytest.mark.parametrize("name", ["next", "onevision"])
def test_pin_points_that_are_left_out(tmp_path: Path, name: str) -> None:
    """And OneVision's limit of a grid."""
    config, model = PUBLISHED[name]
    bare = {key: v for key, v in config.items() if key not in ("image_grid_pinpoints", "vision_aspect_ratio")}
    assert model_of(tmp_path, bare) == model


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ({}, None),
        ({"sliding_window": 4096}, 4096),
        ({"model_type": "mistral"}, 4096),  # the class's default, where the key is absent
        ({"head_dim": 64}, None),
    ],
)
def test_windows_of_mistral(tmp_path: Path, text: dict[str, Any], window: int | None) -> None:
    config = with_text(NEXT, **text)
    if "model_type" in text:
        del config["text_config"]["sliding_window"]
    found = model_of(tmp_path, config).text
    assert (found.sliding_window, found.head_dim) == (window, text.get("head_dim", 128))


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ({"use_sliding_window": False}, None),
        ({"use_sliding_window": True}, None),  # from the 24th of 24 layers on
        ({"use_sliding_window": True, "max_window_layers": 23}, 32768),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, None),
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 24}, None),
        ({"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 12}, 32768),
    ],
)
def test_windows_of_qwen2(tmp_path: Path, text: dict[str, Any], window: int | None) -> None:
    assert model_of(tmp_path, with_text(ONEVISION, **text)).text.sliding_window == window


@pytest.mark.parametrize(
    ("config", "in_text", "at_top", "tied"),
    [
        (ONEVISION, True, False, True),
        (ONEVISION, False, True, True),
        (ONEVISION, False, False, False),
        (NEXT, False, True, True),
        (NEXT, True, False, False),  # LlavaNextConfig does not look there
    ],
    ids=str,
)
def test_a_head_is_tied_where_transformers_ties_it(
    tmp_path: Path, config: dict[str, Any], in_text: bool, at_top: bool, tied: bool
) -> None:
    given = with_text(config, tie_word_embeddings=in_text) | {"tie_word_embeddings": at_top}
    assert model_of(tmp_path, given).text.tie_word_embeddings == tied


@pytest.mark.parametrize("use_head", [True, False])
def test_the_head_of_siglip_is_not_used(tmp_path: Path, use_head: bool) -> None:
    config = ONEVISION | {"vision_config": SIGLIP | {"vision_use_head": use_head}}
    assert model_of(tmp_path, config).vision == SIGLIP_SO


def test_siglip_without_its_first_patch(tmp_path: Path) -> None:
    """``default`` leaves out the first token, which is a patch: as transformers does."""
    model = model_of(tmp_path, INTERLEAVE | {"vision_feature_select_strategy": "default"})
    assert model.vision.tile_tokens == 728


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            NEXT | {"vision_feature_select_strategy": "full"},
            "'full' with clip_vision_model gives 577 tokens for the 576 patches of a tile",
        ),
        (
            ONEVISION | {"vision_feature_select_strategy": "default"},
            "'default' with siglip_vision_model gives 728 tokens for the 729 patches of a tile",
        ),
        (NEXT | {"image_grid_pinpoints": [[336, 700]]}, "are no whole tiles of 336 pixels"),
        (NEXT | {"image_grid_pinpoints": []}, "are no whole tiles of 336 pixels"),
        (NEXT | {"image_grid_pinpoints": [[336, -336]]}, "are no whole tiles of 336 pixels"),
        (NEXT | {"image_grid_pinpoints": [336, 672]}, r"are no pairs of height and width: \[336, 672\]"),
        (NEXT | {"image_grid_pinpoints": [[336]]}, r"are no pairs of height and width: \[\[336\]\]"),
        (ONEVISION | {"vision_aspect_ratio": "anyres"}, "'anyres' is not supported; supported: anyres_max_N"),
        (ONEVISION | {"vision_aspect_ratio": "anyres_max_0"}, "vision_aspect_ratio 'anyres_max_0' is not"),
        (ONEVISION | {"model_type": "llava_next_video"}, "model_type 'llava_next_video' is not supported; "),
        (with_text(ONEVISION, layer_types=["sliding_attention"] * 24), "layer 'sliding_attention' is"),
        (with_text(ONEVISION, layer_types=["chunked_attention"] * 24), "layer 'chunked_attention' is"),
        (with_text(NEXT, sliding_window=0), "text.sliding_window: expected int >= 1, found 0"),
        (with_text(NEXT, rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_type 'dynamic' is not"),
        (ONEVISION | {"vision_config": SIGLIP | {"num_attention_heads": 7}}, "1152 is no multiple of its 7"),
    ],
)  # fmt: skip
def test_what_cannot_be_run(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_of(tmp_path, config)
