"""Pictures and prompts that every bundle can be checked with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
from PIL import Image

from star_export.answer.pipeline import Pipeline
from star_export.errors import InputError, SettingsError, option
from star_export.specs import Keep

PROMPTS = ("What is in the picture?", "How many objects are there, and what is on the left?")

#: Sizes that the pictures take in turn: landscape, portrait, square, very long, tiny.
SIZES = ((480, 360), (300, 420), (336, 336), (900, 120), (40, 30))

#: Pictures of a probe that has several, where the bundle takes as many.
SEVERAL = 3

#: Messages as chat templates take them: each has a role, and a list of parts as its content.
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Probe:
    """Pictures with a question, or with a conversation that ends with one."""

    name: str
    pictures: tuple[Image.Image, ...]
    prompt: str | Messages

    @property
    def text(self) -> str:
        """The prompt for reports: its texts."""
        if isinstance(self.prompt, str):
            return self.prompt
        return " ".join(part["text"] for said in self.prompt for part in said["content"] if "text" in part)


def choose_probes(
    given: Sequence[Probe] | int, pipeline: Pipeline, *, max_images: int | None = None
) -> Sequence[Probe]:
    """Probes as they were given, or that number of the built-in ones, those that the bundle has room for.

    Args:
        given: Probes, or how many.
        pipeline: The bundle.
        max_images: Pictures that a built-in one may have; what the bundle takes by default.

    Raises:
        SettingsError: If there is none.
    """
    if not isinstance(given, int):
        if not given:
            raise SettingsError("a check needs at least one picture")
        return given
    probes = _endless(max_images or pipeline.spec.images.max_images)
    # Sizes come again and again: what did not fit in some rounds never will.
    found = list(islice((p for p in islice(probes, 4 * given * len(SIZES)) if _fits(p, pipeline)), given))
    if not found:
        raise SettingsError(
            f"no built-in picture fits this bundle's limits; give one that does with {option('image')}"
        )
    return found


def budgets_of(probe: Probe, pipeline: Pipeline, keep: Sequence[Keep]) -> list[Keep | None]:
    """Visual tokens of a probe in the last layers, for each of some budgets; None unpruned.

    Args:
        probe: Pictures and a prompt; a budget above what they have is what they have.
        pipeline: The bundle.
        keep: The budgets; the bundle's own if there are none.
    """
    if not pipeline.spec.schedule:
        return [None]
    images = pipeline.prepare(probe.pictures)
    return list(dict.fromkeys(pipeline.budget(count, images) for count in keep or (None,)))


def make_probes(number: int, *, max_images: int = 1) -> list[Probe]:
    """The first probes; the same ones every time.

    Each picture has blocks of colour under noise, so that patches differ at
    every scale, and a shape of its own, so that resizing, cropping and tiles matter.

    Args:
        number: How many.
        max_images: Pictures that the bundle takes; from 2 on every second probe has several.
    """
    return list(islice(_endless(max_images), number))


def _endless(max_images: int) -> Iterator[Probe]:
    for index in count():
        several = min(SEVERAL - index // 2 % 2, max_images) if index % 2 else 1
        pictures = tuple(_picture(index + number) for number in range(several))
        question = PROMPTS[index % len(PROMPTS)]
        prompt = question if several == 1 else _conversation(several, question)
        yield Probe(f"probe {index}", pictures, prompt)


def _conversation(pictures: int, question: str) -> Messages:
    """Two questions: the first about one picture, the last about all, which stand among its words."""
    image, parts = {"type": "image"}, [{"type": "text", "text": "And here, "}]
    for number in range(2, pictures + 1):
        parts += [image, {"type": "text", "text": f" picture {number}: " if number < pictures else question}]
    return [
        {"role": "user", "content": [image, {"type": "text", "text": PROMPTS[0]}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": parts},
    ]


def _fits(probe: Probe, pipeline: Pipeline) -> bool:
    try:
        pipeline.prepare(probe.pictures)
    except InputError:
        return False
    return True


def _picture(index: int) -> Image.Image:
    random = np.random.default_rng(index)
    width, height = SIZES[index % len(SIZES)]
    blocks = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC))
    noise = random.integers(-24, 25, smooth.shape)
    pixels = np.clip(smooth.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)
