"""Mistral: no biases; a sliding window in every layer, which a config of None turns off."""

from typing import Any

from star_export.checkpoint.decoders.rotary import rotary_spec
from star_export.specs import TextSpec


def text_spec(config: Any, tied: bool) -> TextSpec:
    """Shape of a decoder from its ``MistralConfig``; see :func:`rotary_spec`."""
    return rotary_spec(config, tied, head_dim=config.head_dim, sliding_window=config.sliding_window)
