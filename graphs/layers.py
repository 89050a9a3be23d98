"""Building blocks that the vision tower and the decoder share.

Parameters carry the names they have in a Hugging Face checkpoint, so weights
can be attached by name after export.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


class Linear(nn.Module):
    """``y = x @ weight + bias`` with ``weight [in, out]``.

    Checkpoints store ``[out, in]``; the weights file of a bundle stores this
    layout, so that no runtime has to transpose and copy when it loads.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, S, H*D] -> [B, H, S, D]``."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, H, S, D] -> [B, S, H*D]``."""
    batch, heads, tokens, width = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * width)


def attention_map(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention probabilities in float32, for scoring tokens.

    Args:
        query: ``[..., Q, D]``.
        key: ``[..., S, D]``; leading sizes broadcast against the query's.
        mask: bool ``[Q, S]``, True where a query may look.

    Returns:
        float32 ``[..., Q, S]``, each row summing to 1.
    """
    scale = query.shape[-1] ** -0.5
    logits = (query.float() * scale) @ key.float().transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
    return logits.softmax(dim=-1)
