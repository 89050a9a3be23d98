"""A checkpoint's tokenizer and processor, turned into the data a bundle holds."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from star_export.checkpoint.families import FAMILIES
from star_export.checkpoint.supported import require_supported
from star_export.errors import CheckpointError, InputError, SettingsError, option
from star_export.files import atomic_open
from star_export.preprocessing.conversation import IMAGE, Turn
from star_export.preprocessing.images import ImageSpec
from star_export.preprocessing.prompts import (
    PromptSpec,
    TokenizedPrompt,
    render,
    render_messages,
    tokenize,
)
from star_export.specs import ModelSpec
from star_export.typed import convert

log = logging.getLogger("star_export.preprocessing")

#: What a build asks to try a chat template, and a key of its content that no template reads.
_QUESTION, _OTHER_QUESTION, _UNREAD = "What is in the picture?", "Where is it?", "star_export_unread"


def image_spec(processor: Any, model: ModelSpec) -> ImageSpec:
    """Image parameters of a processor.

    Raises:
        CheckpointError: If it is of another kind or gives other sizes than the model takes.
    """
    images = processor.image_processor
    kind = type(images).__name__.removesuffix("Fast").removesuffix("Pil")
    require_supported("image processor", kind, FAMILIES[model.model_type].image_processors)
    if not (images.do_rescale and images.do_normalize and images.do_resize):
        raise CheckpointError("an image processor without resize, rescale or normalize is not supported")
    if model.tiling is None:
        sizes = _whole_sizes(images, model)
    else:
        sizes = _tile_sizes(images, model, model.tiling.pinpoints)
    values = sizes | {
        "resample": int(images.resample) if isinstance(images.resample, int) else images.resample,
        "rescale_factor": images.rescale_factor,
        "mean": images.image_mean,
        "std": images.image_std,
    }
    try:
        return convert(values, ImageSpec)
    except ValueError as error:
        raise CheckpointError(f"the image processor's parameters are not supported: {error}") from error


def _whole_sizes(images: Any, model: ModelSpec) -> dict[str, Any]:
    """What a picture that is one tile is resized and cropped to."""
    if getattr(images, "do_pad", None):
        raise CheckpointError("an image processor that pads pictures (do_pad) is not supported here")
    side, shortest, exact = model.vision.image_size, *_size(images)
    crop = _pair(images.crop_size) if images.do_center_crop else None
    fits = crop == (side, side) and (shortest or min(exact or (0,))) >= side
    if not fits and not (crop is None and exact == (side, side)):
        raise CheckpointError(
            f"the image processor's size {dict(images.size or {})} and crop {crop} do not give "
            f"{side}x{side} pixels"
        )
    return {"shortest_edge": shortest, "resize_to": exact, "crop": crop}


def _tile_sizes(images: Any, model: ModelSpec, pinpoints: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What a picture that is cut is resized to for its first tile, which all of its tiles are as large as."""
    side, shortest, exact = model.vision.image_size, *_size(images)
    crop = _pair(images.crop_size)  # tiles have this size, whether they are cropped or not
    if {exact or (shortest, shortest), crop or (side, side)} != {(side, side)}:
        raise CheckpointError(
            f"the image processor's size {dict(images.size or {})} and crop {crop} do not give tiles of "
            f"{side}x{side} pixels"
        )
    if images.image_grid_pinpoints != (expected := [list(pair) for pair in pinpoints]):
        raise CheckpointError(
            f"image_grid_pinpoints are {images.image_grid_pinpoints} in the image processor and {expected} "
            "in config.json; make them agree"
        )
    return {"shortest_edge": None, "resize_to": (side, side), "crop": None}


def _size(images: Any) -> tuple[int | None, tuple[int, int] | None]:
    """Length of the shortest edge that an image processor resizes to, and exact size; one is None."""
    return dict(images.size or {}).get("shortest_edge"), _pair(images.size)


def _pair(size: Any) -> tuple[int, int] | None:
    """``(height, width)``, where a size has both."""
    values = dict(size or {})
    return (values["height"], values["width"]) if values.get("height") and values.get("width") else None


def prompt_spec(
    processor: Any, model: ModelSpec, *, chat_template: str | None = None, end_tokens: Sequence[str] = ()
) -> PromptSpec:
    """Prompt parameters of a processor.

    Args:
        processor: The checkpoint's, of its family's class.
        model: Shape of the model.
        chat_template: Used instead of the checkpoint's own.
        end_tokens: Tokens that end an answer, besides the model's own.

    Raises:
        CheckpointError: If tokenizer and config disagree about the image token, or no chat template
            is the default one.
    """
    token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    if token_id != model.image_token_id:
        raise CheckpointError(
            f"the tokenizer's {processor.image_token} is {token_id}, config.json says {model.image_token_id}"
        )
    special = processor.tokenizer.special_tokens_map
    return PromptSpec(
        image_token=processor.image_token,
        image_token_id=token_id,
        chat_template=stored_template(processor) if chat_template is None else chat_template,
        special_tokens={name: str(token) for name, token in special.items() if isinstance(token, str)},
        given_template=chat_template is not None,
        end_tokens=tuple(end_tokens),
    )


def stored_template(processor: Any) -> str | None:
    """The checkpoint's chat template, where transformers looks: the processor's, then the tokenizer's.

    Raises:
        CheckpointError: If there are several and none is called ``default``.
    """
    for owner in (processor, processor.tokenizer):
        template = owner.chat_template
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}
        if isinstance(template, dict):
            if "default" not in template:
                raise CheckpointError(
                    f"the checkpoint has the chat templates {', '.join(sorted(template))} and none is called "
                    f"default; give one with {option('chat_template', 'FILE')}"
                )
            return str(template["default"])
        if template is not None:
            return str(template)
    return None


def fit_content(
    spec: PromptSpec, tokenizer: Tokenizer, *, max_text_tokens: int, max_images: int = 1
) -> PromptSpec:
    """The spec with the form of content that its chat template takes, tried on a question.

    Raises:
        CheckpointError: If no form gives a prompt with ``max_images`` pictures, each once, the question, and
            text after the pictures.
        SettingsError: If even a short prompt has more than ``max_text_tokens``.
    """
    if spec.chat_template is None:
        log.warning(
            "no chat template: prompts take LLaVA-1.5's form %r, "
            "or that of star-export build --chat-template FILE",
            render("...", spec),
        )
    reasons: dict[str, None] = {}  # in order, each once
    for tried in (replace(spec, content="parts"), replace(spec, content="string")):
        try:
            count = _ask(tried, tokenizer, max_images).text_tokens
        except InputError as error:
            reasons[error.marked] = None
            continue
        if count > max_text_tokens:
            raise SettingsError(
                f"a short question has {count} text tokens with this model's template, so "
                f"{option('max_text_tokens', max_text_tokens)} has no room for any"
            )
        return tried
    raise CheckpointError(
        f"no prompt can be made of this checkpoint: {'; '.join(reasons)}; "
        f"give a chat template that works with {option('chat_template', 'FILE')}"
    )


def _ask(spec: PromptSpec, tokenizer: Tokenizer, images: int) -> TokenizedPrompt:
    """Render and tokenize a question.

    Raises:
        InputError: If the template refuses, loses or merely prints it, or a picture.
    """
    text = render(_QUESTION, spec, images=images)
    if spec.chat_template is not None:
        message = spec.message(Turn("user", (IMAGE, _QUESTION)))
        if spec.content == "parts":
            parts = [{**part, _UNREAD: _UNREAD} for part in message["content"]]
            if _UNREAD in render_messages([{**message, "content": parts}], spec):
                raise InputError("the chat template prints a list of parts as it is")
        if text == render(_OTHER_QUESTION, spec, images=images):
            raise InputError("the chat template leaves the question out")
    return tokenize(text, tokenizer, spec, tokens_per_image=[1] * images)


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer as one ``tokenizer.json``."""
    with atomic_open(path) as file:
        file.write(tokenizer.to_str(pretty=True).encode())
