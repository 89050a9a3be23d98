"""A checkpoint's tokenizer and processor, turned into the data a bundle holds.

Needs the ``export`` extra: transformers reads every layout it ever wrote.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from star_export.checkpoint_folder import read_json, refuse_lfs_pointer
from star_export.errors import CheckpointError
from star_export.files import atomic_open
from star_export.preprocessing.images import ImageSpec
from star_export.preprocessing.prompts import PromptSpec
from star_export.preprocessing.tokenizer_model import (
    convert_sentencepiece,
    open_sentencepiece,
    require_same_tokens,
)
from star_export.specs import ModelSpec

_SENTENCEPIECE = "tokenizer.model"
_IMAGES = "preprocessor_config.json"
_IMAGE_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")


def read_processor(folder: Path) -> Any:
    """The checkpoint's ``LlavaProcessor``, which the model's config overrules where the two differ.

    Its tokenizer has no truncation and no padding, whatever its file says, and agrees with a
    ``tokenizer.model`` beside it.

    Raises:
        CheckpointError: If the tokenizer or the image processor is missing or cannot be read.
        PlatformError: If the tokenizer needs sentencepiece and that is not installed.
    """
    from transformers import LlavaProcessor

    _require_files(folder)
    with _with_tokenizer_json(folder) as readable:
        try:
            # Where torchvision is installed it would be the default, with other rounding than Pillow.
            processor = LlavaProcessor.from_pretrained(readable, local_files_only=True, backend="pil")
        except Exception as error:  # transformers raises many unrelated types
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(f"{folder} has no readable tokenizer and processor: {reason}") from error
    tokenizer = processor.tokenizer.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if (folder / _SENTENCEPIECE).is_file():
        require_same_tokens(tokenizer, folder / _SENTENCEPIECE)
    _follow_config(processor, folder)
    return processor


def _require_files(folder: Path) -> None:
    """Refuse a folder in which a file that transformers needs is missing or a Git LFS pointer."""
    names = ("tokenizer.json", _SENTENCEPIECE, "tokenizer_config.json", _IMAGES, "processor_config.json")
    present = [name for name in names if (folder / name).is_file()]
    for name in present:
        refuse_lfs_pointer(folder / name)
    if not {"tokenizer.json", _SENTENCEPIECE} & set(present):
        raise CheckpointError(
            f"{folder} has neither tokenizer.json nor {_SENTENCEPIECE}; get the tokenizer's files from the "
            "model's page"
        )
    both = "processor_config.json" in present and read_json(folder / "processor_config.json")
    if _IMAGES not in present and not (both and "image_processor" in both):
        raise CheckpointError(
            f"{folder} has no {_IMAGES}, which says how pictures are prepared; get it from the page of the "
            "model or of the one that it was made from"
        )


@contextmanager
def _with_tokenizer_json(folder: Path) -> Iterator[Path]:
    """The folder, or a copy of its small files with a ``tokenizer.json`` made from ``tokenizer.model``."""
    if (folder / "tokenizer.json").is_file():
        yield folder
        return
    config = folder / "tokenizer_config.json"
    tokenizer = convert_sentencepiece(
        open_sentencepiece(folder / _SENTENCEPIECE), read_json(config) if config.is_file() else {}
    )
    with tempfile.TemporaryDirectory() as scratch:
        for path in (*folder.glob("*.json"), *folder.glob("*.jinja")):
            shutil.copy(path, scratch)
        tokenizer.save(f"{scratch}/tokenizer.json")
        yield Path(scratch)


def _follow_config(processor: Any, folder: Path) -> None:
    """Take what decides how many image tokens there are from the model, as the bundle does."""
    from transformers import LlavaConfig

    config = LlavaConfig.from_pretrained(folder, local_files_only=True)
    processor.patch_size = config.vision_config.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.num_additional_image_tokens = 1  # CLIP's class token
    if processor.image_token not in processor.tokenizer.get_vocab():
        known = processor.tokenizer.convert_ids_to_tokens(config.image_token_index)
        processor.image_token = known or processor.image_token
    processor.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)


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
