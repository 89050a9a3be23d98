"""Vision towers by the ``model_type`` of their config."""

from collections.abc import Callable
from typing import Any

from star_export.checkpoint.supported import require_supported
from star_export.checkpoint.towers import clip
from star_export.errors import CheckpointError
from star_export.specs import VisionSpec

#: Config, and layers to use -> shape. Their modules are in `star_export.graphs.towers`.
TOWERS: dict[str, Callable[[Any, int], VisionSpec]] = {
    "clip_vision_model": clip.vision_spec,
}


def vision_spec(config: Any, feature_layer: object) -> VisionSpec:
    """Shape of a vision tower up to the layer whose output is projected.

    Args:
        config: Its part of the model's config.
        feature_layer: Which of its hidden states that is, as the whole model's config says.

    Raises:
        CheckpointError: If the tower is not supported or has no such layer.
    """
    require_supported("vision tower", config.model_type, TOWERS)
    return TOWERS[config.model_type](config, _num_layers(feature_layer, config.num_hidden_layers))


def _num_layers(feature_layer: object, count: int) -> int:
    """Layers of ``count`` that give a hidden state."""
    if not isinstance(feature_layer, int):
        raise CheckpointError(f"vision_feature_layer {feature_layer!r} is not supported; expected one layer")
    # hidden_states[0] is the embedding, hidden_states[i] the output of layer i-1.
    layers = feature_layer if feature_layer >= 0 else count + 1 + feature_layer
    if not 1 <= layers <= count:
        raise CheckpointError(f"vision_feature_layer {feature_layer} is outside the {count}-layer tower")
    return layers
