"""The scores that rank visual tokens, for every stage of a schedule; docs/methods.md has their formulas.

Another score is one function here, one line in its table and in `star_export.specs.scores`, its twin in
`star_export.validation.reference_scores`, and so one test. All are float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from star_export.graphs.layers import as_dtype, attention_map
from star_export.specs import scores as names


@dataclass(frozen=True)
class PictureView:
    """What a score before the decoder may look at: the ``P`` patches of ``T`` tiles, each alone.

    Attributes:
        maps: float32 ``[T, H, N, N]``, attention of the last layer whose output is used; None for a score
            that is not one of :data:`OF_MAPS`.
        first_patch: Which of its rows and columns is the first of a patch; CLS, if there is one, is before.
        features: ``[T, P, C]``, projected for a score of :data:`OF_FEATURES`.
    """

    maps: Tensor | None
    first_patch: int
    features: Tensor

    def attention(self, rows: slice) -> Tensor:
        """Rows of the maps at the patches, ``[T, H, rows, P]``."""
        assert self.maps is not None
        return self.maps[:, :, rows, self.first_patch :]


@dataclass(frozen=True)
class LayerView:
    """What a score inside the decoder may look at: the layer that just ran, on one sequence of ``S`` tokens.

    Attributes:
        query: ``[1, H, S, D]``, rotated.
        key: ``[1, Hkv, S, D]``, rotated.
        before: ``[1, S, C]``, what came into the layer.
        after: ``[1, S, C]``, what it made of that.
        query_rows: int64 ``[1, Q]``, places of the text tokens after the last image.
        visual: int64 ``[1, V]``, places of the visual tokens.
        bias: float32 ``[1, S]``, what proportional attention adds at each token; None without it.
    """

    query: Tensor
    key: Tensor
    before: Tensor
    after: Tensor
    query_rows: Tensor
    visual: Tensor
    bias: Tensor | None = None

    def attention(self) -> Tensor:
        """The causal map of the question's rows at the visual tokens, ``[H, Q, V]``."""
        query, key, rows = self.query, self.key, self.query_rows[0]
        groups = query.shape[1] // key.shape[1]
        asked = query[:, :, rows].view(1, key.shape[1], groups, -1, query.shape[-1])  # [1, Hkv, G, Q, D]
        visible = torch.arange(key.shape[2]) <= rows[:, None]  # [Q, S]
        maps = attention_map(asked, key[:, :, None], visible, self.bias)  # [1, Hkv, G, Q, S]
        maps = maps.index_select(-1, self.visual[0])
        return maps.view(query.shape[1], *maps.shape[-2:])


def received(view: PictureView) -> Tensor:
    """Attention that each patch receives from the patches: STAR's stage 1 (arXiv 2505.12359, section 3)."""
    return view.attention(slice(view.first_patch, None)).mean(dim=(1, 2))


def cls(view: PictureView) -> Tensor:
    """Attention that CLS pays to each patch (FasterVLM, arXiv 2412.01818)."""
    return view.attention(slice(1)).mean(dim=(1, 2))


def spread(view: PictureView) -> Tensor:
    """How unlike each patch is to all of a larger norm: those that are like none cover the picture."""
    features = as_dtype(view.features, torch.float32)
    return unlike_better(features, features.norm(dim=-1))


def peaks(view: PictureView) -> Tensor:
    """Attention received, times how unlike a patch is to all that receive more."""
    attention = received(view)
    return attention * unlike_better(as_dtype(view.features, torch.float32), attention)


def unlike_better(features: Tensor, merit: Tensor) -> Tensor:
    """The least cosine distance of each row from all that have more merit; the largest, 2, for the best row.

    The distance to denser points of density peaks clustering (Rodriguez and Laio, Science 344, 2014).

    Args:
        features: float32 ``[T, N, C]``.
        merit: float32 ``[T, N]``; of equals the first is the better one.

    Returns:
        float32 ``[T, N]``.
    """
    unit = F.normalize(features, dim=-1)
    like = unit @ unit.transpose(1, 2)  # [T, N, N]
    return 1.0 - torch.where(better(merit), like, -1.0).amax(dim=-1)


def better(merit: Tensor) -> Tensor:
    """Whether column j beats row i in ``merit [..., N]``: bool ``[..., N, N]``; of equals the first."""
    order = torch.arange(merit.shape[-1])
    mine, others = merit[..., :, None], merit[..., None, :]
    return (others > mine) | ((others == mine) & (order < order[:, None]))


def text(view: LayerView) -> Tensor:
    """Attention from the question, all heads and rows: STAR's stage 2 (arXiv 2505.12359, section 3)."""
    return view.attention().mean(dim=(0, 1))[None]


def last(view: LayerView) -> Tensor:
    """Attention from the last token (FastV, arXiv 2403.06764; PyramidDrop, arXiv 2410.17247)."""
    return view.attention()[:, -1].mean(dim=0)[None]


def raters(view: LayerView) -> Tensor:
    """Attention from the rows that look at the picture at least as much as the mean row does.

    SparseVLM's raters (arXiv 2410.04417), told from the layer's own map.
    """
    rows = view.attention().mean(dim=0)  # [Q, V]
    return _mean_of_best(rows, rows.sum(dim=-1))


def visual_heads(view: LayerView) -> Tensor:
    """Attention from the heads that look at the picture at least as much as the mean head does."""
    heads = view.attention().mean(dim=1)  # [H, V]
    return _mean_of_best(heads, heads.sum(dim=-1))


def _mean_of_best(rows: Tensor, weight: Tensor) -> Tensor:
    """The mean ``[1, V]`` of those of ``rows [N, V]`` whose weight ``[N]`` is not below the mean weight."""
    mean = torch.minimum(weight.mean(), weight.amax(dim=0))  # which of equals rounding may exceed
    best = as_dtype(weight >= mean, torch.float32)
    return (rows * best[:, None]).sum(dim=0)[None] / best.sum()


def text_peaks(view: LayerView) -> Tensor:
    """Attention from the question, times how unlike a token is to all that it looks at more.

    Relevance and spread at once, as CDPruner's conditional choice (arXiv 2506.10967), in one shot.
    """
    merit, rows = text(view), view.after[:, view.visual[0]]
    return merit * unlike_better(as_dtype(rows, torch.float32), merit)


def drift(view: LayerView) -> Tensor:
    """How far the layer moves a token (V2Drop, arXiv 2509.01552)."""
    before, after = (as_dtype(x[:, view.visual[0]], torch.float32) for x in (view.before, view.after))
    return (after - before).norm(dim=-1)


def key_norm(view: LayerView) -> Tensor:
    """The shorter its keys, the higher (arXiv 2406.11430; for visual tokens ViTCoP, arXiv 2601.17818)."""
    return 1.0 / as_dtype(view.key[:, :, view.visual[0]], torch.float32).norm(dim=-1).mean(dim=1)


#: Scores of the stage before the decoder: ``[T, P]``, one of each patch.
VISION_SCORES: dict[str, Callable[[PictureView], Tensor]] = {
    names.RECEIVED: received,
    names.CLS: cls,
    names.SPREAD: spread,
    names.PEAKS: peaks,
}

#: Of these, those that look at the projected features, so that all patches are projected.
OF_FEATURES = (names.SPREAD, names.PEAKS)
#: And those that look at the attention map.
OF_MAPS = (names.RECEIVED, names.CLS, names.PEAKS)

#: Scores of the stages inside it: ``[1, V]``, one of each visual token.
DECODER_SCORES: dict[str, Callable[[LayerView], Tensor]] = {
    names.TEXT: text,
    names.LAST: last,
    names.RATERS: raters,
    names.VISUAL_HEADS: visual_heads,
    names.TEXT_PEAKS: text_peaks,
    names.DRIFT: drift,
    names.KEY_NORM: key_norm,
}
