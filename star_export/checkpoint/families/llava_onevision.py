"""LLaVA-OneVision: one picture is cut into tiles, and a large grid scaled down; several are not cut."""

import re
from pathlib import Path
from typing import Any

from star_export.checkpoint.families.parts import join, pinpoints
from star_export.errors import CheckpointError
from star_export.specs import ModelSpec, Tiling


def model_spec(config: Any, folder: Path) -> ModelSpec:
    """Shape of a model from its ``LlavaOnevisionConfig``.

    Raises:
        CheckpointError: If a part is not supported, or parts do not fit each other.
    """
    ratio = config.vision_aspect_ratio
    limit = re.fullmatch(r"anyres_max_([1-9]\d{0,3})", ratio)
    if limit is None:
        raise CheckpointError(f"vision_aspect_ratio {ratio!r} is not supported; supported: anyres_max_N")
    return join(
        config, folder, Tiling(pinpoints=pinpoints(config), max_grid=int(limit[1]), several_whole=True)
    )
