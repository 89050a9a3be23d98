"""A checkpoint's tokenizer and processor, read by transformers and put right where they are older or poorer.

Needs the ``export`` extra: transformers reads every layout it ever wrote.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from star_export.checkpoint.folder import read_json, refuse_lfs_pointer
from star_export.errors import CheckpointError
from star_export.preprocessing.tokenizer_model import (
    convert_sentencepiece,
    open_sentencepiece,
    require_same_tokens,
)

_SENTENCEPIECE = "tokenizer.model"
_IMAGES = "preprocessor_config.json"


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
    for name in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"):
        processor.tokenizer.init_kwargs.pop(name, None)  # where a processor's call finds them again
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
