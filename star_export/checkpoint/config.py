"""``config.json`` as transformers reads it: what a published one leaves out is its config class's default."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from star_export.checkpoint.families import FAMILIES
from star_export.checkpoint.folder import read_config
from star_export.checkpoint.scheme import read_scheme
from star_export.checkpoint.supported import require_supported
from star_export.errors import CheckpointError
from star_export.specs import ModelSpec
from star_export.typed import convert


def read_model(folder: Path) -> ModelSpec:
    """Shape of the model in a checkpoint folder.

    Raises:
        CheckpointError: If the folder is something else, or the model or its quantisation is not supported.
    """
    require_supported("model_type", read_config(folder).get("model_type"), FAMILIES)
    read_scheme(folder)
    config = _with_defaults(folder)
    model = FAMILIES[config.model_type].model_spec(config, folder)
    try:
        return convert(asdict(model), ModelSpec)
    except ValueError as error:
        raise CheckpointError(f"{folder} has no usable config: {error}") from error


def _with_defaults(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many unrelated types
        raise CheckpointError(f"transformers cannot read {folder / 'config.json'}: {error}") from error
