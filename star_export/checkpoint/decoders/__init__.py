"""Decoders by the ``model_type`` of their config."""

from collections.abc import Callable
from typing import Any

from star_export.checkpoint.decoders import llama, mistral, qwen2
from star_export.checkpoint.supported import require_supported
from star_export.specs import TextSpec

#: Config, and whether the head's weights are the embedding's -> shape.
DECODERS: dict[str, Callable[[Any, bool], TextSpec]] = {
    "llama": llama.text_spec,
    "mistral": mistral.text_spec,
    "qwen2": qwen2.text_spec,
}


def text_spec(config: Any, tied: bool) -> TextSpec:
    """Shape of a decoder.

    Args:
        config: Its part of the model's config.
        tied: Whether the head's weights are the embedding's, which the whole model's config says.

    Raises:
        CheckpointError: If the decoder is not supported.
    """
    require_supported("decoder", config.model_type, DECODERS)
    return DECODERS[config.model_type](config, tied)
