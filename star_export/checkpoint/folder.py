"""The files of a checkpoint folder: which hold the weights, and what a folder is that holds none.

People give what they have: an adapter, the original repository's layout, pickled weights, a clone
without Git LFS. Each is answered with what it is and the way to what can be read.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from star_export.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_CONVERTED = (
    "give a checkpoint in Hugging Face layout, such as llava-hf/llava-1.5-7b-hf, or convert this one with "
    "transformers' models/llava/convert_llava_weights_to_hf.py"
)


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse a file that ``git clone`` left as a pointer.

    Raises:
        CheckpointError: If it is one.
    """
    with path.open("rb") as file:
        pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    if pointer:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in {path.parent}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: If it is something else.
    """
    refuse_lfs_pointer(path)
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError(f"found {type(data).__name__}")
    except ValueError as error:
        raise CheckpointError(f"{path} is not a JSON object: {error}") from error
    return data


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder in Hugging Face layout.

    Raises:
        CheckpointError: If the folder is something else, with what it is.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} {_without_config(folder)}")
    config = read_json(path)
    architectures = str(config.get("architectures"))
    if "mm_vision_tower" in config or re.search(r"Llava\w+ForCausalLM", architectures):
        raise CheckpointError(f"{folder} has the layout of the original LLaVA repository; {_CONVERTED}")
    return config


def _without_config(folder: Path) -> str:
    """What a folder without ``config.json`` is."""
    names = {path.name for path in folder.iterdir()}
    if not names:
        return "is empty; expected a Hugging Face checkpoint folder"
    if "adapter_config.json" in names:
        return _adapter(read_json(folder / "adapter_config.json"))
    below = sorted(name for name in names if (folder / name / "config.json").is_file())
    if below:
        return f"has no config.json, but {', '.join(below)} below it has; give {folder / below[0]}"
    if any(name.endswith(".safetensors") for name in names):
        return "has no config.json; get it from the model's page"
    return f"has no config.json and {no_weights(names)}; expected a Hugging Face checkpoint folder"


def _adapter(config: dict[str, Any]) -> str:
    base = config.get("base_model_name_or_path") or "its base model"
    return (
        f"is a {config.get('peft_type', 'PEFT')} adapter for {base}, not a whole model; merge the two with "
        "peft (merge_and_unload, then save_pretrained) and give that folder"
    )


def no_weights(names: Collection[str]) -> str:
    """What a folder with these files, but without safetensors weights, has instead."""
    if {"manifest.json", "graphs"} <= set(names):
        return "is a bundle, which is built already; give the checkpoint that it was made from"
    if any(name.startswith("mm_projector.") for name in names):
        return f"holds a projector only, without vision tower and decoder; {_CONVERTED}"
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
        return f"holds GGUF weights ({gguf[0]}), which are made for llama.cpp; give the original checkpoint"
    if pickled := sorted(name for name in names if name.endswith(_PICKLED)):
        return (
            f"holds pickled weights ({pickled[0]}), which can run any code when they are read; if you trust "
            "them, save them as safetensors: LlavaForConditionalGeneration.from_pretrained(FOLDER)"
            ".save_pretrained(NEW)"
        )
    return "lacks model.safetensors; only safetensors weights are read"


def find_shards(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors: those of the index, the one file, or all shards.

    Raises:
        CheckpointError: If one is missing or a Git LFS pointer, or there are none.
    """
    present = {path.name for path in folder.iterdir()}
    if (folder / INDEX).is_file():
        names = _indexed(folder / INDEX)
    elif SINGLE_FILE in present:
        names = [SINGLE_FILE]
    else:
        names = _numbered(folder, present)
    if missing := [name for name in names if name not in present]:
        more = f" and {len(missing) - 3} more" if missing[3:] else ""
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing[:3])}{more} of {len(names)} weight files; get them again"
        )
    for name in names:
        refuse_lfs_pointer(folder / name)
    return [folder / name for name in names]


def _indexed(index: Path) -> list[str]:
    refuse_lfs_pointer(index)
    try:
        names = sorted({Path(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} has no readable weight_map: {error}") from error
    if any(name.name != str(name) for name in names):
        raise CheckpointError(f"{index} names a file outside its folder")
    return [str(name) for name in names]


def _numbered(folder: Path, present: Collection[str]) -> list[str]:
    """Shards without their index: their names say how many there are."""
    sets = {(match[1], match[3]) for name in present if (match := _SHARD.fullmatch(name))}
    if not sets:
        if "adapter_config.json" in present:
            raise CheckpointError(f"{folder} {_adapter(read_json(folder / 'adapter_config.json'))}")
        raise CheckpointError(f"{folder} {no_weights(present)}")
    if len(sets) > 1:
        found = ", ".join(sorted(f"{stem}-*-of-{count}" for stem, count in sets))
        raise CheckpointError(f"{folder} has several sets of shards ({found}) and no {INDEX}; leave one")
    [(stem, count)] = sets
    return [f"{stem}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
