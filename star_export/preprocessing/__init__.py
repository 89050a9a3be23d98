"""Pictures and prompts to tensors, from parameters that are data in the bundle."""

from star_export.preprocessing.images import ImageSpec, PreparedImage, load_image, prepare
from star_export.preprocessing.parameters import Preprocessing, read_preprocessing, read_tokenizer
from star_export.preprocessing.prompts import PromptSpec, TokenizedPrompt, render, tokenize

__all__ = [
    "ImageSpec",
    "PreparedImage",
    "Preprocessing",
    "PromptSpec",
    "TokenizedPrompt",
    "load_image",
    "prepare",
    "read_preprocessing",
    "read_tokenizer",
    "render",
    "tokenize",
]
