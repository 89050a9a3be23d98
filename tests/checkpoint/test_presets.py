"""Small checkpoints are what they say: family, tower and decoder, tokenizer, template and processor files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from star_export.build import BuildOptions, resolve_spec
from star_export.checkpoint.aliases import ALIASES
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.decoders import DECODERS
from star_export.checkpoint.families import FAMILIES
from star_export.checkpoint.towers import TOWERS
from star_export.contract import DECODE, VISION
from star_export.graphs.export import fake_module
from star_export.graphs.weights import plan_weights
from star_export.testing.checkpoints import PRESETS

SMALL = ["feature-layers", "full", "interleave", "next", "next-mistral", "next-llama3", "onevision"]
PROMPTS = {
    "interleave": "<|im_start|>user <image>\nHow?<|im_end|><|im_start|>assistant\n",
    "next": "USER: <image>\nHow? ASSISTANT:",
    "next-mistral": "[INST] <image>\nHow? [/INST]",
    "next-llama3": "<|start_header_id|>user<|end_header_id|>\n\n<image>\nHow?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "onevision": "<|im_start|>user <image>\nHow?<|im_end|><|im_start|>assistant\n",
}


def test_every_part_has_a_small_checkpoint() -> None:
    shapes = [PRESETS[name] for name in SMALL]
    assert {shape.family for shape in shapes} == set(FAMILIES)
    assert {shape.tower for shape in shapes} == set(TOWERS)
    assert {shape.decoder for shape in shapes} == set(DECODERS)


@pytest.mark.parametrize("preset", SMALL)
def test_its_tensors_are_those_of_the_graphs(checkpoint: Callable[[str], Path], preset: str) -> None:
    opened = open_checkpoint(str(checkpoint(preset)))
    spec = resolve_spec(BuildOptions(model=opened.source, output=Path("bundle"), keep=20), opened)
    used: set[str] = set()
    for graph in (VISION, DECODE):
        used |= {tensor.name for tensor in plan_weights(fake_module(graph, spec), opened, spec)}
    layers = PRESETS[preset].vision_layers - opened.model.vision.num_layers
    unused = [name for name in opened.tensors if name not in used]
    parts = {name.split(".")[1] for name in unused}
    assert parts <= {"encoder", "post_layernorm", "head"}, unused
    assert len([name for name in unused if ".encoder." in name]) == 16 * layers


@pytest.mark.parametrize("preset", PROMPTS)
def test_its_template_and_tokenizer(checkpoint: Callable[[str], Path], preset: str) -> None:
    folder = checkpoint(preset)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = open_checkpoint(str(folder)).model
    content: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "How?"}]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=(folder / "chat_template.jinja").read_text(),
        tokenize=False,
        add_generation_prompt=True,
    )
    assert prompt == PROMPTS[preset]
    ids = tokenizer(prompt).input_ids
    assert (tokenizer.bos_token_id is None) == (PRESETS[preset].decoder == "qwen2")
    assert ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token_id is not None)
    assert ids.count(model.image_token_id) == 1
    assert model.eos_token_ids == (tokenizer.eos_token_id,)
    assert max(len(tokenizer), *ids) <= model.text.vocab_size


@pytest.mark.parametrize("preset", ["interleave", "next", "onevision"])
def test_its_processor_files_agree_with_the_config(checkpoint: Callable[[str], Path], preset: str) -> None:
    folder = checkpoint(preset)
    images, counts, config = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("preprocessor_config", "processor_config", "config")
    )
    assert images.get("image_grid_pinpoints") == config.get("image_grid_pinpoints")
    assert counts.get("vision_aspect_ratio") == config.get("vision_aspect_ratio")
    assert config.get("image_seq_length") in (None, 576)  # of another model, as in published ones
    patches = open_checkpoint(str(folder)).model.vision.num_patches
    assert counts.get("num_image_tokens", patches) == patches


def test_the_shape_of_onevision() -> None:
    """The published 0.5B: 27x27 patches, grids of up to six by six tiles."""
    shape = PRESETS["bench-onevision"]
    assert (shape.image_size // shape.patch_size) ** 2 == 729
    assert (shape.vision_hidden // shape.vision_heads, shape.hidden // shape.heads) == (72, 64)
    assert (len(shape.grids), max(shape.grids), shape.max_grid) == (36, (6, 6), 9)


def test_only_llava_1_5_has_a_layer_from_a_paper() -> None:
    given = {name: alias.prune_layer for name, alias in ALIASES.items() if alias.prune_layer is not None}
    assert given == {"llava-1.5-7b": 14, "llava-1.5-13b": 18}
    assert {alias.hub_id.split("/")[0] for alias in ALIASES.values()} == {"llava-hf"}
    assert len({alias.hub_id for alias in ALIASES.values()}) == 11
    assert ALIASES["llava-v1.6-mistral-7b"].budgets == (640, 320, 160)
