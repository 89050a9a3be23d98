"""Four bits with a look at what a model does: GPTQ on a user's own pictures, by llm-compressor.

What it makes is a checkpoint in compressed-tensors' format beside the bundle, from which that is built as
from any quantised one.
"""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from star_export.errors import InputError, PlatformError, SettingsError, option
from star_export.files import staging_folder
from star_export.preprocessing import load_image
from star_export.progress import Progress
from star_export.room import check_memory
from star_export.specs import Quantization
from star_export.typed import convert, parse

if TYPE_CHECKING:
    import torch

#: In the folder of pictures: a line of JSON for each question.
PROMPTS = "prompts.jsonl"

#: What is asked about pictures without questions.
_QUESTION = "Describe the image."

#: What llm-compressor leaves in what it made.
_RECIPE = "recipe.yaml"

_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")

#: Not the head, which decides between tokens, nor what sees.
_WHOLE = ["re:.*lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]


@dataclass(frozen=True)
class Example:
    """A picture, as a path below its folder, and what is asked about it."""

    image: str
    question: str = _QUESTION


def read_examples(folder: Path) -> list[Example]:
    """The lines of a folder's ``prompts.jsonl``, or its pictures with one question for all.

    Raises:
        InputError: If it is no folder, holds neither, or a line is no example.
    """
    if not folder.is_dir():
        raise InputError(f"{option('calibrate', folder)} is no folder; give one that holds pictures")
    prompts = folder / PROMPTS
    if not prompts.is_file():
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
        examples = [Example(name) for name in names]
    else:
        lines = enumerate(prompts.read_bytes().splitlines(), 1)
        examples = [_example(prompts, number, line) for number, line in lines if line.strip()]
    if not examples:
        raise InputError(
            f"{option('calibrate', folder)} holds no pictures ({', '.join(_PICTURES)}); give some, or "
            f'lines of {{"image": "dog.png", "question": "..."}} in {PROMPTS}'
        )
    return examples


def _example(prompts: Path, number: int, line: bytes) -> Example:
    try:
        return convert(parse(line), Example)
    except ValueError as error:
        raise InputError(f"{prompts} line {number} is no picture and question ({error})") from error


def calibrated(
    checkpoint: Checkpoint,
    how: Quantization | None,
    pictures: Path,
    bundle: Path,
    progress: Progress,
    *,
    overwrite: bool,
) -> Checkpoint:
    """A copy of a checkpoint with its decoder in 4 bits, beside the bundle: ``NAME-calibrated``.

    It takes the memory of the whole model.

    Args:
        checkpoint: With float weights.
        how: Integers and blocks.
        pictures: A folder that :func:`read_examples` reads.
        bundle: The folder that will be built of the copy.
        progress: Told about each decoder layer and picture.
        overwrite: Replace a copy that is there.

    Raises:
        InputError: If a picture or a question cannot be read.
        SettingsError: If that is not calibrated here, or something is where the copy would go.
        PlatformError: If llm-compressor or memory is missing, or the copy cannot be written.
    """
    how = _checked(checkpoint, how)
    examples = read_examples(pictures)
    for example in examples:  # before minutes of work
        load_image(pictures / example.image)
    output = bundle.with_name(f"{bundle.name}-calibrated")
    if output.exists() and not (overwrite and (output / _RECIPE).is_file()):
        raise SettingsError(
            f"{output} exists; build from it with {option('model', output)}, or remove it to calibrate anew"
        )
    check_memory(sum(path.stat().st_size for path in {stored.path for stored in checkpoint.tensors.values()}))
    with staging_folder(output, overwrite=overwrite) as folder:
        _gptq(checkpoint.folder, how, pictures, examples, folder, progress)
        for path in checkpoint.folder.iterdir():
            if path.is_file() and ".safetensors" not in path.name and not (folder / path.name).exists():
                shutil.copy(path, folder)
    return open_checkpoint(str(output.absolute()))


def _checked(checkpoint: Checkpoint, how: Quantization | None) -> Quantization:
    """Refuse what is not calibrated here."""
    if checkpoint.scheme is not None:
        raise SettingsError(
            f"{checkpoint.source} is quantised already; leave out {option('calibrate')}, or give the "
            "original float weights"
        )
    if how is None or not how.type.endswith("4"):
        why = "8 bits lose next to nothing by rounding to the nearest"
        found = "no type" if how is None else how.type
        raise SettingsError(
            f"{option('calibrate')} needs {option('quantize', 'int4')} or uint4, got {found}; {why}"
        )
    if how.vision:
        raise SettingsError(
            f"{option('calibrate')} leaves the vision tower whole; "
            f"leave out {option('quantize_vision', True)}"
        )
    if find_spec("llmcompressor") is None:
        raise PlatformError(
            f"{option('calibrate')} needs llmcompressor; run: pip install 'star-export[calibrate]'"
        )
    return how


def _gptq(
    source: Path,
    how: Quantization,
    pictures: Path,
    examples: Sequence[Example],
    output: Path,
    progress: Progress,
) -> None:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from torch.utils.data import DataLoader
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(source, dtype="auto", local_files_only=True)
    processor = AutoProcessor.from_pretrained(source, local_files_only=True)
    data = [_encoded(processor, pictures, example, model.dtype) for example in examples]
    weights = {
        "num_bits": 4, "type": "int", "symmetric": how.type == "int4", "strategy": "group",
        "group_size": how.block, "observer": "mse",  # with "minmax" it was further off than rounding
    }  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    with _told(model, 2 * len(data), progress):
        oneshot(
            model=model,
            processor=processor,
            dataset=DataLoader(data, batch_size=None),  # type: ignore[arg-type]  # a list does
            recipe=GPTQModifier(config_groups=groups, ignore=_WHOLE, actorder="static"),
            num_calibration_samples=len(data),
        )
        model.save_pretrained(output, save_compressed=True)


def _encoded(
    processor: Any, pictures: Path, example: Example, dtype: "torch.dtype"
) -> "dict[str, torch.Tensor]":
    """What the model takes for one example."""
    content = [{"type": "image"}, {"type": "text", "text": example.question}]
    prompt = f"USER: <image>\n{example.question} ASSISTANT:"
    if processor.chat_template:
        turns = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    picture = load_image(pictures / example.image)
    return dict(processor(images=picture, text=prompt, return_tensors="pt").to(dtype))


@contextmanager
def _told(model: Any, passes: int, progress: Progress) -> Iterator[None]:
    """One bar instead of llm-compressor's many and its log: it runs each layer for each example twice."""
    from loguru import logger
    from tqdm.std import tqdm

    layers = [module for name, module in model.named_modules() if name.endswith("mlp.down_proj")]
    progress.start("calibrate", passes * len(layers))
    hooks = [layer.register_forward_hook(lambda *_: progress.advance(1)) for layer in layers]
    shown = tqdm.__init__
    tqdm.__init__ = lambda bar, *given, **options: shown(bar, *given, **options | {"disable": True})
    for package in ("llmcompressor", "compressed_tensors"):
        logger.disable(package)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        tqdm.__init__ = shown
        for hook in hooks:
            hook.remove()
