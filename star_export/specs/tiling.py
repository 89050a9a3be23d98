"""Pictures of any size as tiles ("anyres"): which grid a picture takes, how many visual tokens that gives.

The picture as a whole is the first tile. It is also scaled into the pin point that keeps most of its pixels,
padded, and cut into tiles; of their patches those that show padding alone are left out, and a newline ends
every row. Plain integers, equal to those of transformers' ``select_best_resolution`` and ``unpad_image``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from star_export.specs.values import Count, Side

#: A grid is scaled down when its sides are longer than allowed by more than this (OneVision).
_TOLERATED = 1.1


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a family cuts pictures.

    Attributes:
        pinpoints: ``(height, width)`` in pixels that a picture may be scaled into.
        max_grid: Tiles' worth of tokens above which a grid is scaled down, behind the projector; None: never.
        several_whole: Whether each of several pictures is one tile, padded to a square, and not cut.
    """

    pinpoints: tuple[tuple[Side, Side], ...]
    max_grid: Count | None
    several_whole: bool


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The tiles of one picture behind its first, and what is left of their patches.

    Attributes:
        tiles: ``(rows, columns)`` of tiles.
        first: Row and column of the first patch that does not show padding.
        patches: ``(rows, columns)`` of patches from there on that are left.
        shape: The same after scaling down: visual tokens without newlines.
    """

    tiles: tuple[int, int]
    first: tuple[int, int]
    patches: tuple[int, int]
    shape: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Visual tokens, one newline for each row included."""
        return self.shape[0] * (self.shape[1] + 1)

    @property
    def resized(self) -> bool:
        """Whether it is scaled down."""
        return self.shape != self.patches


def best_pinpoint(size: tuple[int, int], tiling: Tiling) -> tuple[int, int]:
    """The pin point that keeps most pixels of a picture of ``size (height, width)``, then wastes least.

    The first of equals wins.
    """
    height, width = size

    def merit(pinpoint: tuple[int, int]) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(tiling.pinpoints, key=merit)


def picture_grid(size: tuple[int, int], tiling: Tiling, *, tile: int, side: int) -> Grid:
    """The grid of a picture.

    Args:
        size: ``(height, width)`` of the picture.
        tiling: The family's.
        tile: Pixels along a tile's side.
        side: Patches along it.
    """
    (height, width), pinpoint = size, best_pinpoint(size, tiling)
    tiles = pinpoint[0] // tile, pinpoint[1] // tile
    rows, columns = tiles[0] * side, tiles[1] * side
    top = left = 0
    # Rounded as transformers does: 143.99999999 is 144.
    if width / height > columns / rows:
        top = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        left = (columns - int(round(width * (rows / height), 7))) // 2
    return _grid(tiles, (top, left), (rows, columns), tiling, side)


def _grid(
    tiles: tuple[int, int], first: tuple[int, int], whole: tuple[int, int], tiling: Tiling, side: int
) -> Grid:
    patches = (whole[0] - 2 * first[0], whole[1] - 2 * first[1])
    shape = patches
    if tiling.max_grid is not None:
        ratio = math.sqrt(patches[0] * patches[1] / (tiling.max_grid * side**2))
        if ratio > _TOLERATED:
            shape = (int(patches[0] // ratio), int(patches[1] // ratio))
    return Grid(tiles=tiles, first=first, patches=patches, shape=shape)


def every_grid(tiling: Tiling, *, tile: int, side: int, max_tiles: int) -> Iterator[Grid]:
    """All grids of at most ``max_tiles - 1`` tiles that a picture of some size could take, and some more."""
    for height, width in tiling.pinpoints:
        tiles = height // tile, width // tile
        whole = tiles[0] * side, tiles[1] * side
        if tiles[0] * tiles[1] < max_tiles:
            yield from (_grid(tiles, (top, 0), whole, tiling, side) for top in range(whole[0] // 2 + 1))
            yield from (_grid(tiles, (0, left), whole, tiling, side) for left in range(1, whole[1] // 2 + 1))


def tiles_range(tiling: Tiling, *, tile: int) -> tuple[int, int]:
    """Tiles of the picture that has least, and of the one that has most, the first included."""
    counts = [1 + (height // tile) * (width // tile) for height, width in tiling.pinpoints]
    return min(counts), max(counts)
