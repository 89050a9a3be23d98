"""Llama: one switch for the biases of all four attention projections."""

from typing import Any

from star_export.checkpoint.decoders.rotary import rotary_spec
from star_export.specs import TextSpec


def text_spec(config: Any, tied: bool) -> TextSpec:
    """Shape of a decoder from its ``LlamaConfig``; see :func:`rotary_spec`."""
    return rotary_spec(
        config,
        tied,
        head_dim=config.head_dim,
        qkv_bias=config.attention_bias,
        o_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
    )
