"""Pictures and prompts to tensors, from parameters that are data in the bundle."""

from star_export.preprocessing.images import ImageSpec, load_image, pixel_values
from star_export.preprocessing.parameters import Preprocessing, read_preprocessing, read_tokenizer
from star_export.preprocessing.prompts import PromptSpec, TokenizedPrompt, render, tokenize

__all__ = [
    "ImageSpec",
    "Preprocessing",
    "PromptSpec",
    "TokenizedPrompt",
    "load_image",
    "pixel_values",
    "read_preprocessing",
    "read_tokenizer",
    "render",
    "tokenize",
]
