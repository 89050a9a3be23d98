"""SigLIP: patches alone; the norm and the head behind its layers are not used, whatever the config says."""

from typing import Any

from star_export.checkpoint.towers.encoder import encoder_spec
from star_export.specs import FeatureSelect, VisionSpec


def vision_spec(config: Any, feature_layers: tuple[int, ...], feature_select: FeatureSelect) -> VisionSpec:
    """Shape of a tower from its ``SiglipVisionConfig``; see :func:`encoder_spec`."""
    return encoder_spec(config, feature_layers, feature_select, has_cls=False)
