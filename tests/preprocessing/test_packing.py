"""Patches become visual tokens exactly where transformers' models put them, for pictures of every shape."""

import random
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlavaNextProcessor, LlavaOnevisionProcessor
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from star_export.contract import NEWLINE, TAPS
from star_export.preprocessing.packing import Packing, packed_index, packed_taps
from star_export.specs import ModelSpec, picture_grid
from tests.shapes import NEXT, ONEVISION

#: ``(height, width)``: slivers, primes, photos, and sizes whose product with a scale is a whole number but
#: for rounding, where ``int(round(x, 7))`` and ``int(x)`` differ.
ODD = [
    (1, 1), (1, 200), (200, 1), (13, 2000), (2000, 13), (7, 11), (613, 997), (997, 613), (480, 640),
    (640, 480), (1080, 1920), (1920, 1080), (2160, 3840), (334, 668), (335, 1000), (49, 147), (147, 49),
    (107, 321), (29, 58), (97, 194), (205, 410), (3, 200), (200, 3), (384, 384), (385, 384), (1153, 1151),
]  # fmt: skip


def model_packing(model: ModelSpec, size: tuple[int, int]) -> Packing:
    vision, tiling = model.vision, model.tiling
    assert tiling is not None
    grid = picture_grid(size, tiling, tile=vision.image_size, side=vision.grid_side)
    return Packing(tokens=vision.tile_tokens + grid.tokens, newlines=grid.shape[0], grid=grid)


def fake_model(model: ModelSpec) -> SimpleNamespace:
    """As much of a model as packing reads: its config."""
    assert model.tiling is not None
    pinpoints = [list(pair) for pair in model.tiling.pinpoints]
    vision = SimpleNamespace(image_size=model.vision.image_size, patch_size=model.vision.patch_size)
    return SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))


def transformers_packing(model: ModelSpec, size: tuple[int, int], features: torch.Tensor) -> np.ndarray:
    """What transformers makes of the features ``[tiles, patches, 1]`` of a picture; newlines are -1."""
    newline = torch.full(features.shape[-1:], float(NEWLINE), dtype=features.dtype)
    options = {"image_sizes": [size], "image_newline": newline}
    if model is NEXT:
        pack = LlavaNextModel.pack_image_features
        options["vision_feature_select_strategy"] = "default"
    else:
        pack = LlavaOnevisionModel.pack_image_features
    (packed,), lengths = pack(fake_model(model), [features], **options)
    assert lengths.tolist() == [len(packed)]
    found: np.ndarray = packed[:, 0].numpy()
    return found


def numbered(model: ModelSpec, packing: Packing) -> torch.Tensor:
    """Each patch's number as its only feature: float32, which holds them all."""
    tiles = 1 + int(np.prod(packing.grid.tiles)) if packing.grid else 1
    patches = model.vision.tile_tokens
    return torch.arange(tiles * patches, dtype=torch.float32).reshape(tiles, patches, 1)


def assert_packed_alike(model: ModelSpec, size: tuple[int, int]) -> None:
    packing = model_packing(model, size)
    index, weights = packed_taps(packing, model.vision)
    assert (index.dtype, weights.dtype) == (np.int64, np.float32)
    assert index.shape == weights.shape == (packing.tokens, TAPS)
    newlines = (index == NEWLINE).all(1)
    assert newlines.sum() == packing.newlines
    assert np.array_equal(newlines, (index == NEWLINE).any(1))
    assert packing.grid is not None
    if packing.grid.resized:
        features = torch.randn(numbered(model, packing).shape, generator=torch.Generator().manual_seed(0))
        rows = np.append(features.flatten().numpy(), np.float32(NEWLINE))  # -1 is the last
        found, expected = (rows[index] * weights).sum(1), transformers_packing(model, size, features)
        assert len(found) == len(expected), size
        assert np.abs(found - expected).max() < 1e-6, size  # the order of four summands
    else:
        expected = transformers_packing(model, size, numbered(model, packing))
        assert np.array_equal(packed_index(packing, model.vision), expected.astype(np.int64)), size
        assert np.array_equal(weights, np.tile(np.float32([1, 0, 0, 0]), (packing.tokens, 1)))


def ratios(model: ModelSpec) -> Iterator[tuple[int, int]]:
    """Pictures for every pin point: of its shape, and a little higher and wider, large and small."""
    assert model.tiling is not None
    for height, width in model.tiling.pinpoints:
        for scale in (0.4, 1, 1.7):
            for dy, dx in ((0, 0), (37, 0), (0, 41)):
                yield int(height * scale) + dy, int(width * scale) + dx


@pytest.mark.parametrize("model", [NEXT, ONEVISION], ids=lambda model: model.model_type)
def test_every_pin_point(model: ModelSpec) -> None:
    assert model.tiling is not None
    sizes = list(ratios(model))
    tiles = {picture_grid(s, model.tiling, tile=model.vision.image_size, side=1).tiles for s in sizes}
    assert len(tiles) == len(model.tiling.pinpoints)
    for size in sizes:
        assert_packed_alike(model, size)


@pytest.mark.parametrize("model", [NEXT, ONEVISION], ids=lambda model: model.model_type)
@pytest.mark.parametrize("size", ODD, ids=str)
def test_odd_sizes(model: ModelSpec, size: tuple[int, int]) -> None:
    assert_packed_alike(model, size)


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        (NEXT, (480, 640), 2340),
        (NEXT, (1080, 1920), 1948),
        (NEXT, (1, 200), 576),
        (ONEVISION, (480, 640), 2929),
        (ONEVISION, (1080, 1920), 7269),
        (ONEVISION, (1, 1), 1485),
    ],
)
def test_visual_tokens(model: ModelSpec, size: tuple[int, int], tokens: int) -> None:
    assert model_packing(model, size).tokens == tokens


@pytest.mark.parametrize("model", [NEXT, ONEVISION], ids=lambda model: model.model_type)
def test_visual_tokens_of_any_size_are_the_processors(model: ModelSpec) -> None:
    """The processor counts by itself, apart from the model; so do bundles."""
    side, generator = model.vision.image_size, random.Random(5)
    assert model.tiling is not None
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=[list(pair) for pair in model.tiling.pinpoints]),
        patch_size=model.vision.patch_size,
        num_additional_image_tokens=0,
        num_image_tokens=model.vision.num_patches,
        vision_aspect_ratio="anyres_max_9",
    )
    kind = LlavaNextProcessor if model is NEXT else LlavaOnevisionProcessor
    processor._get_unpadded_features = lambda *sizes: kind._get_unpadded_features(processor, *sizes)
    for _ in range(5_000):
        height = int(10 ** generator.uniform(0, 4))
        size = height, max(1, min(int(height * 10 ** generator.uniform(-2.3, 2.3)), 20_000))
        expected = kind._get_number_of_features(processor, *size, side, side)
        assert model_packing(model, size).tokens == expected, size


def test_a_picture_that_is_not_cut() -> None:
    """Of several pictures in OneVision: the patches in order, then one newline."""
    packing = Packing(tokens=730, newlines=1)
    index, weights = packed_taps(packing, ONEVISION.vision)
    assert index[:, 0].tolist() == [*range(729), NEWLINE]
    assert packed_index(packing, ONEVISION.vision).tolist() == index[:, 0].tolist()
    features = numbered(ONEVISION, packing)
    assert transformers_packing(ONEVISION, (480, 640), features).tolist() == index[:, 0].tolist()
    assert weights[-1].tolist() == [1, 0, 0, 0]
