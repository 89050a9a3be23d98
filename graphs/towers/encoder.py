"""The transformer layers of a vision tower: full self-attention between norms, named as in CLIP."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_export.graphs.layers import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    as_dtype,
    attention_map,
    merge_heads,
    split_heads,
)
from star_export.specs import VisionSpec


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
        projected = (as_dtype(f(x), self.dtype) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (split_heads(part, self.heads) for part in projected)
        if want_map:
            weights = attention_map(q, k)  # [T, H, N, N]
            attended = as_dtype(weights, v.dtype) @ v
        else:
            weights, attended = None, F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(merge_heads(attended)), weights


class VisionMLP(nn.Module):
    """Two linear layers around the activation."""

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
    """The stack of layers, up to the last one whose output is used."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.num_layers, self.feature_layers = spec.num_layers, spec.feature_layers
        self.layers = nn.ModuleList(VisionLayer(spec) for _ in range(spec.num_layers))

    def forward(self, x: Tensor, *, want_map: bool) -> tuple[Tensor, Tensor | None]:
        """Used hidden states side by side ``[T, N, W * used]``, and the last layer's map ``[T, H, N, N]``."""
        weights, states = None, {0: x}
        for number, layer in self.layers.named_children():  # `star_export.graphs.alike` may leave some out
            index = int(number) + 1
            x, weights = layer(x, want_map=want_map and index == self.num_layers)
            states[index] = x
        used = [states[index] for index in self.feature_layers]
        return used[0] if len(used) == 1 else torch.cat(used, dim=-1), weights
