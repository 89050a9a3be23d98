"""LLaVA-NeXT (v1.6): a picture is cut into tiles."""

from pathlib import Path
from typing import Any

from star_export.checkpoint.families.parts import join, pinpoints
from star_export.specs import ModelSpec, Tiling


def model_spec(config: Any, folder: Path) -> ModelSpec:
    """Shape of a model from its ``LlavaNextConfig``.

    Raises:
        CheckpointError: If a part is not supported, or parts do not fit each other.
    """
    return join(config, folder, Tiling(pinpoints=pinpoints(config), max_grid=None, several_whole=False))
