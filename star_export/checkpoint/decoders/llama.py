"""Llama: rotary positions, grouped queries, one switch for the biases of all four attention projections."""

from typing import Any

from star_export.checkpoint.supported import require_supported
from star_export.errors import CheckpointError
from star_export.specs import TextSpec

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def text_spec(config: Any, tied: bool) -> TextSpec:
    """Shape of a decoder from its ``LlamaConfig``, which has settled head sizes and rope by its own defaults.

    Raises:
        CheckpointError: If its activation or rope is not supported, or its heads share no KV heads.
    """
    rope = dict(config.rope_parameters)
    require_supported("decoder activation", config.hidden_act, ("silu",))
    require_supported("rope_type", rope["rope_type"], ROPE_TYPES)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if kv_heads < 1 or heads % kv_heads:
        raise CheckpointError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    return TextSpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        hidden_act=config.hidden_act,
        rms_norm_eps=config.rms_norm_eps,
        q_bias=config.attention_bias,
        k_bias=config.attention_bias,
        v_bias=config.attention_bias,
        o_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        tie_word_embeddings=tied,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=rope,
        sliding_window=None,
    )
