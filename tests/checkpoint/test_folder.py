"""What people give instead of a checkpoint folder, or as one: each works, or is refused with what it is."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.errors import StarExportError
from star_export.testing.checkpoints import PRESETS, make_checkpoint
from star_export.validation.reference import Reference

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint whose weights are one file."""
    shape = replace(PRESETS["mha"], image_size=56, patch_size=7, layers=2, vision_layers=2, shard_size="1GB")
    return make_checkpoint(tmp_path_factory.mktemp("base"), shape)


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy of it, free to be changed."""
    return Path(shutil.copytree(base, tmp_path / "checkpoint"))


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


def refused(model: Path | str, message: str) -> None:
    with pytest.raises(StarExportError, match=message):
        open_checkpoint(str(model))


def original_layout(folder: Path) -> None:
    write(
        folder / "config.json",
        {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        },
    )
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name.replace("multi_modal_projector.linear_1", "mm_projector.0"): w for name, w in weights.items()},
        folder / "model.safetensors",
    )


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def adapter(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    write(
        folder / "adapter_config.json",
        {"peft_type": "LORA", "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"},
    )


def adapter_with_config(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    write(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "a/b"})


def projector(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "mm_projector.bin")


def gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-q4.gguf")


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(LFS_POINTER)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def one_level_up(folder: Path) -> None:
    inner = folder.rename(folder.parent / "model")
    folder.mkdir()
    inner.rename(folder / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            original_layout,
            "has the layout of the original LLaVA repository; give a checkpoint in Hugging Face",
        ),
        (pickled, r"holds pickled weights \(pytorch_model.bin\), .* save them as safetensors"),
        (
            adapter,
            "is a LORA adapter for llava-hf/llava-1.5-7b-hf, not a whole model; merge the two with peft",
        ),
        (adapter_with_config, "is a LORA adapter for a/b, not a whole model"),
        (projector, "holds a projector only, without vision tower and decoder; give a checkpoint"),
        (gguf, r"holds GGUF weights \(model-q4.gguf\), .* give the original checkpoint"),
        (pointer, "model.safetensors is a Git LFS pointer, not the file itself; run `git lfs pull` in"),
        (empty, "is empty; expected a Hugging Face checkpoint folder"),
        (one_level_up, "has no config.json, but model below it has; give .*/checkpoint/model$"),
    ],
)
def test_what_a_folder_is(folder: Path, change: Callable[[Path], None], message: str) -> None:
    change(folder)
    refused(folder, message)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "https://huggingface.co/llava-hf/llava-1.5-7b-hf",
            "give the model's id: model=llava-hf/llava-1.5-7b-hf",
        ),
        ("https://hf.co/a/b/tree/main", "give the model's id: model=a/b"),
        ("http://example.org", "give the model's id: model=ORGANISATION/NAME"),
    ],
)
def test_web_addresses(model: str, message: str) -> None:
    refused(model, f"is a web address; {message}$")


def test_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    refused(tmp_path / "model.gguf", "is a GGUF file, made for llama.cpp; give the checkpoint's folder")


def split(folder: Path, *, again: int = 0) -> None:
    """Two shards without an index, of which ``again`` tensors are in both."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for part, some in ((1, names[:20]), (2, names[20 - again :])):
        save_file({name: weights[name] for name in some}, folder / f"model-{part:05}-of-00002.safetensors")


def test_shards_without_an_index(base: Path, folder: Path) -> None:
    split(folder)
    whole, found = open_checkpoint(str(base)), open_checkpoint(str(folder))
    assert set(found.tensors) == set(whole.tensors)
    for name in whole.tensors:
        assert torch.equal(found.tensor(name), whole.tensor(name))


def test_the_reference_loads_shards_without_an_index(base: Path, folder: Path) -> None:
    split(folder)
    whole, found = (dict(Reference(f).model.named_parameters()) for f in (base, folder))
    assert set(found) == set(whole)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_shards_without_an_index_that_are_not_all_there(folder: Path) -> None:
    split(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    refused(folder, "lacks model-00001-of-00002.safetensors of 2 weight files; get them again")


def test_a_tensor_in_two_shards(folder: Path) -> None:
    split(folder, again=1)
    refused(folder, "twice, in model-00001-of-00002.safetensors and model-00002-of-00002.safetensors")


def test_two_sets_of_shards(folder: Path) -> None:
    split(folder)
    (folder / "other-00001-of-00003.safetensors").touch()
    refused(folder, r"several sets of shards \(model-\*-of-00002, other-\*-of-00003\)")
