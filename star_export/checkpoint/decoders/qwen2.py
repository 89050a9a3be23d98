"""Qwen2: biases on query, key and value alone; a sliding window in some layers, if it is used."""

from typing import Any

from star_export.checkpoint.decoders.rotary import rotary_spec
from star_export.checkpoint.supported import require_supported
from star_export.specs import TextSpec

_FULL, _SLIDING = "full_attention", "sliding_attention"


def text_spec(config: Any, tied: bool) -> TextSpec:
    """Shape of a decoder from its ``Qwen2Config``; see :func:`rotary_spec`.

    Raises:
        CheckpointError: If layers have a window, and the config none; also for what that function raises.
    """
    window = config.sliding_window  # the config's class has made it None where it is not used
    for kind in config.layer_types:
        require_supported(
            "attention of a decoder layer", kind, (_FULL,) if window is None else (_FULL, _SLIDING)
        )
    return rotary_spec(
        config,
        tied,
        # As Qwen2Attention has it: there is no such key.
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        qkv_bias=True,
        sliding_window=window if _SLIDING in config.layer_types else None,
    )
