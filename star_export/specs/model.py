"""The shape of a model: plain numbers and names from its config."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from star_export.specs.tiling import Tiling
from star_export.specs.values import Count, Epsilon, Layers, Side, TokenId

#: Hugging Face's ``vision_feature_select_strategy``.
FeatureSelect = Literal["default", "full"]


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """A vision tower up to the last layer whose output LLaVA uses.

    Attributes:
        model_type: Hugging Face's name of its kind, such as ``clip_vision_model``.
        num_layers: Layers that are exported; the last one's attention map scores stage 1.
        feature_layers: Hidden states that are projected, side by side: 0 is the embeddings, ``i`` the
            output of the ``i``-th layer.
        has_cls: Whether a class token stands before the patches.
        feature_select: ``full`` for all tokens; ``default`` leaves out the first, which should be CLS.
    """

    model_type: str
    image_size: Side
    patch_size: Side
    hidden_size: Count
    intermediate_size: Count
    num_layers: Layers
    num_heads: Count
    hidden_act: str
    layer_norm_eps: Epsilon
    feature_layers: tuple[Annotated[int, Meta(ge=0, le=1024)], ...]
    has_cls: bool
    feature_select: FeatureSelect

    @property
    def grid_side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one tile, without CLS (``P``; 576 for LLaVA-1.5)."""
        return self.grid_side**2

    @property
    def tile_tokens(self) -> int:
        """Visual tokens that one tile gives: its patches, where CLS alone is left out."""
        return self.num_patches + self.has_cls - (self.feature_select == "default")


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """A decoder, with or without grouped-query attention and biases.

    Attributes:
        q_bias: Whether the query projection adds a bias; the next three say so of key, value and output.
        sliding_window: Tokens that a token sees at most, itself included; None for all before it.
    """

    hidden_size: Count
    intermediate_size: Count
    num_layers: Layers
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Count
    hidden_act: str
    rms_norm_eps: Epsilon
    q_bias: bool
    k_bias: bool
    v_bias: bool
    o_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    max_position_embeddings: Count
    rope_parameters: dict[str, Any]
    sliding_window: Count | None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One LLaVA model: vision tower, two-layer projector, decoder.

    Attributes:
        model_type: Hugging Face's name of the family, such as ``llava``.
        tiling: How a picture is cut into tiles; None where it is always one.
    """

    model_type: str
    vision: VisionSpec
    text: TextSpec
    projector_act: str
    projector_bias: bool
    image_token_id: TokenId
    eos_token_ids: tuple[TokenId, ...]
    tiling: Tiling | None
