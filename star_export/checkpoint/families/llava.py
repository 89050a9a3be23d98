"""LLaVA-1.5: one square picture, a vision tower's patches without CLS, a two-layer projector, a decoder."""

import re
from pathlib import Path
from typing import Any

from star_export.checkpoint.decoders import text_spec
from star_export.checkpoint.generation_config import eos_token_ids
from star_export.checkpoint.supported import ACTIVATIONS, require_supported
from star_export.checkpoint.towers import vision_spec
from star_export.errors import CheckpointError
from star_export.specs import ModelSpec

#: transformers has had the parts at the top and below ``model``, the tower with and without
#: ``vision_model``, the head inside the decoder and beside it.
TENSOR_PREFIXES = {
    "vision_tower.": re.compile(r"(model\.)?vision_tower\.(vision_model\.)?"),
    "multi_modal_projector.": re.compile(r"(model\.)?multi_modal_projector\."),
    "lm_head.": re.compile(r"language_model\.lm_head\."),
    "language_model.": re.compile(r"(model\.language_model|language_model\.model)\."),
}


def model_spec(config: Any, folder: Path) -> ModelSpec:
    """Shape of a model from its ``LlavaConfig``, and from the folder the tokens that end an answer.

    Raises:
        CheckpointError: If a part is not supported, or parts do not fit each other.
    """
    require_supported("projector activation", config.projector_hidden_act, ACTIVATIONS)
    text = text_spec(config.text_config, bool(config.tie_word_embeddings))
    if not 0 <= config.image_token_index < text.vocab_size:
        raise CheckpointError(
            f"image_token_index {config.image_token_index} is outside the vocabulary of {text.vocab_size}"
        )
    return ModelSpec(
        model_type=config.model_type,
        vision=vision_spec(
            config.vision_config, config.vision_feature_layer, config.vision_feature_select_strategy
        ),
        text=text,
        projector_act=config.projector_hidden_act,
        projector_bias=config.multimodal_projector_bias,
        image_token_id=config.image_token_index,
        eos_token_ids=eos_token_ids(folder, config.text_config),
        tiling=None,
    )
