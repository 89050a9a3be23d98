"""Pictures to what the vision graph takes, bit for bit as transformers' image processors on Pillow.

Grey pictures of more than 8 bits are the exception: there they turn white, here they are scaled.
The steps are resize, centre crop, rescale, normalise; their parameters are read
from the source model's processor and stored in the bundle. Families that cut pictures make several
tiles of one; each goes through the same steps.
"""

import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from PIL import Image, ImageOps, UnidentifiedImageError

from star_export.errors import InputError
from star_export.preprocessing.packing import Packing
from star_export.specs import ModelSpec, Side, Tiling, VisionSpec, picture_grid

#: Pictures with more pixels are refused before they are decoded.
MAX_PIXELS = 100_000_000
#: What is decoded. Pillow knows more, and has EPS run by Ghostscript, also what lies in IPTC.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "QOI", "TGA")
#: Longest allowed side over shortest: resizing a sliver would need gigabytes.
MAX_ASPECT_RATIO = 200

# Outside of these float32 pixels would become infinite.
Channel = Annotated[float, Meta(ge=-1e3, le=1e3)]
Spread = Annotated[float, Meta(ge=1e-3, le=1e3)]
#: A Path folds the two slashes into one.
_WEB = re.compile(r"(https?:)/+")

ImageInput = str | Path | bytes | Image.Image


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Parameters of the image processor.

    Attributes:
        shortest_edge: Resize so that the shorter side has this length; None to use ``resize_to``.
        resize_to: Exact ``(height, width)`` to resize to, or None.
        resample: PIL's resampling filter (3 = bicubic).
        crop: ``(height, width)`` of the centre crop, or None.
        rescale_factor: Factor on the 8-bit values, usually 1/255.
        mean: Per channel, subtracted after rescaling.
        std: Per channel, divided by.
    """

    shortest_edge: Side | None
    resize_to: tuple[Side, Side] | None
    resample: Annotated[int, Meta(ge=0, le=5)]
    crop: tuple[Side, Side] | None
    rescale_factor: Annotated[float, Meta(gt=0, le=1)]
    mean: tuple[Channel, Channel, Channel]
    std: tuple[Spread, Spread, Spread]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImage:
    """A picture, ready for the vision graph.

    Attributes:
        pixels: float32 ``[tiles, 3, H, W]``.
        packing: How its patches become visual tokens.
    """

    pixels: npt.NDArray[np.float32]
    packing: Packing

    @cached_property
    def key(self) -> bytes:
        """SHA-256 of all that decides the features: two pictures with one key have the same."""
        found = hashlib.sha256(repr((self.pixels.shape, self.packing)).encode())
        found.update(np.ascontiguousarray(self.pixels).data)
        return found.digest()


def load_image(source: ImageInput) -> Image.Image:
    """Open a picture as RGB, turned upright by its EXIF orientation.

    Args:
        source: A path, the bytes of an encoded picture, or a PIL image.

    Raises:
        InputError: If it does not exist, is no picture, is damaged, or is too large or too thin.
    """
    name = str(source) if isinstance(source, str | Path) else "the picture"
    if _WEB.match(name):
        address = _WEB.sub(r"\1//", name, count=1)
        raise InputError(f"{address} is a web address; download the picture and give its path")
    try:
        image = source if isinstance(source, Image.Image) else _open(source)
        _check_size(image.size, name)
        return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist; give the path of a picture") from error
    except IsADirectoryError as error:
        raise InputError(f"{name} is a folder; give the path of a picture") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture that Pillow can read (PNG, JPEG, WebP, ...)") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has too many pixels; the limit is {MAX_PIXELS}") from error
    except InputError:
        raise
    except Exception as error:  # decoders raise many unrelated types on damaged data
        raise InputError(f"{name} cannot be decoded: {error}") from error


def _open(source: str | Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())


@cache
def _formats() -> list[str]:
    """Those that this Pillow knows: which ones depends on its age."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _rgb(image: Image.Image) -> Image.Image:
    """RGB, with transparent places on white as transformers has them."""
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits, scaled as viewers do; Pillow would cut it off at 255.

    The modes I and F have no white of their own: it is the least usual one that no value exceeds.
    """
    values = np.asarray(image).astype(np.float64)
    whites = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    top = values.max() if np.isfinite(values).all() and values.min() >= 0 else np.inf
    white = next((white for white in whites if top <= white), None)
    if white is None:
        raise InputError(
            f"the picture's grey values run from {values.min():g} to {values.max():g}, expected 0 to "
            f"{whites[-1]}; save it with 8 or 16 bits"
        )
    grey = Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    clear = image.info.get("transparency")  # of 16-bit PNGs: one grey value
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if min(size) < 1:
        raise InputError(f"{name} is {width}x{height}, expected 1x1 pixels at least; give another picture")
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} is {width}x{height}, over the limit of {MAX_PIXELS} pixels; scale it down")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise InputError(f"{name} is {width}x{height}; sides may differ by {MAX_ASPECT_RATIO}x at most")


def visible_pixels(image: Image.Image, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """What a model sees of one RGB picture: resized and cropped, not yet normalised.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    if spec.shortest_edge is not None or spec.resize_to is not None:
        image = image.resize(_resized(image.size, spec), resample=Image.Resampling(spec.resample))
    pixels = np.asarray(image)
    return pixels if spec.crop is None else _center_crop(pixels, spec.crop)


def prepare(images: Sequence[Image.Image], spec: ImageSpec, model: ModelSpec) -> tuple[PreparedImage, ...]:
    """The pictures of one request as the vision graph takes them.

    Args:
        images: RGB.
        spec: The model's image parameters.
        model: What takes them: whether it cuts them into tiles.

    Raises:
        InputError: If one of several is too long for the square that it is padded to.
    """
    tiling, vision = model.tiling, model.vision
    if tiling is None:
        return tuple(_whole(visible_pixels(image, spec), spec, vision) for image in images)
    if tiling.several_whole and len(images) > 1:
        squares = (visible_pixels(_square(image, spec), spec) for image in images)
        return tuple(_whole(pixels, spec, vision, newlines=1) for pixels in squares)
    return tuple(_cut(image, spec, tiling, vision) for image in images)


def _whole(
    pixels: npt.NDArray[np.uint8], spec: ImageSpec, vision: VisionSpec, *, newlines: int = 0
) -> PreparedImage:
    """A picture as one tile."""
    packing = Packing(tokens=vision.tile_tokens + newlines, newlines=newlines)
    return PreparedImage(pixels=_normalised(pixels[None], spec), packing=packing)


def _square(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The picture in the middle of a square of the mean colour."""
    side = max(image.size)
    if side**2 > MAX_PIXELS:
        raise InputError(
            f"one of the pictures is {image.width}x{image.height}; several are padded to squares, "
            f"which may have {MAX_PIXELS} pixels; scale it down"
        )
    square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in spec.mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _cut(image: Image.Image, spec: ImageSpec, tiling: Tiling, vision: VisionSpec) -> PreparedImage:
    """A picture as a tile of all of it, then those that it is cut into, row by row."""
    tile = vision.image_size
    grid = picture_grid((image.height, image.width), tiling, tile=tile, side=vision.grid_side)
    rows, columns = grid.tiles
    canvas = _padded(image, (rows * tile, columns * tile), spec)
    tiles = canvas.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    pixels = np.concatenate([visible_pixels(image, spec)[None], tiles])
    packing = Packing(tokens=vision.tile_tokens + grid.tokens, newlines=grid.shape[0], grid=grid)
    return PreparedImage(pixels=_normalised(pixels, spec), packing=packing)


def _padded(image: Image.Image, size: tuple[int, int], spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """The picture, as large as fits in ``size (height, width)``, in the middle of black."""
    scale_down, scale_across = size[0] / image.height, size[1] / image.width
    if scale_across < scale_down:
        height, width = min(math.ceil(image.height * scale_across), size[0]), size[1]
    else:
        height, width = size[0], min(math.ceil(image.width * scale_down), size[1])
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    resized = image.resize((width, height), resample=Image.Resampling(spec.resample))
    canvas[top : top + height, left : left + width] = np.asarray(resized)
    return canvas


def _normalised(pixels: npt.NDArray[np.uint8], spec: ImageSpec) -> npt.NDArray[np.float32]:
    """Pixels ``[tiles, H, W, 3]`` as the model takes them, ``[tiles, 3, H, W]``."""
    # float64 and back, like transformers: rescaling in float32 would differ in the last bit.
    scaled = (np.arange(256, dtype=np.float64) * spec.rescale_factor).astype(np.float32)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    values = (scaled[:, None] - mean) / std  # [256, 3]: to look up is faster than to compute each pixel
    return np.stack([values[pixels[..., channel], channel] for channel in range(3)], axis=1)


def _resized(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """PIL's ``(width, height)`` after resizing."""
    if spec.resize_to is not None:
        return spec.resize_to[1], spec.resize_to[0]
    assert spec.shortest_edge is not None
    short, long = min(size), max(size)
    scaled_long = int(spec.shortest_edge * long / short)
    if size[0] <= size[1]:
        return spec.shortest_edge, scaled_long
    return scaled_long, spec.shortest_edge


def _center_crop(pixels: npt.NDArray[np.uint8], crop: tuple[int, int]) -> npt.NDArray[np.uint8]:
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape[:2], crop, strict=True))
    return pixels[top : top + crop[0], left : left + crop[1]]
