"""CLIP: a CLS token before the patches, a norm before the layers."""

from typing import Any

from star_export.checkpoint.supported import ACTIVATIONS, require_supported
from star_export.errors import CheckpointError
from star_export.specs import FeatureSelect, VisionSpec


def vision_spec(config: Any, feature_layers: tuple[int, ...], feature_select: FeatureSelect) -> VisionSpec:
    """Shape of a tower from its ``CLIPVisionConfig``.

    Args:
        config: It.
        feature_layers: Hidden states that are projected; 0 is the embeddings.
        feature_select: ``default`` for patches alone, ``full`` with CLS.

    Raises:
        CheckpointError: If its activation is not supported, or pictures are not squares of whole patches.
    """
    require_supported("vision activation", config.hidden_act, ACTIVATIONS)
    image_size, patch_size = config.image_size, config.patch_size
    sides = isinstance(image_size, int) and isinstance(patch_size, int)  # CLIPVisionConfig takes pairs too
    if not sides or patch_size < 1 or image_size % patch_size:
        raise CheckpointError(f"image_size {image_size} is no multiple of patch_size {patch_size}")
    return VisionSpec(
        model_type=config.model_type,
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=max(feature_layers),
        num_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        feature_layers=feature_layers,
        has_cls=True,
        feature_select=feature_select,
    )
