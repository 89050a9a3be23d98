"""Vision towers by the ``model_type`` of their config."""

from collections.abc import Callable
from typing import Any

from star_export.checkpoint.supported import require_supported
from star_export.checkpoint.towers import clip, siglip
from star_export.errors import CheckpointError
from star_export.specs import FeatureSelect, VisionSpec

#: Config, hidden states to use, and how their tokens are selected -> shape.
#: Their modules are in `star_export.graphs.towers`.
TOWERS: dict[str, Callable[[Any, tuple[int, ...], FeatureSelect], VisionSpec]] = {
    "clip_vision_model": clip.vision_spec,
    "siglip_vision_model": siglip.vision_spec,
}


def vision_spec(config: Any, feature_layer: object, feature_select: FeatureSelect) -> VisionSpec:
    """Shape of a vision tower up to the last layer whose output is projected.

    Args:
        config: Its part of the model's config.
        feature_layer: Which of its hidden states are projected, as the whole model's config says.
        feature_select: The config's ``vision_feature_select_strategy``.

    Raises:
        CheckpointError: If the tower is not supported or has no such layer.
    """
    require_supported("vision tower", config.model_type, TOWERS)
    require_supported("vision_feature_select_strategy", feature_select, ("default", "full"))
    given = feature_layer if isinstance(feature_layer, list | tuple) else (feature_layer,)
    layers = tuple(_hidden_state(layer, config.num_hidden_layers) for layer in given)
    if not max(layers, default=0):
        raise CheckpointError(f"vision_feature_layer {feature_layer!r} takes no layer of the tower")
    return TOWERS[config.model_type](config, layers, feature_select)


def _hidden_state(layer: object, count: int) -> int:
    """The hidden state of a tower of ``count`` layers that a config means: 0 is the embeddings."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise CheckpointError(f"vision_feature_layer {layer!r} is not supported; expected a layer or a list")
    state = layer if layer >= 0 else count + 1 + layer
    if not 0 <= state <= count:
        raise CheckpointError(f"vision_feature_layer {layer} is outside the {count}-layer tower")
    return state
