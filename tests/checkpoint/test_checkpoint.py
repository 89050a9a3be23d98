"""Checkpoints of every transformers version open; damaged and foreign ones say what is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from star_export.build import BuildOptions, resolve_spec
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.families import FAMILIES
from star_export.checkpoint.tensors import canonical_module, canonical_name
from star_export.contract import DECODE, VISION
from star_export.errors import CheckpointError, SettingsError
from star_export.graphs.export import fake_module
from star_export.graphs.weights import plan_weights

INDEX = "model.safetensors.index.json"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a real checkpoint, free to be damaged."""
    return Path(shutil.copytree(checkpoint("mha"), tmp_path / "checkpoint"))


def edit(folder: Path, change: Change, *, name: str = "config.json") -> None:
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))


def refused(model: Path | str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(model))


def shard_of(folder: Path, name: str) -> Path:
    return folder / str(json.loads((folder / INDEX).read_text())["weight_map"][name])


def rewrite(folder: Path, name: str, new_shape: tuple[int, ...] | None) -> None:
    """Give a tensor another shape, or take it out of its shard."""
    path = shard_of(folder, name)
    tensors = load_file(path)
    if new_shape is None:
        del tensors[name]
    else:
        tensors[name] = tensors[name].reshape(new_shape)
    save_file(tensors, path)


def plan(folder: Path, graph: str) -> None:
    opened = open_checkpoint(str(folder))
    spec = resolve_spec(BuildOptions(model=str(folder), output=folder / "bundle"), opened)
    plan_weights(fake_module(graph, spec), opened, spec)


def run_offline(model: str, home: Path) -> str:
    """What opening ``model`` says in a fresh interpreter that must not use the network."""
    code = (
        "import sys; from star_export.checkpoint.checkpoint import open_checkpoint\n"
        "try: open_checkpoint(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    command = [sys.executable, "-c", code, model]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "language_model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.embed_tokens.weight", "language_model.embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        (
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
            "vision_tower.encoder.layers.0.mlp.fc1.bias",
        ),
        ("multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "language_model.norm.weight"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.bias", "vision_tower.encoder.layers.0.mlp.fc1.bias"),
        (
            "model.vision_tower.vision_model.embeddings.class_embedding",
            "vision_tower.embeddings.class_embedding",
        ),
        ("model.multi_modal_projector.linear_2.bias", "multi_modal_projector.linear_2.bias"),
        ("lm_head.weight", "lm_head.weight"),
        ("image_newline", "image_newline"),
        ("model.image_newline", "image_newline"),
        ("language_model.layers.0.mlp.up_proj.weight", "language_model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_canonical_name(stored: str, canonical: str) -> None:
    assert {canonical_name(stored, family) for family in FAMILIES} == {canonical}


@pytest.mark.parametrize(
    ("spelled", "canonical"),
    [
        ("model.language_model.layers.3", "language_model.layers.3"),
        ("language_model.model.layers.*.mlp", "language_model.layers.*.mlp"),
        ("vision_tower.vision_model.encoder.layers.2", "vision_tower.encoder.layers.2"),
        ("model.multi_modal_projector", "multi_modal_projector"),
        ("language_model.lm_head", "lm_head"),
        ("lm_head", "lm_head"),
        ("*.mlp", "*.mlp"),
    ],
)
def test_canonical_module(spelled: str, canonical: str) -> None:
    assert canonical_module(spelled, "llava") == canonical


@pytest.mark.parametrize("preset", ["mha", "gqa"])
def test_opens_with_all_tensors(checkpoint: Callable[[str], Path], preset: str) -> None:
    folder = checkpoint(preset)
    opened = open_checkpoint(str(folder))
    stored = json.loads((folder / INDEX).read_text())["weight_map"]
    assert set(opened.tensors) == {canonical_name(name, "llava") for name in stored}
    assert (opened.source, opened.revision) == (str(folder.resolve()), None)
    for path, name, shape in opened.tensors.values():
        assert path == folder / stored[name]
        with safe_open(path, framework="pt") as file:
            assert tuple(file.get_tensor(name).shape) == shape


def test_model_spec_of_a_checkpoint(checkpoint: Callable[[str], Path]) -> None:
    model = open_checkpoint(str(checkpoint("gqa"))).model
    assert (model.vision.num_patches, model.vision.num_layers) == (576, 2)  # feature layer -2 of 3
    assert (model.text.num_heads, model.text.num_kv_heads, model.text.head_dim) == (8, 2, 16)
    assert (model.model_type, model.vision.model_type) == ("llava", "clip_vision_model")
    text = model.text
    assert (text.q_bias, text.k_bias, text.v_bias, text.o_bias) == (True, True, True, True)
    assert text.tie_word_embeddings
    assert model.text.rope_parameters["rope_type"] == "llama3"
    assert (model.image_token_id, model.eos_token_ids) == (4, (2,))


@pytest.mark.parametrize(("stored", "ids"), [(7, (7,)), ([2, 7], (2, 7)), (None, ())])
def test_eos_comes_from_the_generation_config(folder: Path, stored: object, ids: tuple[int, ...]) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stored}))
    assert open_checkpoint(str(folder)).model.eos_token_ids == ids


def test_eos_without_a_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert open_checkpoint(str(folder)).model.eos_token_ids == (2,)


def test_file_hashes_cover_config_and_shards(folder: Path) -> None:
    hashes = open_checkpoint(str(folder)).file_hashes()
    assert set(hashes) == {"config.json", *(path.name for path in folder.glob("*.safetensors"))}


def test_single_file_checkpoint(folder: Path) -> None:
    tensors = {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    expected = set(open_checkpoint(str(folder)).tensors)
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    refused(folder, "lacks model.safetensors; only safetensors weights are read")
    save_file(tensors, folder / "model.safetensors")
    assert set(open_checkpoint(str(folder)).tensors) == expected


def test_missing_shard(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[2]
    shard.unlink()
    refused(folder, f"lacks {re.escape(shard.name)}")


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_truncated_shard(folder: Path, size: int) -> None:
    shard = sorted(folder.glob("*.safetensors"))[2]
    os.truncate(shard, size)
    refused(folder, f"{re.escape(shard.name)} is truncated or not safetensors .*; get the file again")


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        (VISION, "multi_modal_projector.linear_1.weight"),
        (DECODE, "language_model.model.layers.5.mlp.up_proj.weight"),
    ],
)
def test_missing_and_misshapen_tensor(folder: Path, graph: str, name: str) -> None:
    canonical = canonical_name(name, "llava")
    shape = open_checkpoint(str(folder)).tensors[canonical].shape
    plan(folder, graph)
    rewrite(folder, name, shape[::-1])
    expected = re.escape(f"is {list(shape[::-1])}, the config asks for {list(shape)}")
    with pytest.raises(CheckpointError, match=f"{re.escape(canonical)} .* {expected}"):
        plan(folder, graph)
    rewrite(folder, name, None)
    with pytest.raises(CheckpointError, match=f"has no tensor {re.escape(canonical)}"):
        plan(folder, graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="qwen2_vl"), "model_type 'qwen2_vl' is not supported"),
        (lambda c: c.pop("model_type"), "model_type None is not supported"),
        (lambda c: c.update(text_config={"model_type": "qwen3"}), "decoder 'qwen3' is not supported"),
        (
            lambda c: c.update(vision_config={"model_type": "siglip2_vision_model"}),
            "vision tower 'siglip2_vision_model' is not supported; supported: clip_vision_model, siglip",
        ),
        (
            lambda c: c["text_config"].update(
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ),
            "rope_type 'dynamic' is not supported; supported: default, linear",
        ),
        (lambda c: c["text_config"].update(hidden_act="gelu"), "decoder activation 'gelu'"),
        (lambda c: c["text_config"].update(hidden_size="64"), "transformers cannot read .*hidden_size"),
        (
            lambda c: c.update(model_type="llava_next_video"),
            "'llava_next_video' is not .*: llava",
        ),
        (lambda c: c.update(vision_feature_layer=-9), "-9 is outside the 4-layer tower"),
        (lambda c: c["vision_config"].update(image_size=3), "3 has no square patches of patch_size 4"),
        (lambda c: c.update(quantization_config={"quant_method": "fp8"}), "quantization 'fp8' is not"),
        (lambda c: c.update(image_token_index=9999), "9999 is outside the vocabulary of 512"),
    ],
)
def test_unsupported_config(folder: Path, change: Change, message: str) -> None:
    edit(folder, change)
    refused(folder, message)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_config_that_is_no_json_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, "config.json is not a JSON object")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_generation_config_that_is_no_json_object(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    refused(folder, "generation_config.json is not a JSON object")


def test_weights_of_a_quantized_dtype(folder: Path) -> None:
    path = shard_of(folder, "language_model.lm_head.weight")
    tensors = load_file(path)
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, path)
    refused(folder, "dtype of .* 'I8' is not supported; supported: F32, F16, BF16")


def test_tables_that_old_versions_saved_beside_the_weights(folder: Path) -> None:
    expected = open_checkpoint(str(folder)).tensors.keys()
    path = shard_of(folder, "language_model.lm_head.weight")
    tables = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(577)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    save_file(load_file(path) | tables, path)
    found = open_checkpoint(str(folder)).tensors.keys()
    assert found - expected == {"language_model.layers.0.self_attn.rotary_emb.inv_freq"}  # used by nothing
    plan(folder, VISION)
    plan(folder, DECODE)


def test_folder_without_config(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    refused(
        tmp_path,
        "has no config.json and lacks model.safetensors; .* expected a Hugging Face checkpoint folder",
    )


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5, "b": "c"}}']
)
def test_index_without_weight_map(folder: Path, content: str) -> None:
    (folder / INDEX).write_text(content)
    refused(folder, "has no readable weight_map")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "below/other.safetensors"])
def test_index_that_names_a_file_outside(folder: Path, name: str) -> None:
    edit(folder, lambda index: index["weight_map"].update({"lm_head.weight": name}), name=INDEX)
    refused(folder, "names a file outside its folder")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "revision belongs to a model of the hub; .*checkpoint is a folder"),
        ("someone/model@v2", "give a revision once: revision=v1, or someone/model@v2"),
        ("llava-1.5-7b@v2", "give a revision once: revision=v1, or llava-1.5-7b@v2"),
    ],
)
def test_a_revision_where_none_belongs(folder: Path, model: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        open_checkpoint(model or str(folder), revision="v1")


def test_a_folder_may_have_an_at_sign_in_its_name(folder: Path) -> None:
    renamed = folder.rename(folder.parent / "model@v2")
    assert open_checkpoint(str(renamed)).revision is None


def test_a_relative_folder_that_is_missing_is_no_hub_id() -> None:
    refused("./llava-1.5-7b-hf", "no folder, alias or hub id is called ./llava-1.5-7b-hf")


def test_an_alias_with_a_revision_keeps_its_prune_layer(checkpoint: Callable[[str], Path]) -> None:
    opened = open_checkpoint(str(checkpoint("deep")))  # 36 layers
    options = BuildOptions(model="llava-1.5-13b@v1", output=Path("bundle"))
    assert resolve_spec(options, opened).schedule[1].after_layer == 18


def test_unknown_alias() -> None:
    refused("llava-1.5-7", "is called llava-1.5-7; did you mean llava-1.5-7b?")
    refused("nothing-alike", "aliases are llava-1.5-7b, llava-1.5-13b")


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    refused(folder / "config.json", "is a file; give the checkpoint's folder")


@pytest.mark.parametrize(
    ("model", "hub_id"),
    [
        ("someone/their-model", "someone/their-model"),
        ("someone/llava-1.5-7b-ft", "someone/llava-1.5-7b-ft"),
        ("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf"),
        ("llava-1.5-7b@v1", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_hub_id_without_network(tmp_path: Path, model: str, hub_id: str) -> None:
    output = run_offline(model, tmp_path)
    assert output.startswith(f"PlatformError could not get {hub_id} from the Hugging Face hub")
    assert "give its folder: model=PATH/TO/FOLDER" in output
