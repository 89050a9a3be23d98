"""The vision graph: the tower, the projector, the stage before the decoder.

Where a picture is one tile: inputs ``pixel_values [1, 3, H, W]`` and ``stage1_slots [N1]``; outputs
``image_features [1, N1, C]`` and ``image_indices [1, N1]``. Unpruned: no slots, no indices, all tokens.
Where pictures are cut into tiles: `TiledVisionGraph`.
"""

import torch
from torch import Tensor, nn

from star_export.contract import ALWAYS_KEPT
from star_export.graphs.layers import ACTIVATIONS, Linear, as_dtype
from star_export.graphs.ops import drop_worst, topk_gather
from star_export.graphs.proportional import counted
from star_export.graphs.scores import OF_FEATURES, OF_MAPS, VISION_SCORES, PictureView
from star_export.graphs.towers import TOWERS
from star_export.specs import ExportSpec, ModelSpec


class Projector(nn.Module):
    """LLaVA-1.5's two-layer MLP from vision width to decoder width."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width, bias = spec.text.hidden_size, spec.projector_bias
        self.act = ACTIVATIONS[spec.projector_act]
        features = spec.vision.hidden_size * len(spec.vision.feature_layers)
        self.linear_1 = Linear(features, width, bias=bias)
        self.linear_2 = Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class Vision(nn.Module):
    """Parameters of both kinds of vision graph."""

    def __init__(self, spec: ExportSpec) -> None:
        super().__init__()
        vision, score = spec.model.vision, spec.stage1.score if spec.stage1 else None
        self.score = VISION_SCORES[score] if score else None
        self.of_features, self.of_maps = score in OF_FEATURES, score in OF_MAPS
        self.proportional = spec.proportional
        self.first = int(vision.feature_select == "default")  # the tower's first token that is used
        self.first_patch = max(self.first, int(vision.has_cls))
        self.vision_tower = TOWERS[vision.model_type](vision)
        self.multi_modal_projector = Projector(spec.model)

    def look(self, pixel_values: Tensor, *, project: bool) -> tuple[Tensor, Tensor | None]:
        """Used tokens of each tile ``[T, N, W]``, and their scores ``[T, N]`` if there is a stage.

        Tokens are projected, ``[T, N, C]``, if they have to be or the score looks at that.
        """
        hidden, weights = self.vision_tower(pixel_values, want_map=self.of_maps)
        tokens = hidden[:, self.first :] if self.first else hidden
        if project or self.of_features:
            tokens = self.multi_modal_projector(tokens)
        if self.score is None:
            return tokens, None
        patches = tokens[:, self.first_patch - self.first :]
        scores = self.score(PictureView(weights, self.first_patch, patches))
        if self.first_patch > self.first:  # CLS is a token among others behind the tower
            scores = torch.cat([torch.full_like(scores[:, :1], ALWAYS_KEPT), scores], dim=1)
        return tokens, scores


class VisionGraph(Vision):
    """A picture of one tile in, projected visual tokens out."""

    def forward(self, pixel_values: Tensor, stage1_slots: Tensor | None = None) -> tuple[Tensor, ...]:
        tokens, scores = self.look(pixel_values, project=self.score is None or self.proportional)
        if scores is None or stage1_slots is None:
            return (as_dtype(tokens, pixel_values.dtype),)
        kept, indices = topk_gather(tokens, scores, stage1_slots)
        if self.proportional:
            kept = counted(tokens, kept)
        elif not self.of_features:  # only what is kept needs the projector then
            kept = self.multi_modal_projector(kept)
        return as_dtype(kept, pixel_values.dtype), indices


class TiledVisionGraph(Vision):
    """All tiles of a picture in, its packed visual tokens out.

    Inputs ``pixel_values [T, 3, H, W]``, ``packed_index``, which says of what patch each of the ``P``
    visual tokens is, or that it is a newline, and ``stage1_drops [D1]`` or ``stage1_slots [N1]``; outputs
    ``image_features [1, N1, C]`` and ``image_indices [1, N1]``, where ``N1`` is ``P - D1``. Where a grid
    may be scaled down, a token is a mean of four patches, weighted by ``packed_weights``; so is its score.
    """

    def __init__(self, spec: ExportSpec) -> None:
        super().__init__(spec)
        self.image_newline = nn.Parameter(torch.empty(spec.model.text.hidden_size))

    def forward(
        self,
        pixel_values: Tensor,
        packed_index: Tensor,
        packed_weights: Tensor | None = None,
        stage1_drops: Tensor | None = None,
        stage1_slots: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        tokens, scores = self.look(pixel_values, project=True)
        features = packed(tokens.view(-1, tokens.shape[-1]), self.image_newline, packed_index, packed_weights)
        features = as_dtype(features, pixel_values.dtype)[None]  # [1, P, C]
        if scores is None:
            return (features,)
        # Where many are dropped, those that say nothing of the picture go first.
        newline = scores.new_full((1,), -ALWAYS_KEPT if stage1_drops is None else ALWAYS_KEPT)
        ranks = packed(scores.view(-1)[:, None], newline, packed_index, packed_weights).transpose(0, 1)
        if stage1_drops is not None:
            kept, indices = drop_worst(features, ranks, stage1_drops)
        else:
            assert stage1_slots is not None
            kept, indices = topk_gather(features, ranks, stage1_slots)
        return (counted(features, kept) if self.proportional else kept), indices


def packed(patches: Tensor, newline: Tensor, index: Tensor, weights: Tensor | None) -> Tensor:
    """Rows of ``patches`` and newlines in the order of the visual tokens.

    Args:
        patches: ``[T*N, C]``.
        newline: ``[C]``.
        index: int64 ``[P]``, or ``[P, 4]`` of a token that is a mean; negative for a newline.
        weights: float32 ``[P, 4]`` of the mean.

    Returns:
        ``[P, C]``.
    """
    is_newline = index < 0
    rows = patches[torch.where(is_newline, 0, index)]
    if weights is not None:
        rows = (as_dtype(rows, torch.float32) * weights[..., None]).sum(1)
        is_newline = is_newline[:, 0]
    return torch.where(is_newline[:, None], as_dtype(newline, rows.dtype), rows)
