"""What the towers share: square pictures as square patches, then layers of full self-attention."""

from typing import Any

from star_export.checkpoint.supported import ACTIVATIONS, require_supported
from star_export.errors import CheckpointError
from star_export.specs import FeatureSelect, VisionSpec


def encoder_spec(
    config: Any, feature_layers: tuple[int, ...], feature_select: FeatureSelect, *, has_cls: bool
) -> VisionSpec:
    """Shape of a tower from its config.

    Args:
        config: Of its tower's class.
        feature_layers: Hidden states that are projected; 0 is the embeddings.
        feature_select: ``full`` for all its tokens, ``default`` for all but the first.
        has_cls: Whether a CLS token stands before the patches.

    Raises:
        CheckpointError: If its activation is not supported, or sizes do not fit each other.
    """
    require_supported("vision activation", config.hidden_act, ACTIVATIONS)
    image_size, patch_size = config.image_size, config.patch_size
    sides = isinstance(image_size, int) and isinstance(patch_size, int)  # the classes take pairs too
    if not sides or not 1 <= patch_size <= image_size:
        raise CheckpointError(f"image_size {image_size} has no square patches of patch_size {patch_size}")
    width, heads = config.hidden_size, config.num_attention_heads
    if heads < 1 or width % heads:
        raise CheckpointError(f"the tower's hidden_size {width} is no multiple of its {heads} heads")
    return VisionSpec(
        model_type=config.model_type,
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=width,
        intermediate_size=config.intermediate_size,
        num_layers=max(feature_layers),
        num_heads=heads,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        feature_layers=feature_layers,
        has_cls=has_cls,
        feature_select=feature_select,
    )
