"""``preprocessor.json``: how pictures and prompts become tensors for one model."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from star_export.errors import BundleError
from star_export.preprocessing.images import ImageSpec
from star_export.preprocessing.prompts import PromptSpec, rust_panics
from star_export.specs import ModelSpec
from star_export.typed import convert, parse


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The whole file."""

    image: ImageSpec
    prompt: PromptSpec


def read_preprocessing(path: Path, model: ModelSpec) -> Preprocessing:
    """Preprocessing parameters of a bundle.

    Args:
        path: The file.
        model: The model that takes what they give.

    Raises:
        BundleError: If a value is missing, unknown, of another type, or does not fit the model.
    """
    try:
        parameters = convert(parse(path.read_bytes()), Preprocessing)
        _check(parameters, model)
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} is damaged: {error}; build the bundle again") from error
    return parameters


def read_tokenizer(path: Path, prompt: PromptSpec) -> Tokenizer:
    """The tokenizer of a bundle.

    Raises:
        BundleError: If it cannot be read, or has another image token.
    """
    try:
        with rust_panics():
            tokenizer = Tokenizer.from_file(str(path))
            found = tokenizer.encode(prompt.image_token, add_special_tokens=True).ids
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(f"{path} is damaged: {error}; build the bundle again") from error
    if found.count(prompt.image_token_id) != 1:
        raise BundleError(
            f"{path} makes {found[:8]} of {prompt.image_token}, whose id is {prompt.image_token_id}; "
            "build the bundle again"
        )
    return tokenizer


def _check(parameters: Preprocessing, model: ModelSpec) -> None:
    image, side = parameters.image, model.vision.image_size
    if (image.shortest_edge is None) == (image.resize_to is None):
        raise ValueError("image: one of shortest_edge and resize_to must be null")
    if (image.crop or image.resize_to) != (side, side):
        raise ValueError(f"image: does not give the {side}x{side} pixels that the model takes")
    if min(image.resize_to or (image.shortest_edge or 0,)) < side:
        raise ValueError(f"image: is resized to less than the {side} pixels that the model takes")
    if model.tiling is not None and image.resize_to != (side, side):
        raise ValueError(f"image.resize_to: must be [{side}, {side}] for a model that cuts pictures")
    found = parameters.prompt.image_token_id
    if found != model.image_token_id:
        raise ValueError(f"prompt.image_token_id: the model has {model.image_token_id}, found {found}")
    forms, token = parameters.prompt.forms, parameters.prompt.image_token
    if forms is not None and (count := forms.user_with_image.prefix.count(token)) != 1:
        raise ValueError(f"prompt.forms.user_with_image.prefix: expected one {token}, found {count}")
