"""LLaVA-1.5 and LLaVA-Interleave: a picture is one square tile."""

from pathlib import Path
from typing import Any

from star_export.checkpoint.families.parts import join
from star_export.specs import ModelSpec


def model_spec(config: Any, folder: Path) -> ModelSpec:
    """Shape of a model from its ``LlavaConfig``.

    Raises:
        CheckpointError: If a part is not supported, or parts do not fit each other.
    """
    return join(config, folder)
