"""How the patches of a picture's tiles become visual tokens, as data that the host makes from its size.

Equal to transformers' ``pack_image_features`` of LLaVA-NeXT and LLaVA-OneVision; grids are scaled down as
by ``torch.nn.functional.interpolate(mode="bilinear")``.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from star_export.contract import NEWLINE, TAPS
from star_export.specs import Grid, VisionSpec

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The visual tokens of one picture: its first tile's, then those of its grid, row by row.

    Attributes:
        tokens: Visual tokens, before any is pruned.
        newlines: How many of them end a row.
        grid: Its other tiles; None if it is not cut.
    """

    tokens: int
    newlines: int = 0
    grid: Grid | None = None


@lru_cache(maxsize=64)
def packed_index(packing: Packing, vision: VisionSpec) -> Int64:
    """Of what patch each visual token is: int64 ``[P]``, numbered tile by tile; -1 for a newline.

    For a picture that is not scaled down.
    """
    return _arrays(packing, vision)[0][:, 0].copy()


@lru_cache(maxsize=64)
def packed_taps(packing: Packing, vision: VisionSpec) -> tuple[Int64, Float32]:
    """Of what four patches each visual token is, and their weights: int64 and float32 ``[P, 4]``."""
    return _arrays(packing, vision)


def _arrays(packing: Packing, vision: VisionSpec) -> tuple[Int64, Float32]:
    whole = np.repeat(np.arange(vision.tile_tokens)[:, None], TAPS, axis=1)
    rows, newline = [whole], np.full((1, TAPS), NEWLINE)
    weights = [_single(len(whole))]
    if packing.grid is None:
        rows += [newline] * packing.newlines
        weights += [_single(packing.newlines)]
    else:
        index, shares = _grid(packing.grid, vision)
        for row, share in zip(index, shares, strict=True):
            rows += [row, newline]
            weights += [share, _single(1)]
    return np.concatenate(rows), np.concatenate(weights)


def _single(count: int) -> Float32:
    """Weights of tokens that are one patch: all on the first tap."""
    return np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))


def _grid(grid: Grid, vision: VisionSpec) -> tuple[Int64, Float32]:
    """Taps and weights of a grid's tokens without newlines: ``[rows, columns, 4]``."""
    (low, high, down), (left, right, across) = (
        _samples(*sizes) for sizes in zip(grid.patches, grid.shape, strict=True)
    )
    corners = [(y, x) for y in (low, high) for x in (left, right)]
    index = np.stack([_patch(grid, vision, *np.ix_(y, x)) for y, x in corners], axis=-1)
    shares = [(v, h) for v in (1 - down, down) for h in (1 - across, across)]
    return index, np.stack([np.outer(v, h) for v, h in shares], axis=-1).astype(np.float32)


def _samples(size: int, wanted: int) -> tuple[Int64, Int64, Float32]:
    """For each of ``wanted`` places along a side: the two nearest of ``size``, and the second's weight."""
    if size == wanted:
        every = np.arange(size)
        return every, every, np.zeros(size, np.float32)
    scale = np.float32(size) / np.float32(wanted)
    # Rounded once, as by the fused multiply-add in torch's kernels.
    places = np.float64(scale) * (np.arange(wanted) + 0.5) - 0.5
    centres = np.maximum(places.astype(np.float32), np.float32(0))
    low = centres.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), (centres - low).astype(np.float32)


def _patch(grid: Grid, vision: VisionSpec, row: Int64, column: Int64) -> Int64:
    """Number of the patch in a row and a column of the grid without its padding."""
    side = vision.grid_side
    row, column = row + grid.first[0], column + grid.first[1]
    tile = 1 + row // side * grid.tiles[1] + column // side
    return tile * vision.tile_tokens + row % side * side + column % side
