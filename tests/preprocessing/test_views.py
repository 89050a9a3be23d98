"""Every cell of a view shows the patches that its token is made of."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from PIL import Image

from star_export.preprocessing import ImageSpec, PreparedImage, prepare
from star_export.preprocessing.packing import packed_taps
from star_export.preprocessing.views import View, picture_views
from star_export.specs import ModelSpec
from tests.shapes import NEXT, ONEVISION

TILE, PATCH, SIDE = 30, 7, 4  # two pixels are no whole patch
SPEC = ImageSpec(
    shortest_edge=None, resize_to=(TILE, TILE), resample=3, crop=None, rescale_factor=1 / 255,
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
)  # fmt: skip


def small(model: ModelSpec, *, max_grid: int | None = None, feature_select: str | None = None) -> ModelSpec:
    """A published model's shape with tiles of 4x4 patches."""
    assert model.tiling is not None
    vision = replace(model.vision, image_size=TILE, patch_size=PATCH)
    if feature_select:
        vision = replace(vision, feature_select=feature_select)
    sides = [(TILE * rows, TILE * columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]
    return replace(
        model,
        vision=vision,
        tiling=replace(model.tiling, pinpoints=tuple(sides), max_grid=max_grid),
    )


NEXT_MODEL, ONEVISION_MODEL = small(NEXT), small(ONEVISION, max_grid=3)


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def patch_pixels(image: PreparedImage, patch: int) -> np.ndarray:
    """A patch as the model sees it, ``[3, 7, 7]``."""
    tile, place = divmod(patch, SIDE**2)
    row, column = (PATCH * place for place in divmod(place, SIDE))
    return image.pixels[tile][:, row : row + PATCH, column : column + PATCH]


def normalised(pixels: np.ndarray) -> np.ndarray:
    return ((pixels / 255 - SPEC.mean) / SPEC.std).transpose(2, 0, 1)


def places(view: View) -> list[tuple[int, int, int]]:
    """Token, row and column of each cell that has a token."""
    return [(int(view.tokens[y, x]), int(y), int(x)) for y, x in np.argwhere(view.tokens >= 0)]


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (NEXT_MODEL, [(90, 60)]),
        (NEXT_MODEL, [(90, 31), (20, 77), (64, 64)]),
        (ONEVISION_MODEL, [(30, 50)]),
        (ONEVISION_MODEL, [(30, 50), (90, 60)]),
    ],
    ids=["next", "three of next", "onevision", "two of onevision"],
)
def test_a_cell_shows_the_patch_of_its_token(model: ModelSpec, sizes: list[tuple[int, int]]) -> None:
    images = prepare([noise(*size) for size in sizes], SPEC, model)
    firsts = accumulate((image.packing.tokens for image in images), initial=0)
    views = picture_views(images, SPEC, model.vision)
    for image, first, row in zip(images, firsts, views, strict=False):
        patches = packed_taps(image.packing, model.vision)[0][:, 0]
        shown = [place for view in row for place in places(view)]
        assert [token - first for token, _, _ in shown] == np.flatnonzero(patches >= 0).tolist()
        for view in row:
            assert view.pixels.shape == (PATCH * view.tokens.shape[0], PATCH * view.tokens.shape[1], 3)
            for token, y, x in places(view):
                cell = view.pixels[PATCH * y : PATCH * (y + 1), PATCH * x : PATCH * (x + 1)]
                seen = patch_pixels(image, int(patches[token - first]))
                np.testing.assert_allclose(normalised(cell), seen, atol=1e-5)


def test_a_cell_of_a_grid_that_is_scaled_down_lies_where_its_patches_do() -> None:
    [image] = prepare([noise(90, 80)], SPEC, ONEVISION_MODEL)
    grid = image.packing.grid
    assert grid is not None
    assert grid.resized
    [[_, view]] = picture_views([image], SPEC, ONEVISION_MODEL.vision)
    assert view.tokens.shape == grid.shape
    assert view.pixels.shape == (PATCH * grid.patches[0], PATCH * grid.patches[1], 3)
    taps, weights = packed_taps(image.packing, ONEVISION_MODEL.vision)
    tile, place = np.divmod(taps - SIDE**2, SIDE**2)
    rows = tile // grid.tiles[1] * SIDE + place // SIDE - grid.first[0]
    columns = tile % grid.tiles[1] * SIDE + place % SIDE - grid.first[1]
    for token, y, x in places(view):
        for found, cell, length, count in zip((rows, columns), (y, x), grid.patches, grid.shape, strict=True):
            centre = (found[token] * weights[token]).sum() + 0.5
            assert centre == pytest.approx((cell + 0.5) * length / count, abs=1e-4)


def test_a_picture_of_one_tile_is_one_view() -> None:
    model = replace(NEXT_MODEL, tiling=None)
    images = prepare([noise(30, 30), noise(50, 20)], SPEC, model)
    [first], [second] = picture_views(images, SPEC, model.vision)
    assert np.array_equal(first.pixels, np.asarray(noise(30, 30))[:28, :28])
    assert first.tokens.ravel().tolist() == list(range(16))
    assert second.tokens.ravel().tolist() == list(range(16, 32))


@pytest.mark.parametrize(
    ("published", "feature_select", "expected"),
    [(NEXT, "full", list(range(1, 17))), (ONEVISION, "default", [-1, *range(15)])],
    ids=["CLS is no cell", "the first patch is no token"],
)
def test_tokens_are_not_always_the_patches(
    published: ModelSpec, feature_select: str, expected: list[int]
) -> None:
    model = replace(small(published, feature_select=feature_select), tiling=None)
    [[view]] = picture_views(prepare([noise(30, 30)], SPEC, model), SPEC, model.vision)
    assert view.tokens.ravel().tolist() == expected
