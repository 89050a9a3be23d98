"""The scores that rank visual tokens, for every stage of a schedule.

Both printed formulas of STAR average over their softmax's own axis, which gives every token the same
score; docs/method.md derives the readings below. Another score is one function here, one line in its
table, and one test.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from star_export.graphs.layers import attention_map
from star_export.specs import RECEIVED, TEXT


@dataclass(frozen=True)
class LayerView:
    """What a score inside the decoder may look at: the layer that just ran, on one sequence of ``S`` tokens.

    Attributes:
        query: ``[1, H, S, D]``, rotated.
        key: ``[1, Hkv, S, D]``, rotated.
        query_rows: int64 ``[1, Q]``, places of the text tokens after the last image.
        visual: int64 ``[1, V]``, places of the visual tokens.
    """

    query: Tensor
    key: Tensor
    query_rows: Tensor
    visual: Tensor


def received(attention: Tensor) -> Tensor:
    """Attention that each patch receives from the patches: STAR's stage 1 (arXiv 2505.12359, section 3).

    Args:
        attention: float32 ``[T, H, P, P]`` of each tile: of the map of the last layer whose output is used,
            rows and columns of the patches; where there is a CLS, it was among the keys.

    Returns:
        float32 ``[T, P]``: the mean over heads and rows.
    """
    return attention.mean(dim=(1, 2))


def text(view: LayerView) -> Tensor:
    """Attention from the question: STAR's stage 2 (arXiv 2505.12359, section 3).

    Returns:
        float32 ``[1, S]``: the mean over heads and query rows of the causal attention map.
    """
    query, key = view.query, view.key
    groups = query.shape[1] // key.shape[1]
    rows = query[:, :, view.query_rows[0]]  # [1, H, Q, D]
    rows = rows.view(1, key.shape[1], groups, -1, rows.shape[-1])  # [1, Hkv, G, Q, D]
    visible = torch.arange(key.shape[2]) <= view.query_rows[0][:, None]  # [Q, S]
    return attention_map(rows, key[:, :, None], visible).mean(dim=(1, 2, 3))


#: Scores of the stage before the decoder: the tower's last attention map to a score per patch ``[T, P]``.
VISION_SCORES: dict[str, Callable[[Tensor], Tensor]] = {RECEIVED: received}

#: Scores of the stages inside it: a layer to a score per token ``[1, S]``, read at the visual ones only.
DECODER_SCORES: dict[str, Callable[[LayerView], Tensor]] = {TEXT: text}
