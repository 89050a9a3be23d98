"""A checkpoint in transformers, as the reference needs it."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.folder import INDEX, find_shards
from star_export.checkpoint.scheme import read_scheme
from star_export.checkpoint.tensors import canonical_module, read_tensor
from star_export.errors import CheckpointError
from star_export.files import write_json
from star_export.graphs.unpack import packed_layer


def load_model(folder: Path, *, dtype: torch.dtype, attention: str) -> Any:
    """The checkpoint in transformers; shards may lack their index, and linear layers be packed.

    Raises:
        CheckpointError: If transformers cannot load it.
    """
    shards = find_shards(folder)
    if read_scheme(folder) is not None:
        return load_unpacked(folder, dtype=dtype, attention=attention)
    with tempfile.TemporaryDirectory() as scratch:
        source = folder
        if len(shards) > 1 and not (folder / INDEX).is_file():
            source = Path(scratch)
            _write_index(source, shards)
            for name in ("config.json", "generation_config.json"):
                if (folder / name).is_file():
                    shutil.copy(folder / name, source)
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                source, dtype=dtype, attn_implementation=attention, local_files_only=True
            )
        except Exception as error:  # transformers raises many unrelated types
            raise CheckpointError(f"transformers cannot load {folder}: {error}") from error
    return model.eval()


def load_unpacked(folder: Path, *, dtype: torch.dtype, attention: str) -> Any:
    """A checkpoint with packed layers in transformers, which gets their values.

    Raises:
        CheckpointError: If a part is missing, or transformers cannot load it.
    """
    checkpoint = open_checkpoint(str(folder.absolute()))
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(config)
    weights = {stored.name: read_tensor(stored).to(dtype) for stored in checkpoint.tensors.values()}
    for name, module in empty.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        own = canonical_module(name, config.model_type)
        if layer := packed_layer(checkpoint, own, module.in_features, module.out_features):
            weights[f"{name}.weight"] = layer.values().T.to(dtype)
    model = type(empty).from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, attn_implementation=attention
    )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def _write_index(folder: Path, shards: list[Path]) -> None:
    """An index in ``folder`` of shards that stay where they are."""
    places: dict[str, str] = {}
    for path in shards:
        with safe_open(path, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), str(path.resolve()))
    write_json(folder / INDEX, {"metadata": {}, "weight_map": places})
