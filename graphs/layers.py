"""Building blocks that the vision tower and the decoder share.

Parameters carry the names they have in a Hugging Face checkpoint, so weights
can be attached by name after export.

Every module computes in the element type of its weights, whatever its input
has: `ExportSpec.fp32_layers` keeps some in float32. Sums take the wider type,
so a residual stream that a float32 module has widened stays wide.
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


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in an element type, by the one operator for it that ONNX has; ``x`` itself if it has that."""
    return x if x.dtype == dtype else torch.ops.aten._to_copy(x, dtype=dtype)


def wider(x: Tensor, y: Tensor) -> torch.dtype:
    """The wider one of two element types."""
    return max(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in the element type of ``weight [out, in]``."""
    return as_dtype(x, weight.dtype) @ weight.t()


class Linear(nn.Module):
    """``y = x @ weight.T + bias`` with ``weight [out, in]``, as checkpoints have it.

    One row times such a weight reads it from front to back, without a copy in a layout of the runtime's own.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = multiply(x, self.weight)
        return y if self.bias is None else y + self.bias


class LayerNorm(nn.LayerNorm):
    """Layer norm; the runtime computes its statistics in float32.

    A wide input is narrowed after the norm, not before: it may be out of range.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = wider(x, self.weight)
        weight, bias = as_dtype(self.weight, wide), as_dtype(self.bias, wide)
        normed = F.layer_norm(as_dtype(x, wide), self.normalized_shape, weight, bias, self.eps)
        return as_dtype(normed, self.weight.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm; otherwise like :class:`LayerNorm`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = wider(x, self.weight)
        normed = F.rms_norm(as_dtype(x, wide), self.weight.shape, as_dtype(self.weight, wide), self.eps)
        return as_dtype(normed, self.weight.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, S, H*D] -> [B, H, S, D]``."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, H, S, D] -> [B, S, H*D]``."""
    batch, heads, tokens, width = x.shape
    x = x.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return x.view(batch, tokens, heads * width)


def merge_places(x: Tensor) -> Tensor:
    """``[T, C, H, W] -> [T, H*W, C]``."""
    tiles, width, rows, columns = x.shape
    return x.view(tiles, width, rows * columns).transpose(1, 2)


def attention_map(
    query: Tensor, key: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention probabilities in float32, for scoring tokens.

    Args:
        query: ``[..., Q, D]``.
        key: ``[..., S, D]``; leading sizes broadcast against the query's.
        mask: bool ``[Q, S]``, True where a query may look.
        bias: float32, added at each key: ``[1, S]``.

    Returns:
        float32 ``[..., Q, S]``, each row summing to 1.
    """
    scale = query.shape[-1] ** -0.5
    logits = (as_dtype(query, torch.float32) * scale) @ as_dtype(key, torch.float32).transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
    return logits.softmax(dim=-1)
