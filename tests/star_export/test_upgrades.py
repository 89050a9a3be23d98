"""Older manifests become present ones; what is damaged in them is left for the reader to name."""

from typing import Any

import pytest

from star_export.specs import ModelSpec
from star_export.typed import convert
from star_export.upgrades import UPGRADES


def model_of_format_2() -> dict[str, Any]:
    """LLaVA-1.5-7B as format 2 wrote it."""
    vision = {
        "image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_layers": 23,
        "num_heads": 16, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05,
    }  # fmt: skip
    text = {
        "hidden_size": 4096, "intermediate_size": 11008, "num_layers": 32, "num_heads": 32,
        "num_kv_heads": 32, "head_dim": 128, "vocab_size": 32064, "hidden_act": "silu", "rms_norm_eps": 1e-05,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    return {
        "vision": vision, "text": text, "projector_act": "gelu", "projector_bias": True,
        "image_token_id": 32000, "eos_token_ids": [2],
    }  # fmt: skip


def upgraded(model: object) -> Any:
    """What format 3 makes of it."""
    return UPGRADES[2]({"format_version": 2, "spec": {"model": model}})["spec"]["model"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_of_format_2(bias: bool) -> None:
    old = model_of_format_2()
    old["text"]["attention_bias"] = bias
    model = convert(upgraded(old), ModelSpec)
    assert (model.model_type, model.vision.model_type) == ("llava", "clip_vision_model")
    assert {model.text.q_bias, model.text.k_bias, model.text.v_bias, model.text.o_bias} == {bias}
    assert (model.vision.hidden_size, model.text.hidden_size, model.eos_token_ids) == (1024, 4096, (2,))


def test_an_upgrade_leaves_the_old_values_alone() -> None:
    old = model_of_format_2()
    upgraded(old)
    assert old == model_of_format_2()


@pytest.mark.parametrize("model", [None, 5, "model", [], ["text"]])
def test_a_model_that_is_none(model: object) -> None:
    assert upgraded(model) == model


@pytest.mark.parametrize("part", ["vision", "text"])
@pytest.mark.parametrize("value", [None, 5, "clip", [], [{"attention_bias": True}]])
def test_a_part_that_is_none(part: str, value: object) -> None:
    found = upgraded(model_of_format_2() | {part: value})
    assert found[part] == value
    with pytest.raises(ValueError, match=f"^{part}: expected object, got "):
        convert(found, ModelSpec)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_a_part_that_is_missing(part: str) -> None:
    old = model_of_format_2()
    del old[part]
    with pytest.raises(ValueError, match=f"^object missing required field {part}$"):
        convert(upgraded(old), ModelSpec)


@pytest.mark.parametrize("value", [None, 0, "false", {}, [False]])
def test_a_bias_of_another_type(value: object) -> None:
    old = model_of_format_2()
    old["text"]["attention_bias"] = value
    with pytest.raises(ValueError, match=r"^text\.q_bias: expected bool, got "):
        convert(upgraded(old), ModelSpec)


def test_a_bias_that_is_missing() -> None:
    old = model_of_format_2()
    del old["text"]["attention_bias"]
    with pytest.raises(ValueError, match=r"^text: object missing required field q_bias$"):
        convert(upgraded(old), ModelSpec)
