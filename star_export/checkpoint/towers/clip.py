"""CLIP: a CLS token before the patches, a norm before the layers."""

from typing import Any

from star_export.checkpoint.towers.encoder import encoder_spec
from star_export.specs import FeatureSelect, VisionSpec


def vision_spec(config: Any, feature_layers: tuple[int, ...], feature_select: FeatureSelect) -> VisionSpec:
    """Shape of a tower from its ``CLIPVisionConfig``; see :func:`encoder_spec`."""
    return encoder_spec(config, feature_layers, feature_select, has_cls=True)
