"""Pictures as the model sees them, and where in them each visual token is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from star_export.preprocessing.images import ImageSpec, PreparedImage
from star_export.specs import Grid, VisionSpec

Pixels = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class View:
    """One look at a picture: all of it as one tile, or its grid of tiles.

    Attributes:
        pixels: What the tokens show of it, uint8 ``[H, W, 3]``.
        tokens: Number of the request's visual token in each cell, int64 ``[rows, columns]``; -1 for none.
    """

    pixels: Pixels
    tokens: Int64


#: Of each picture of a request.
Views = Sequence[Sequence[View]]


def picture_views(
    images: Sequence[PreparedImage], spec: ImageSpec, vision: VisionSpec
) -> tuple[tuple[View, ...], ...]:
    """What a figure of a request shows: each picture as one tile, and behind it the grid if it is cut.

    Args:
        images: The pictures of one request.
        spec: What prepared them.
        vision: The tower that sees them.
    """
    firsts = accumulate((image.packing.tokens for image in images), initial=0)
    return tuple(_views(image, first, spec, vision) for image, first in zip(images, firsts, strict=False))


def _views(image: PreparedImage, first: int, spec: ImageSpec, vision: VisionSpec) -> tuple[View, ...]:
    """Of a picture whose visual tokens begin with number ``first``."""
    side, grid = vision.grid_side, image.packing.grid
    seen = side * vision.patch_size  # pixels that are no whole patch belong to no token
    tiles = _visible(image, spec)[:, :seen, :seen]
    # A CLS among the tokens is no cell; a first patch that is left out in its place is no token.
    numbers = np.arange(side**2).reshape(side, side) + (vision.tile_tokens - side**2)
    whole = View(tiles[0], np.where(numbers < 0, -1, first + numbers))
    if grid is None:
        return (whole,)
    rows = np.arange(grid.tokens).reshape(grid.shape[0], -1)
    return whole, View(_uncut(tiles[1:], grid, vision.patch_size), first + vision.tile_tokens + rows[:, :-1])


def _visible(image: PreparedImage, spec: ImageSpec) -> Pixels:
    """A picture's tiles before they were normalised, ``[tiles, H, W, 3]``."""
    values = image.pixels.transpose(0, 2, 3, 1).astype(np.float64) * spec.std + spec.mean
    return np.clip(np.rint(values / spec.rescale_factor), 0, 255).astype(np.uint8)


def _uncut(tiles: Pixels, grid: Grid, patch: int) -> Pixels:
    """The picture that was cut into ``tiles``, without its padding."""
    (rows, columns), side = grid.tiles, tiles.shape[1]
    canvas = tiles.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, -1, 3)
    top, left, height, width = (patch * length for length in (*grid.first, *grid.patches))
    return canvas[top : top + height, left : left + width]
