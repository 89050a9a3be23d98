"""The vision graph: CLIP, the stage before the decoder, projector.

Inputs ``pixel_values [1, 3, H, W]`` and ``stage1_slots [N1]``; outputs
``image_features [1, N1, C]`` and ``image_indices [1, N1]``. Unpruned: no slots,
no indices, all ``P`` patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_export.graphs.layers import ACTIVATIONS, LayerNorm, Linear, attention_map, merge_heads, split_heads
from star_export.graphs.ops import topk_gather
from star_export.graphs.scores import VISION_SCORES
from star_export.specs import ExportSpec, ModelSpec, VisionSpec


class VisionEmbeddings(nn.Module):
    """Patches as tokens behind a CLS token, plus learned positions."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, spec.patch_size, spec.patch_size, bias=False)
        self.position_embedding = nn.Embedding(spec.num_patches + 1, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixels = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [1, P, W]
        cls = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight  # [1, 1+P, W]


class VisionAttention(nn.Module):
    """Full self-attention; can hand out its attention map."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.heads = spec.num_heads
        self.dtype = torch.get_default_dtype()  # of the fused attention, also where weights are float32
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Linear(spec.hidden_size, spec.hidden_size, bias=True) for _ in range(4)
        )

    def forward(self, x: Tensor, *, want_map: bool) -> tuple[Tensor, Tensor | None]:
        projected = (f(x).to(self.dtype) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (split_heads(part, self.heads) for part in projected)
        if want_map:
            weights = attention_map(q, k)  # [1, H, 1+P, 1+P]
            attended = weights.to(v.dtype) @ v
        else:
            weights, attended = None, F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(merge_heads(attended)), weights


class VisionMLP(nn.Module):
    """Two linear layers around CLIP's activation."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.act = ACTIVATIONS[spec.hidden_act]
        self.fc1 = Linear(spec.hidden_size, spec.intermediate_size, bias=True)
        self.fc2 = Linear(spec.intermediate_size, spec.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class VisionLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.self_attn = VisionAttention(spec)
        self.layer_norm2 = LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.mlp = VisionMLP(spec)

    def forward(self, x: Tensor, *, want_map: bool) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.self_attn(self.layer_norm1(x), want_map=want_map)
        x = x + attended
        return x + self.mlp(self.layer_norm2(x)), weights


class VisionEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(spec) for _ in range(spec.num_layers))

    def forward(self, x: Tensor, *, want_map: bool) -> tuple[Tensor, Tensor | None]:
        weights = None
        for index, layer in enumerate(self.layers, start=1):
            x, weights = layer(x, want_map=want_map and index == len(self.layers))
        return x, weights


class VisionTower(nn.Module):
    """CLIP's layers up to the one whose output LLaVA selects."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(spec)
        self.pre_layrnorm = LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.encoder = VisionEncoder(spec)

    def forward(self, pixel_values: Tensor, *, want_map: bool) -> tuple[Tensor, Tensor | None]:
        """Hidden states ``[1, 1+P, W]`` and the last layer's map ``[1, H, 1+P, 1+P]``."""
        hidden: tuple[Tensor, Tensor | None] = self.encoder(
            self.pre_layrnorm(self.embeddings(pixel_values)), want_map=want_map
        )
        return hidden


class Projector(nn.Module):
    """LLaVA-1.5's two-layer MLP from vision width to decoder width."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width, bias = spec.text.hidden_size, spec.projector_bias
        self.act = ACTIVATIONS[spec.projector_act]
        self.linear_1 = Linear(spec.vision.hidden_size, width, bias=bias)
        self.linear_2 = Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class VisionGraph(nn.Module):
    """Picture in, projected visual tokens out."""

    def __init__(self, spec: ExportSpec) -> None:
        super().__init__()
        self.score = VISION_SCORES[spec.stage1.score] if spec.stage1 else None
        self.vision_tower = VisionTower(spec.model.vision)
        self.multi_modal_projector = Projector(spec.model)

    def forward(self, pixel_values: Tensor, stage1_slots: Tensor | None = None) -> tuple[Tensor, ...]:
        hidden, weights = self.vision_tower(pixel_values, want_map=self.score is not None)
        patches = hidden[:, 1:]  # CLS is no candidate
        if self.score is None or weights is None or stage1_slots is None:
            return (self.multi_modal_projector(patches).to(pixel_values.dtype),)
        kept, indices = topk_gather(patches, self.score(weights), stage1_slots)
        return self.multi_modal_projector(kept).to(pixel_values.dtype), indices
