"""The vision graph: the tower, STAR stage 1, the projector.

Inputs ``pixel_values [1, 3, H, W]`` and ``stage1_slots [N1]``; outputs
``image_features [1, N1, C]`` and ``image_indices [1, N1]``. Unpruned: no slots,
no indices, all ``P`` patches.
"""

from torch import Tensor, nn

from star_export.graphs.layers import ACTIVATIONS, Linear
from star_export.graphs.ops import topk_gather
from star_export.graphs.towers import TOWERS
from star_export.specs import ExportSpec, ModelSpec


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
        self.pruned = spec.star is not None
        self.vision_tower = TOWERS[spec.model.vision.model_type](spec.model.vision)
        self.multi_modal_projector = Projector(spec.model)

    def forward(self, pixel_values: Tensor, stage1_slots: Tensor | None = None) -> tuple[Tensor, ...]:
        hidden, weights = self.vision_tower(pixel_values, want_map=self.pruned)
        patches = hidden[:, 1:]  # CLS is no candidate
        if weights is None or stage1_slots is None:
            return (self.multi_modal_projector(patches).to(pixel_values.dtype),)
        # Attention received: mean over heads and patch rows, CLS row left out (STAR stage 1).
        scores = weights[:, :, 1:, 1:].mean(dim=(1, 2))  # [1, P]
        kept, indices = topk_gather(patches, scores, stage1_slots)
        return self.multi_modal_projector(kept).to(pixel_values.dtype), indices
