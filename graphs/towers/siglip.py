"""SigLIP's vision tower."""

from torch import Tensor, nn

from star_export.graphs.layers import as_dtype, merge_places
from star_export.graphs.towers.encoder import VisionEncoder
from star_export.specs import VisionSpec


class SiglipEmbeddings(nn.Module):
    """Patches as tokens, plus learned positions."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, spec.hidden_size, spec.patch_size, spec.patch_size)
        self.position_embedding = nn.Embedding(spec.num_patches, spec.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixels = as_dtype(pixel_values, self.patch_embedding.weight.dtype)
        patches = merge_places(self.patch_embedding(pixels))  # [T, P, W]
        positions: Tensor = self.position_embedding.weight
        return patches + positions


class SiglipVisionTower(nn.Module):
    """SigLIP's layers up to the last one whose output LLaVA selects; the norm behind them is left out."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(spec)
        self.encoder = VisionEncoder(spec)

    def forward(self, pixel_values: Tensor, *, want_map: bool) -> tuple[Tensor, Tensor | None]:
        """Used hidden states ``[T, P, W * used]`` and the last layer's map ``[T, H, P, P]``."""
        hidden: tuple[Tensor, Tensor | None] = self.encoder(self.embeddings(pixel_values), want_map=want_map)
        return hidden
