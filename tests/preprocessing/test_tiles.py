"""Pictures are cut into exactly the tiles that transformers' processors make of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import (
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
)

from star_export.errors import InputError
from star_export.preprocessing import ImageSpec, convert, prepare
from star_export.preprocessing.packing import Packing
from star_export.specs import ModelSpec
from tests.shapes import NEXT, ONEVISION

_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Holder:
    """Of a processor, what parameters of pictures are read from."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor


def next_processor() -> Any:
    side = {"height": 336, "width": 336}
    return LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size=side)


def onevision_processor() -> Any:
    """With CLIP's numbers in place of SigLIP's, which are the same for all channels."""
    return LlavaOnevisionImageProcessorPil(image_mean=_MEAN, image_std=_STD)


FAMILIES = {"next": (NEXT, next_processor), "onevision": (ONEVISION, onevision_processor)}


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def image_spec(processor: Any, model: ModelSpec) -> ImageSpec:
    return convert.image_spec(Holder(processor), model)


def assert_same(family: str, images: list[Image.Image]) -> None:
    """That all tiles of a request's pictures have the same bits."""
    model, make = FAMILIES[family]
    processor = make()
    request = [images] if family == "onevision" else images
    theirs = processor(request, return_tensors="np")["pixel_values"]
    ours = prepare(images, image_spec(processor, model), model)
    assert len(theirs) == len(ours)
    for found, expected in zip(ours, theirs, strict=True):
        count = len(found.pixels)
        assert found.pixels.dtype == expected.dtype == np.float32
        assert np.array_equal(found.pixels.view(np.int32), expected[:count].view(np.int32))
        assert not expected[count:].any()  # what fills up the batch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "size",
    [
        (640, 480), (480, 640), (500, 500), (1920, 1080), (1, 1), (1, 200), (200, 1), (13, 2000), (997, 613),
        (336, 336), (384, 384), (672, 336), (337, 671), (768, 385),
    ],
    ids=str,
)  # fmt: skip
def test_one_picture(family: str, size: tuple[int, int]) -> None:
    assert_same(family, [noise(*size)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "sizes",
    [[(640, 480), (480, 640)], [(33, 44), (201, 200), (200, 201)], [(7, 7), (100, 1)]],
    ids=str,
)
def test_several_pictures(family: str, sizes: list[tuple[int, int]]) -> None:
    assert_same(family, [noise(*size) for size in sizes])


def test_what_becomes_of_pictures() -> None:
    """Tiles, visual tokens and newlines: of one picture and of several."""
    found = {}
    for family, (model, make) in FAMILIES.items():
        spec = image_spec(make(), model)
        for images in ([noise(640, 480)], [noise(640, 480)] * 2):
            prepared = prepare(images, spec, model)[-1]
            packing = prepared.packing
            found[family, len(images)] = (prepared.pixels.shape, packing.tokens, packing.newlines)
            assert (packing.grid is None) == (family == "onevision" and len(images) == 2)
    assert found == {
        ("next", 1): ((5, 3, 336, 336), 2340, 36),
        ("next", 2): ((5, 3, 336, 336), 2340, 36),
        ("onevision", 1): ((5, 3, 384, 384), 2929, 40),
        ("onevision", 2): ((1, 3, 384, 384), 730, 1),
    }


def test_the_key_knows_what_is_padding() -> None:
    """Black borders of the picture's own, and borders of padding: the same pixels, not the same tokens."""
    spec = image_spec(next_processor(), NEXT)
    bordered = Image.new("RGB", (672, 672))
    bordered.paste(noise(672, 504), (0, 84))
    (padded,), (own,) = (prepare([image], spec, NEXT) for image in (noise(672, 504), bordered))
    assert np.array_equal(padded.pixels[1:], own.pixels[1:])
    same_pixels = replace(own, pixels=padded.pixels)
    assert same_pixels.key != padded.key
    assert same_pixels.packing == Packing(tokens=576 + 48 * 49, newlines=48, grid=own.packing.grid)


def test_a_picture_too_long_for_its_square() -> None:
    model, make = FAMILIES["onevision"]
    images = [noise(8, 8), Image.new("RGB", (10_001, 60))]
    spec = image_spec(make(), model)
    with pytest.raises(InputError, match="one of the pictures is 10001x60; several are padded to squares"):
        prepare(images, spec, model)
    assert len(prepare(images[1:], spec, model)[0].pixels) == 7
