"""The vision graph: the tower, the stage before the decoder, the projector.

Inputs ``pixel_values [1, 3, H, W]`` and ``stage1_slots [N1]``; outputs
``image_features [1, N1, C]`` and ``image_indices [1, N1]``. Unpruned: no slots,
no indices, all ``P`` patches.
"""

from torch import Tensor, nn

from star_export.graphs.layers import ACTIVATIONS, Linear
from star_export.graphs.ops import topk_gather
from star_export.graphs.scores import VISION_SCORES
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
        self.score = VISION_SCORES[spec.stage1.score] if spec.stage1 else None
        self.vision_tower = TOWERS[spec.model.vision.model_type](spec.model.vision)
        self.multi_modal_projector = Projector(spec.model)

    def forward(self, pixel_values: Tensor, stage1_slots: Tensor | None = None) -> tuple[Tensor, ...]:
        hidden, weights = self.vision_tower(pixel_values, want_map=self.score is not None)
        patches = hidden[:, 1:]  # CLS is no candidate
        if self.score is None or weights is None or stage1_slots is None:
            return (self.multi_modal_projector(patches).to(pixel_values.dtype),)
        kept, indices = topk_gather(patches, self.score(weights), stage1_slots)
        return self.multi_modal_projector(kept).to(pixel_values.dtype), indices
