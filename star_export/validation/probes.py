"""Pictures and prompts that every bundle can be checked with."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

PROMPTS = ("What is in the picture?", "How many objects are there, and what is on the left?")


@dataclass(frozen=True)
class Probe:
    """One picture with its question."""

    name: str
    picture: Image.Image
    prompt: str


def make_probes(count: int) -> list[Probe]:
    """The first ``count`` probes; the same ones every time.

    Each picture has blocks of colour under noise, so that patches differ at
    every scale, and a shape of its own, so that resizing and cropping matter.
    """
    return [_probe(index) for index in range(count)]


def _probe(index: int) -> Probe:
    random = np.random.default_rng(index)
    width, height = [(480, 360), (300, 420), (336, 336)][index % 3]
    blocks = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC))
    noise = random.integers(-24, 25, smooth.shape)
    pixels = np.clip(smooth.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    return Probe(f"probe {index}", Image.fromarray(pixels), PROMPTS[index % len(PROMPTS)])
