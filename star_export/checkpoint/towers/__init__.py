"""Vision towers by the ``model_type`` of their config."""

from collections.abc import Callable
from typing import Any

from star_export.checkpoint.supported import require_supported
from star_export.checkpoint.towers import clip
from star_export.specs import VisionSpec

#: Their modules are in `star_export.graphs.towers`.
TOWERS: dict[str, Callable[[Any, int], VisionSpec]] = {
    "clip_vision_model": clip.vision_spec,
}


def vision_spec(config: Any, num_layers: int) -> VisionSpec:
    """Shape of a vision tower up to its layer ``num_layers``.

    Raises:
        CheckpointError: If the tower is not supported.
    """
    require_supported("vision tower", config.model_type, TOWERS)
    return TOWERS[config.model_type](config, num_layers)
