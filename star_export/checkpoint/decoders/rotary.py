"""What the decoders share: rotary positions, grouped queries, a gated MLP."""

from typing import Any

from star_export.checkpoint.supported import require_supported
from star_export.errors import CheckpointError
from star_export.specs import TextSpec

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def rotary_spec(
    config: Any,
    tied: bool,
    *,
    head_dim: int,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    sliding_window: int | None = None,
) -> TextSpec:
    """Shape of a decoder from its config and from what each kind has its own way to say.

    Args:
        config: Of its decoder's class, which has settled rope and the number of KV heads.
        tied: Whether the head's weights are the embedding's.
        head_dim: Size of a head.
        qkv_bias: Whether query, key and value projections add a bias.
        o_bias: Whether the output projection does.
        mlp_bias: Whether those of the MLP do.
        sliding_window: Tokens that a token sees at most in some layer; None for all in all.

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
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        hidden_act=config.hidden_act,
        rms_norm_eps=config.rms_norm_eps,
        q_bias=qkv_bias,
        k_bias=qkv_bias,
        v_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        tie_word_embeddings=tied,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=rope,
        sliding_window=sliding_window,
    )
