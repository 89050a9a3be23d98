"""What pictures a bundle takes: how many, of how many tiles, of how many visual tokens."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from star_export.errors import SettingsError, option
from star_export.specs.model import ModelSpec
from star_export.specs.tiling import every_grid, picture_grid, tiles_range
from star_export.specs.values import Count


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """The most that a request's pictures may have.

    Attributes:
        max_images: Pictures of a request.
        max_tiles: Tiles of a picture, the first, which shows all of it, included.
        max_image_tokens: Visual tokens of all pictures together, before any is pruned.
    """

    max_images: Count
    max_tiles: Count
    max_image_tokens: Count


def resolve_images(
    model: ModelSpec,
    *,
    max_images: int = 1,
    max_tiles: int | None = None,
    max_image_tokens: int | None = None,
    room: int,
) -> ImageLimits:
    """Limits from the user's options.

    Args:
        model: The model.
        max_images: Pictures of a request.
        max_tiles: Tiles of a picture; by default what the largest picture has.
        max_image_tokens: Visual tokens of a request; by default what these pictures can have at most, if
            there is room for it.
        room: Positions that the model has besides those of text and answer.

    Raises:
        SettingsError: If a number is out of range.
    """
    tile, tiling = model.vision.image_size, model.tiling
    least, most = (1, 1) if tiling is None else tiles_range(tiling, tile=tile)
    tiles = most if max_tiles is None else max_tiles
    if not least <= tiles <= most:
        raise SettingsError(
            f"{option('max_tiles')} must be from {least} to {most} for this model, got {tiles}"
        )
    if max_images < 1:
        raise SettingsError(f"{option('max_images')} must be at least 1, got {max_images}")
    smallest, needed = smallest_image(model)[0], _largest(model, max_images, tiles)
    # No room for any picture: check_capacities says so, by the options that take it.
    tokens = min(needed, max(room, smallest)) if max_image_tokens is None else max_image_tokens
    if tokens < smallest:
        raise SettingsError(
            f"{option('max_image_tokens', tokens)} has no room for a picture, which has {smallest} visual "
            "tokens at least; give more"
        )
    if max_images * smallest > tokens:
        raise SettingsError(
            f"{option('max_images', max_images)}: so many pictures have {max_images * smallest} visual "
            f"tokens at least, and there is room for {tokens}; give at most {tokens // smallest}"
        )
    return ImageLimits(max_images=max_images, max_tiles=tiles, max_image_tokens=min(tokens, needed))


def check_images(images: ImageLimits, model: ModelSpec) -> None:
    """Refuse limits that contradict the model.

    Raises:
        SettingsError: If a tile is no whole part of a pin point, or there is no room for any picture.
    """
    tile = model.vision.image_size
    lengths = [length for pair in model.tiling.pinpoints for length in pair] if model.tiling else [tile]
    if not lengths or any(length % tile for length in lengths):
        raise SettingsError(f"the pin points are no whole tiles of {tile} px: {lengths}")
    sizes = (size for size, _ in _sizes(model, images.max_tiles))
    if min(sizes, default=images.max_image_tokens + 1) > images.max_image_tokens:
        raise SettingsError(f"{images} have no room for any picture")


def largest_request(model: ModelSpec, limits: ImageLimits, count: Callable[[int, int], int]) -> int:
    """A bound of the sum over a request's pictures of a number that follows from a picture's size.

    Of one picture it is the largest such number.

    Args:
        model: The model.
        limits: What a request may hold.
        count: From a picture's visual tokens, and newlines among them, to the number: at most the tokens.
    """
    most = limits.max_image_tokens
    one = max((count(*size) for size in _sizes(model, limits.max_tiles) if size[0] <= most), default=1)
    if model.tiling is None or not model.tiling.several_whole:
        return min(limits.max_images * one, most)
    return max(one, min(limits.max_images * count(*_whole(model)), most)) if limits.max_images > 1 else one


def smallest_image(model: ModelSpec) -> tuple[int, int]:
    """Visual tokens of the smallest picture, and newlines among them."""
    return model.vision.tile_tokens, 0


def picture_tokens(model: ModelSpec, size: tuple[int, int]) -> tuple[int, int]:
    """Visual tokens of a picture of ``size (height, width)``, alone in its request, and its newlines."""
    vision, tiling = model.vision, model.tiling
    if tiling is None:
        return vision.tile_tokens, 0
    grid = picture_grid(size, tiling, tile=vision.image_size, side=vision.grid_side)
    return vision.tile_tokens + grid.tokens, grid.shape[0]


def _largest(model: ModelSpec, max_images: int, max_tiles: int) -> int:
    unlimited = ImageLimits(max_images=max_images, max_tiles=max_tiles, max_image_tokens=sys.maxsize)
    return largest_request(model, unlimited, lambda tokens, _newlines: tokens)


def _sizes(model: ModelSpec, max_tiles: int) -> Iterator[tuple[int, int]]:
    """Visual tokens, and newlines among them, of every picture that is alone in its request."""
    vision, tiling = model.vision, model.tiling
    if tiling is None:
        yield vision.tile_tokens, 0
        return
    for grid in every_grid(tiling, tile=vision.image_size, side=vision.grid_side, max_tiles=max_tiles):
        yield vision.tile_tokens + grid.tokens, grid.shape[0]


def _whole(model: ModelSpec) -> tuple[int, int]:
    """The same of a picture that is not cut, in a family that cuts: a newline ends it."""
    return model.vision.tile_tokens + 1, 1
