"""Families of models by the ``model_type`` of their config."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from re import Pattern
from typing import Any

from star_export.checkpoint.families import llava, llava_next, llava_onevision
from star_export.checkpoint.families.parts import TENSOR_PREFIXES
from star_export.specs import ModelSpec


@dataclass(frozen=True)
class Family:
    """What a file of this folder says.

    Attributes:
        model_spec: Its config, and the folder of the checkpoint -> shape of the model.
        tensor_prefixes: What each part is called here -> all that transformers calls it in files and modules.
        processor: transformers' class that reads its prompts and pictures.
        image_processors: Its classes of the pictures' part, without what they end in (``Fast``, ``Pil``).
    """

    model_spec: Callable[[Any, Path], ModelSpec]
    tensor_prefixes: dict[str, Pattern[str]]
    processor: str
    image_processors: tuple[str, ...]


FAMILIES = {
    "llava": Family(
        llava.model_spec,
        TENSOR_PREFIXES,
        "LlavaProcessor",
        ("CLIPImageProcessor", "SiglipImageProcessor", "LlavaImageProcessor"),
    ),
    "llava_next": Family(
        llava_next.model_spec, TENSOR_PREFIXES, "LlavaNextProcessor", ("LlavaNextImageProcessor",)
    ),
    "llava_onevision": Family(
        llava_onevision.model_spec,
        TENSOR_PREFIXES,
        "LlavaOnevisionProcessor",
        ("LlavaOnevisionImageProcessor",),
    ),
}
