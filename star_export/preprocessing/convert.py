"""A checkpoint's tokenizer and processor, turned into the data a bundle holds.

Needs the ``export`` extra: transformers reads every layout it ever wrote.
"""

from pathlib import Path
from typing import Any

from star_export.errors import CheckpointError
from star_export.files import atomic_open
from star_export.preprocessing.images import ImageSpec
from star_export.preprocessing.prompts import PromptSpec
from star_export.specs import ModelSpec

_IMAGE_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")


def read_processor(folder: Path) -> Any:
    """The checkpoint's ``LlavaProcessor``.

    Raises:
        CheckpointError: If the tokenizer or the image processor cannot be read.
    """
    from transformers import AutoProcessor

    try:
        # Where torchvision is installed it would be the default, with other rounding than Pillow.
        return AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except Exception as error:  # transformers raises many unrelated types
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{folder} has no readable tokenizer and processor: {reason}") from error


def image_spec(processor: Any, model: ModelSpec) -> ImageSpec:
    """Image parameters of a processor.

    Raises:
        CheckpointError: If it is of another kind or gives another size than the tower takes.
    """
    images = processor.image_processor
    kind = type(images).__name__
    if kind not in _IMAGE_PROCESSORS:
        raise CheckpointError(f"image processor {kind} is not supported; supported: CLIPImageProcessor")
    if not (images.do_rescale and images.do_normalize and images.do_resize):
        raise CheckpointError("an image processor without resize, rescale or normalize is not supported")
    size, side = dict(images.size), model.vision.image_size
    crop = (images.crop_size["height"], images.crop_size["width"]) if images.do_center_crop else None
    exact = (size["height"], size["width"]) if size.get("height") else None
    shortest = size.get("shortest_edge")
    fits = crop == (side, side) and (shortest or min(exact or (0,))) >= side
    if not fits and not (crop is None and exact == (side, side)):
        raise CheckpointError(
            f"the image processor's size {size} and crop {crop} do not give {side}x{side} pixels"
        )
    return ImageSpec(
        shortest_edge=shortest,
        resize_to=exact,
        resample=int(images.resample),
        crop=crop,
        rescale_factor=float(images.rescale_factor),
        mean=tuple(images.image_mean),
        std=tuple(images.image_std),
    )


def prompt_spec(processor: Any, model: ModelSpec) -> PromptSpec:
    """Prompt parameters of a processor.

    Raises:
        CheckpointError: If tokenizer and config disagree about the image token.
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
        chat_template=processor.chat_template,
        special_tokens={name: str(token) for name, token in special.items() if isinstance(token, str)},
    )


def save_tokenizer(processor: Any, path: Path) -> None:
    """Write the fast tokenizer as one ``tokenizer.json``."""
    with atomic_open(path) as file:
        file.write(processor.tokenizer.backend_tokenizer.to_str(pretty=True).encode())
