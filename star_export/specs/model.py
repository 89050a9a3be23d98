"""The shape of a model: plain numbers and names from its config."""

from dataclasses import dataclass
from typing import Any

from star_export.specs.values import Count, Epsilon, Layers, Side, TokenId


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """A vision tower up to the layer whose output LLaVA uses.

    Attributes:
        model_type: Hugging Face's name of its kind, such as ``clip_vision_model``.
        num_layers: Layers that are exported; the last one's attention map scores stage 1.
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

    @property
    def num_patches(self) -> int:
        """Patches of one image, without CLS (``P``; 576 for LLaVA-1.5)."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """A decoder, with or without grouped-query attention and biases.

    Attributes:
        q_bias: Whether the query projection adds a bias; the next three say so of key, value and output.
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


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One LLaVA model: vision tower, two-layer projector, decoder.

    Attributes:
        model_type: Hugging Face's name of the family, such as ``llava``.
    """

    model_type: str
    vision: VisionSpec
    text: TextSpec
    projector_act: str
    projector_bias: bool
    image_token_id: TokenId
    eos_token_ids: tuple[TokenId, ...]
