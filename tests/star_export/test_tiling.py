"""Which grid a picture takes: transformers' choice and padding; a build expects every grid."""

import random
from dataclasses import replace

import pytest
from transformers.image_processing_utils import select_best_resolution

from star_export.specs import ModelSpec, Tiling, picture_grid
from star_export.specs.tiling import best_pinpoint, every_grid, tiles_range
from tests.shapes import NEXT, ONEVISION


def tiling_of(model: ModelSpec) -> Tiling:
    assert model.tiling is not None
    return model.tiling


def sizes(count: int, seed: int) -> list[tuple[int, int]]:
    """``(height, width)`` from a pixel to ten thousand, up to 200 times as long as wide."""
    generator, found = random.Random(seed), []
    for _ in range(count):
        height = int(10 ** generator.uniform(0, 4))
        found.append((height, max(1, min(int(height * 10 ** generator.uniform(-2.3, 2.3)), 10_000))))
    return found


@pytest.mark.parametrize("model", [NEXT, ONEVISION], ids=lambda model: model.model_type)
def test_the_pin_point_is_transformers(model: ModelSpec) -> None:
    tiling, generator = tiling_of(model), random.Random(1)
    for size in sizes(3_000, seed=2) + [(side, side) for side in range(1, 2_500, 13)]:
        assert best_pinpoint(size, tiling) == select_best_resolution(size, list(tiling.pinpoints)), size
        shuffled = replace(tiling, pinpoints=tuple(generator.sample(tiling.pinpoints, 4)))
        assert best_pinpoint(size, shuffled) == select_best_resolution(size, list(shuffled.pinpoints)), size


def test_the_first_of_equals_wins() -> None:
    """A square is as large in a wide pin point as in a high one; pin points are (height, width)."""
    wide, high = (336, 672), (672, 336)
    for first, second in ((wide, high), (high, wide)):
        tiling = Tiling(pinpoints=(first, second), max_grid=None, several_whole=False)
        assert best_pinpoint((500, 500), tiling) == first
        assert best_pinpoint((300, 600), tiling) == wide
        assert best_pinpoint((600, 300), tiling) == high


@pytest.mark.parametrize(
    ("size", "tiles", "first", "patches"),
    [
        ((480, 640), (2, 2), (6, 0), (36, 48)),
        ((640, 480), (2, 2), (0, 6), (48, 36)),
        ((1, 200), (1, 2), (12, 0), (0, 48)),  # all of it is padding: no row is left
        ((3, 7), (1, 2), (2, 0), (20, 48)),  # 20.57 rows of patches: half of the padding, rounded down
        ((490, 1470), (1, 3), (0, 0), (24, 72)),
        ((161, 1127), (1, 3), (7, 0), (10, 72)),  # 10.285...
    ],
)
def test_what_is_left_of_a_grid(
    size: tuple[int, int], tiles: tuple[int, int], first: tuple[int, int], patches: tuple[int, int]
) -> None:
    grid = picture_grid(size, tiling_of(NEXT), tile=336, side=24)
    assert (grid.tiles, grid.first, grid.patches, grid.shape) == (tiles, first, patches, patches)
    assert not grid.resized
    assert grid.tokens == patches[0] * (patches[1] + 1)


@pytest.mark.parametrize(("height", "width"), [(55, 176), (110, 352), (205, 656)])
def test_a_whole_number_is_rounded_to_itself(height: int, width: int) -> None:
    """Of 24 rows of patches 15 show the picture: in floating point 14.999999999999998."""
    assert int(height * (48 / width)) == 14
    for turn in (slice(None), slice(None, None, -1)):
        tiling = Tiling(pinpoints=((336, 672)[turn],), max_grid=None, several_whole=False)
        grid = picture_grid((height, width)[turn], tiling, tile=336, side=24)
        assert (grid.first, grid.patches) == ((4, 0)[turn], (16, 48)[turn])


@pytest.mark.parametrize(
    ("size", "patches", "shape"),
    [
        ((1080, 1920), (75, 135), (60, 108)),
        ((480, 640), (40, 54), (40, 54)),
        ((1152, 1152), (81, 81), (81, 81)),  # 9 tiles
    ],
)
def test_a_large_grid_is_scaled_down(
    size: tuple[int, int], patches: tuple[int, int], shape: tuple[int, int]
) -> None:
    grid = picture_grid(size, tiling_of(ONEVISION), tile=384, side=27)
    assert (grid.patches, grid.shape, grid.resized) == (patches, shape, patches != shape)


@pytest.mark.parametrize("model", [NEXT, ONEVISION], ids=lambda model: model.model_type)
def test_every_grid_of_a_picture_is_expected(model: ModelSpec) -> None:
    tiling, tile, side = tiling_of(model), model.vision.image_size, model.vision.grid_side
    _, most = tiles_range(tiling, tile=tile)
    assert most == {"llava_next": 5, "llava_onevision": 37}[model.model_type]
    for limit in (2, 3, most):
        expected = set(every_grid(tiling, tile=tile, side=side, max_tiles=limit))
        found = {picture_grid(size, tiling, tile=tile, side=side) for size in sizes(3_000, seed=3)}
        assert {grid for grid in found if 1 + grid.tiles[0] * grid.tiles[1] <= limit} <= expected
        assert all(1 + grid.tiles[0] * grid.tiles[1] <= limit for grid in expected)
