"""Proportional attention: a visual token that is kept counts for all that it stands for.

What is dropped takes its part of every softmax with it, so a model that weighs how much of a picture shows
something sees too much of what was kept. Adding the log of how many tokens each kept one stands for to its
logits gives it back (ToMe, arXiv 2210.09461, section 3). That log is the last channel of a visual token and,
in the decoder, a cache of one channel for each layer group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from star_export.graphs.layers import as_dtype

#: Cosines that rounding may tell apart: so near, two kept tokens share what is like both.
_TIE = 1e-4


def stand_for(tokens: Tensor, kept: Tensor, counts: Tensor | None = None) -> Tensor:
    """How many tokens each kept one stands for: those that are more like it than like another one.

    Args:
        tokens: ``[B, P, C]``, kept or not.
        kept: ``[B, N, C]``, some of them.
        counts: float32 ``[B, P]``, how many each of ``tokens`` stands for itself; one by default.

    Returns:
        float32 ``[B, N]``, the same in all.
    """
    like = F.normalize(as_dtype(tokens, torch.float32), dim=-1) @ F.normalize(
        as_dtype(kept, torch.float32), dim=-1
    ).transpose(1, 2)
    nearest = as_dtype(like >= like.amax(dim=-1, keepdim=True) - _TIE, torch.float32)  # [B, P, N]
    parts = nearest / nearest.sum(dim=-1, keepdim=True)
    return (parts if counts is None else parts * counts[..., None]).sum(dim=1)


def counted(tokens: Tensor, kept: Tensor) -> Tensor:
    """``kept [B, N, C]`` of ``tokens [B, P, C]``, with the log of what each stands for as another channel."""
    return torch.cat([kept, as_dtype(stand_for(tokens, kept).log(), kept.dtype)[..., None]], dim=-1)


def at_places(values: Tensor, places: Tensor, tokens: int) -> Tensor:
    """``values [1, V]`` at ``places [1, V]`` of a sequence, 0 elsewhere: ``[1, tokens]``."""
    return values.new_zeros((1, tokens)).scatter(1, places, values)


def regrouped(bias: Tensor, before: Tensor, places: Tensor, after: Tensor, kept: Tensor) -> Tensor:
    """The bias behind a stage inside the decoder: who stays stands for who goes, and for whom that stood.

    Args:
        bias: float32 ``[1, S]``, the log of what each token before the stage stands for; 0 of text.
        before: ``[1, S, C]``.
        places: int64 ``[1, V]``, visual tokens before it.
        after: ``[1, S', C]``.
        kept: int64 ``[1, N]``, visual tokens behind it.

    Returns:
        float32 ``[1, S']``.
    """
    counts = bias.gather(1, places).exp()
    stands = stand_for(before[:, places[0]], after[:, kept[0]], counts)
    return at_places(stands.log(), kept, after.shape[1])


def causal(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add for a prompt whose tokens have ``bias [1, S]``: ``[1, 1, S, S]``."""
    order = torch.arange(bias.shape[1])
    return biased(order <= order[:, None], as_dtype(bias, dtype)[:, None, None])


def biased(visible: Tensor, bias: Tensor) -> Tensor:
    """A mask to add: ``bias`` where ``visible``, a bool of the same sizes; nothing gets through elsewhere."""
    return torch.where(visible, bias, torch.finfo(bias.dtype).min)


def as_cache(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """``bias [B, C]`` as it is written behind that of the tokens before: ``[B, 1, C, 1]``."""
    return as_dtype(bias, dtype)[:, None, :, None]
