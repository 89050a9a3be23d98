"""A checkpoint's tokenizer and processor, read by transformers and put right where they are older or poorer.

Needs the ``export`` extra: transformers reads every layout it ever wrote.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from star_export.checkpoint.config import read_model
from star_export.checkpoint.families import FAMILIES
from star_export.checkpoint.folder import read_json, refuse_lfs_pointer
from star_export.errors import CheckpointError
from star_export.preprocessing.tokenizer_model import (
    convert_sentencepiece,
    open_sentencepiece,
    require_same_tokens,
)
from star_export.specs import ModelSpec

_SENTENCEPIECE = "tokenizer.model"
_IMAGES = "preprocessor_config.json"


def read_processor(folder: Path) -> Any:
    """The checkpoint's processor, which the model's config overrules where the two differ.

    Its tokenizer has no truncation and no padding, whatever its file says, and agrees with a
    ``tokenizer.model`` beside it.

    Raises:
        CheckpointError: If the tokenizer or the image processor is missing or cannot be read, or the
            model is not supported.
        PlatformError: If the tokenizer needs sentencepiece and that is not installed.
    """
    model = read_model(folder)
    processors = processor_class(FAMILIES[model.model_type].processor)
    _require_files(folder)
    with _with_tokenizer_json(folder) as readable:
        try:
            # Where torchvision is installed it would be the default, with other rounding than Pillow.
            processor = processors.from_pretrained(readable, local_files_only=True, backend="pil")
        except Exception as error:  # transformers raises many unrelated types
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(f"{folder} has no readable tokenizer and processor: {reason}") from error
    tokenizer = processor.tokenizer.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for name in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"):
        processor.tokenizer.init_kwargs.pop(name, None)  # where a processor's call finds them again
    if (folder / _SENTENCEPIECE).is_file():
        require_same_tokens(tokenizer, folder / _SENTENCEPIECE)
    _follow_model(processor, model)
    return processor


def processor_class(name: str) -> Any:
    """transformers' processor of that name, for text and pictures: its part for videos needs torchvision."""
    import transformers

    parts = classmethod(lambda _: ["image_processor", "tokenizer"])
    return type(name, (getattr(transformers, name),), {"get_attributes": parts})


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


def _follow_model(processor: Any, model: ModelSpec) -> None:
    """Take what decides how many image tokens there are from the model, as the bundle does."""
    vision = model.vision
    processor.patch_size = vision.patch_size
    processor.vision_feature_select_strategy = vision.feature_select
    processor.num_additional_image_tokens = int(vision.has_cls)
    if model.tiling is not None and model.tiling.max_grid is not None:
        processor.num_image_tokens = vision.num_patches + vision.has_cls
        processor.vision_aspect_ratio = f"anyres_max_{model.tiling.max_grid}"
    if processor.image_token not in processor.tokenizer.get_vocab():
        known = processor.tokenizer.convert_ids_to_tokens(model.image_token_id)
        processor.image_token = known or processor.image_token
    processor.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
