"""CLIP's vision tower."""

import torch
from torch import Tensor, nn

from star_export.graphs.layers import LayerNorm, as_dtype, merge_places
from star_export.graphs.towers.encoder import VisionEncoder
from star_export.specs import VisionSpec


class CLIPEmbeddings(nn.Module):
    """Patches as tokens behind a CLS token, plus learned positions."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, spec.patch_size, spec.patch_size, bias=False)
        self.position_embedding = nn.Embedding(spec.num_patches + 1, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixels = as_dtype(pixel_values, self.patch_embedding.weight.dtype)
        patches = merge_places(self.patch_embedding(pixels))  # [T, P, W]
        cls = as_dtype(self.class_embedding, patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight  # [T, 1+P, W]


class CLIPVisionTower(nn.Module):
    """CLIP's layers up to the one whose output LLaVA selects."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.embeddings = CLIPEmbeddings(spec)
        self.pre_layrnorm = LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.encoder = VisionEncoder(spec)

    def forward(self, pixel_values: Tensor, *, want_map: bool) -> tuple[Tensor, Tensor | None]:
        """Used hidden states ``[T, 1+P, W * used]`` and the last layer's map ``[T, H, 1+P, 1+P]``."""
        hidden: tuple[Tensor, Tensor | None] = self.encoder(
            self.pre_layrnorm(self.embeddings(pixel_values)), want_map=want_map
        )
        return hidden
