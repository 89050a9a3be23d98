"""What the families share: vision tower, two-layer projector, decoder, and what their tensors are called."""

import re
from pathlib import Path
from typing import Any

from star_export.checkpoint.decoders import text_spec
from star_export.checkpoint.generation_config import eos_token_ids
from star_export.checkpoint.supported import ACTIVATIONS, require_supported
from star_export.checkpoint.towers import vision_spec
from star_export.errors import CheckpointError
from star_export.specs import ModelSpec, Tiling, VisionSpec

#: transformers has had the parts at the top and below ``model``, the tower with and without
#: ``vision_model``, the head inside the decoder and beside it.
TENSOR_PREFIXES = {
    "vision_tower.": re.compile(r"(model\.)?vision_tower\.(vision_model\.)?"),
    "multi_modal_projector.": re.compile(r"(model\.)?multi_modal_projector\."),
    "image_newline": re.compile(r"(model\.)?image_newline"),
    "lm_head.": re.compile(r"language_model\.lm_head\."),
    "language_model.": re.compile(r"(model\.language_model|language_model\.model)\."),
}


def join(config: Any, folder: Path, tiling: Tiling | None = None) -> ModelSpec:
    """Shape of a model from its config, and from the folder the tokens that end an answer.

    Args:
        config: The whole model's, of its family's class.
        folder: Checkpoint folder.
        tiling: How the family cuts pictures; None if it does not.

    Raises:
        CheckpointError: If a part is not supported, or parts do not fit each other.
    """
    require_supported("projector activation", config.projector_hidden_act, ACTIVATIONS)
    text = text_spec(config.text_config, bool(config.tie_word_embeddings))
    if not 0 <= config.image_token_index < text.vocab_size:
        raise CheckpointError(
            f"image_token_index {config.image_token_index} is outside the vocabulary of {text.vocab_size}"
        )
    vision = vision_spec(
        config.vision_config, config.vision_feature_layer, config.vision_feature_select_strategy
    )
    if tiling is not None:
        _check_tiles(vision, tiling)
    return ModelSpec(
        model_type=config.model_type,
        vision=vision,
        text=text,
        projector_act=config.projector_hidden_act,
        projector_bias=config.multimodal_projector_bias,
        image_token_id=config.image_token_index,
        eos_token_ids=eos_token_ids(folder, config.text_config),
        tiling=tiling,
    )


def pinpoints(config: Any) -> tuple[tuple[int, int], ...]:
    """``image_grid_pinpoints`` as pairs.

    Raises:
        CheckpointError: If they are something else.
    """
    try:
        return tuple((height, width) for height, width in config.image_grid_pinpoints)
    except (TypeError, ValueError):
        raise CheckpointError(
            f"image_grid_pinpoints are no pairs of height and width: {config.image_grid_pinpoints}"
        ) from None


def _check_tiles(vision: VisionSpec, tiling: Tiling) -> None:
    """Refuse what transformers cannot pack either."""
    if vision.tile_tokens != vision.num_patches:
        raise CheckpointError(
            f"vision_feature_select_strategy {vision.feature_select!r} with {vision.model_type} gives "
            f"{vision.tile_tokens} tokens for the {vision.num_patches} patches of a tile; "
            "this family needs one for each"
        )
    sides = [side for pair in tiling.pinpoints for side in pair]
    if not sides or any(not isinstance(side, int) or side < 1 or side % vision.image_size for side in sides):
        raise CheckpointError(
            f"image_grid_pinpoints {tiling.pinpoints} are no whole tiles of {vision.image_size} pixels"
        )
