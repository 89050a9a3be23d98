"""The scores once more, for the reference: from transformers' own maps, in other words than the graphs'.

Each is the twin of a function in `star_export.graphs.scores`, with which it shares no code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from star_export.specs import scores as names


@dataclass(frozen=True)
class TilesSeen:
    """What the vision tower made of ``T`` tiles.

    Attributes:
        maps: float32 ``[T, H, N, N]``.
        first: The first patch among their rows and columns.
        features: Projected patches ``[T, P, C]``.
    """

    maps: Tensor
    first: int
    features: Tensor


@dataclass(frozen=True)
class LayerSeen:
    """What a decoder layer made of ``V`` visual tokens.

    Attributes:
        attention: float32 ``[H, Q, V]``, from the question's tokens.
        before: ``[V, C]``.
        after: ``[V, C]``.
        keys: ``[Hkv, V, D]``.
    """

    attention: Tensor
    before: Tensor
    after: Tensor
    keys: Tensor


def _received(seen: TilesSeen) -> Tensor:
    return seen.maps.mean(1)[:, seen.first :, seen.first :].mean(1)


def _cls(seen: TilesSeen) -> Tensor:
    return seen.maps.mean(1)[:, 0, seen.first :]


def _spread(seen: TilesSeen) -> Tensor:
    return torch.stack([_least_distances(x, x.pow(2).sum(-1).sqrt()) for x in seen.features])


def _peaks(seen: TilesSeen) -> Tensor:
    merits = _received(seen)
    distances = [_least_distances(x, merit) for x, merit in zip(seen.features, merits, strict=True)]
    return merits * torch.stack(distances)


def _least_distances(rows: Tensor, merit: Tensor) -> Tensor:
    """Of each row ``[N, C]``, the least cosine distance to those before it, in the order of merit ``[N]``."""
    order = torch.argsort(merit, descending=True, stable=True)
    ranked = torch.nn.functional.normalize(rows[order].double(), dim=-1)
    distances = [1.0 - float((ranked[:index] @ ranked[index]).max()) for index in range(1, len(rows))]
    found = torch.empty(len(rows))
    found[order] = torch.tensor([2.0, *distances])
    return found


def _text(seen: LayerSeen) -> Tensor:
    return seen.attention.mean(0).mean(0)


def _last(seen: LayerSeen) -> Tensor:
    return seen.attention.mean(0)[-1]


def _raters(seen: LayerSeen) -> Tensor:
    rows = seen.attention.mean(0)
    return _best(rows).mean(0)


def _visual_heads(seen: LayerSeen) -> Tensor:
    return _best(seen.attention.mean(1)).mean(0)


def _best(rows: Tensor) -> Tensor:
    """Rows whose sum is not below the mean sum."""
    looks = rows.double().sum(-1)
    return rows[looks >= looks.mean().clamp(max=looks.max())]


def _text_peaks(seen: LayerSeen) -> Tensor:
    merit = _text(seen)
    return merit * _least_distances(seen.after, merit)


def _drift(seen: LayerSeen) -> Tensor:
    return (seen.after - seen.before).pow(2).sum(-1).sqrt()


def _key_norm(seen: LayerSeen) -> Tensor:
    return seen.keys.pow(2).sum(-1).sqrt().mean(0).reciprocal()


#: Before the decoder: a score of each patch ``[T, P]``.
PATCH_SCORES: dict[str, Callable[[TilesSeen], Tensor]] = {
    names.RECEIVED: _received,
    names.CLS: _cls,
    names.SPREAD: _spread,
    names.PEAKS: _peaks,
}

#: Inside it: a score of each visual token ``[V]``.
LAYER_SCORES: dict[str, Callable[[LayerSeen], Tensor]] = {
    names.TEXT: _text,
    names.LAST: _last,
    names.RATERS: _raters,
    names.VISUAL_HEADS: _visual_heads,
    names.TEXT_PEAKS: _text_peaks,
    names.DRIFT: _drift,
    names.KEY_NORM: _key_norm,
}


def stands_for(tokens: Tensor, stays: Tensor, counts: Tensor) -> Tensor:
    """How many tokens each that stays stands for: its own, and those of which it is the nearest.

    Args:
        tokens: ``[P, C]``.
        stays: bool ``[P]``.
        counts: ``[P]``, how many each stands for already.

    Returns:
        ``[N]``.
    """
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    kept, found = unit[stays], torch.zeros(int(stays.sum()))
    for token, count in zip(unit, counts, strict=True):
        like = kept @ token
        nearest = (like.max() - like <= 1e-4).nonzero()[:, 0]
        found[nearest] += count / len(nearest)
    return found
