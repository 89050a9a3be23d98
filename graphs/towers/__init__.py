"""Vision towers by the ``model_type`` of their spec; `star_export.checkpoint.towers` makes the specs."""

from collections.abc import Callable

from torch import nn

from star_export.graphs.towers.clip import CLIPVisionTower
from star_export.graphs.towers.siglip import SiglipVisionTower
from star_export.specs import VisionSpec

TOWERS: dict[str, Callable[[VisionSpec], nn.Module]] = {
    "clip_vision_model": CLIPVisionTower,
    "siglip_vision_model": SiglipVisionTower,
}
