"""Pictures become exactly the numbers that transformers' processor gives, or a clear refusal."""

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps
from transformers import AutoProcessor

from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.errors import InputError
from star_export.preprocessing import ImageSpec, PreparedImage, convert, load_image, prepare
from star_export.preprocessing.images import Packing
from tests.shapes import NEXT

SIDE = 96  # the "mha" checkpoint's image size
MODEL = replace(NEXT, tiling=None)  # 576 visual tokens, like it


@pytest.fixture(scope="module")
def processor(checkpoint: Callable[[str], Path]) -> Any:
    return AutoProcessor.from_pretrained(checkpoint("mha"), backend="pil")


@pytest.fixture(scope="module")
def spec(processor: Any, checkpoint: Callable[[str], Path]) -> ImageSpec:
    return convert.image_spec(processor, open_checkpoint(str(checkpoint("mha"))).model)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width * 10_000 + height)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels: decoding it fails."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def pixels_of(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    (prepared,) = prepare([image], spec, MODEL)
    return prepared.pixels


def transformers_pixels(processor: Any, image: Image.Image) -> np.ndarray:
    return np.asarray(processor.image_processor(image, return_tensors="np")["pixel_values"])


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    assert np.array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.mark.parametrize(
    "size",
    [
        (400, 300),
        (300, 400),
        (200, 200),
        (SIDE, SIDE),
        (SIDE + 1, SIDE),
        (SIDE, SIDE + 1),
        (SIDE - 1, SIDE + 1),
        (401, 299),
        (40, 31),
        (5, 7),
        (2000, 12),
    ],
    ids=str,
)
def test_sizes_match_transformers(processor: Any, spec: ImageSpec, size: tuple[int, int]) -> None:
    ours = pixels_of(load_image(noise(*size)), spec)
    assert ours.shape == (1, 3, SIDE, SIDE)
    assert_same_bits(ours, transformers_pixels(processor, noise(*size)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_modes_match_transformers(processor: Any, spec: ImageSpec, mode: str) -> None:
    image = noise(150, 131, mode)
    assert_same_bits(pixels_of(load_image(image), spec), transformers_pixels(processor, image))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_matches_transformers(processor: Any, spec: ImageSpec, mode: str) -> None:
    image = noise(150, 131)
    image.putalpha(noise(150, 131, "L"))
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    assert_same_bits(pixels_of(load_image(image), spec), transformers_pixels(processor, image))


GREY = np.array([[0, 1, 128, 257, 25_700, 32_896, 65_406, 65_535]] * 3)  # 128 and 65406 lie nearly between
EIGHT_BITS = [0, 0, 0, 1, 100, 128, 254, 255]


@pytest.mark.parametrize(
    ("dtype", "mode", "kind"),
    [
        *(("<u2", "I;16", kind) for kind in (None, "PNG", "TIFF")),
        *((">u2", "I;16B", kind) for kind in (None, "PNG", "TIFF")),
        *(("i4", "I", kind) for kind in (None, "TIFF")),
        *(("f4", "F", kind) for kind in (None, "TIFF")),
    ],
)
def test_grey_of_16_bits_is_scaled(dtype: str, mode: str, kind: str | None) -> None:
    image = Image.fromarray(GREY.astype(dtype))
    assert image.mode == mode
    loaded = load_image(encoded(image, kind) if kind else image)
    assert np.asarray(loaded)[0].tolist() == [[grey] * 3 for grey in EIGHT_BITS]


def test_grey_of_16_bits_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = load_image(encoded(Image.fromarray(GREY.astype("<u2")), exif=exif))
    assert np.asarray(loaded)[:, 0, 0].tolist() == EIGHT_BITS


def test_transparent_grey_of_16_bits_is_white() -> None:
    loaded = load_image(encoded(Image.fromarray(GREY.astype("<u2")), transparency=257))
    assert np.asarray(loaded)[0, :, 1].tolist() == [0, 0, 0, 255, *EIGHT_BITS[4:]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.int32([[0, 100, 255]]), [0, 100, 255]),
        (np.float32([[0, 0.5, 1]]), [0, 128, 255]),
        (np.float32([[0, 100.4, 255]]), [0, 100, 255]),
    ],
)
def test_grey_without_a_range_of_its_own(values: np.ndarray, expected: list[int]) -> None:
    assert np.asarray(load_image(Image.fromarray(values)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [70_000, -1, np.nan, np.inf])
def test_grey_out_of_every_range_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="expected 0 to 65535; save it with 8 or 16 bits"):
        load_image(Image.fromarray(np.float32([[0, value]])))


def test_rgb_of_16_bits() -> None:
    """A TIFF of three 16-bit samples; Pillow keeps the upper byte."""
    pixel = struct.pack("<3H", 0x1234, 0x80FF, 0xFFFF)
    tags = [(256, 3, 1), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 2), (273, 4, 110), (277, 3, 3)]
    tags += [(278, 3, 1)]
    entries = b"".join(struct.pack("<HHIHH", tag, kind, 1, value, 0) for tag, kind, value in tags)
    entries = entries.replace(struct.pack("<HHIHH", 258, 3, 1, 16, 0), struct.pack("<HHII", 258, 3, 3, 122))
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    data = data.ljust(110, b"\0") + pixel.ljust(12, b"\0") + struct.pack("<3H", 16, 16, 16)
    assert np.asarray(load_image(data))[0, 0].tolist() == [0x12, 0x80, 0xFF]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kind", [str, Path])
def test_web_address(scheme: str, kind: Callable[[str], Any]) -> None:
    with pytest.raises(InputError, match=f"{scheme}://example.org/dog.png is a web address; download"):
        load_image(kind(f"{scheme}://example.org/dog.png"))


def test_damaged_exif_is_refused_in_one_line() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    data = bytearray(encoded(noise(40, 30), "JPEG", exif=exif))
    data[41] = 0
    with pytest.raises(InputError, match="cannot be decoded"):
        load_image(bytes(data))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 127}, "crop_size": {"height": 96, "width": 96}},
        {"size": {"height": 96, "width": 96}, "do_center_crop": False},
        {"size": {"height": 101, "width": 120}, "crop_size": {"height": 96, "width": 96}},
        {"resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    ],
)
def test_other_processors_match_transformers(
    checkpoint: Callable[[str], Path], settings: dict[str, Any]
) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint("mha"), **settings)
    spec = convert.image_spec(processor, open_checkpoint(str(checkpoint("mha"))).model)
    image = noise(211, 158)
    assert_same_bits(pixels_of(image, spec), transformers_pixels(processor, image))


def test_spec_survives_json(spec: ImageSpec) -> None:
    lists = ImageSpec(**json.loads(json.dumps(asdict(spec))))
    image = noise(50, 60)
    assert_same_bits(pixels_of(image, lists), pixels_of(image, spec))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = noise(30, 20)
    upright = {
        1: picture,
        2: ImageOps.mirror(picture),
        3: picture.rotate(180),
        4: ImageOps.flip(picture),
        5: ImageOps.mirror(picture.rotate(270, expand=True)),
        6: picture.rotate(270, expand=True),
        7: ImageOps.mirror(picture.rotate(90, expand=True)),
        8: picture.rotate(90, expand=True),
    }[orientation]
    loaded = load_image(encoded(picture, exif=exif))
    assert np.array_equal(np.asarray(loaded), np.asarray(upright))


def test_path_string_bytes_and_image_are_the_same(picture: Path) -> None:
    expected = np.asarray(Image.open(picture).convert("RGB"))
    for source in (picture, str(picture), picture.read_bytes(), Image.open(picture)):
        assert np.array_equal(np.asarray(load_image(source)), expected)


def test_the_callers_image_stays_as_it_is() -> None:
    image = noise(20, 30, "RGBA")
    load_image(image)
    assert (image.mode, image.size) == ("RGBA", (20, 30))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.png does not exist; give the path of a picture"):
        load_image(tmp_path / "no.png")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"{re.escape(str(tmp_path))} is a folder; give the path of a picture"
    ):
        load_image(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"just some text\n" * 20, b"\x89PNG\r\n\x1a\n"])
def test_content_that_is_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png is not a picture that Pillow can read"):
        load_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"the picture (is not a picture|cannot be decoded)"):
        load_image(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_formats_that_are_read(kind: str) -> None:
    assert load_image(encoded(noise(32, 32), kind)).size == (32, 32)


def test_what_another_program_would_run_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands EPS to Ghostscript."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it looks for it once
    data = encoded(noise(40, 30), "EPS")
    with suppress(OSError):  # nothing comes out of this one
        Image.open(io.BytesIO(data)).load()
    (tmp_path / "ran").unlink()  # Pillow by itself did
    with pytest.raises(InputError, match="the picture is not a picture that Pillow can read"):
        load_image(data)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_picture(kind: str) -> None:
    data = encoded(noise(100, 80), kind)
    with pytest.raises(InputError, match=r"the picture (cannot be decoded|is not a picture)"):
        load_image(data[: len(data) // 2])


@pytest.mark.parametrize("size", [(30_000, 30_000), (60_000, 60_000)])
def test_huge_picture_is_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="too many pixels; the limit is 100000000"):
        load_image(png_header(*size))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_picture_is_refused_before_decoding() -> None:
    with pytest.raises(InputError, match="12000x12000, over the limit of 100000000 pixels; scale it down"):
        load_image(png_header(12_000, 12_000))
    with pytest.raises(InputError, match="cannot be decoded"):  # small enough: only now decoded
        load_image(png_header(1_000, 1_000))


def test_no_pixels() -> None:
    with pytest.raises(InputError, match="the picture is 0x5, expected 1x1 pixels at least"):
        load_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("size", [(10_000, 10), (10, 10_000), (201, 1)])
def test_sliver(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]}; sides may differ by 200x at most"):
        load_image(noise(*size))


@pytest.mark.parametrize(
    ("mode", "top", "expected"),
    [
        ("I", 255, 255),
        ("I", 200, 200),
        ("I", 256, 1),
        ("I", 25700, 100),
        ("F", 0.5, 128),
        ("F", 200, 200),
        ("F", 514, 2),
    ],
)
def test_white_is_the_least_usual_one_that_no_value_exceeds(mode: str, top: float, expected: int) -> None:
    values = np.array([[0, top]], np.int32 if mode == "I" else np.float32)
    pixels = np.asarray(load_image(Image.fromarray(values, mode)))
    assert pixels[0].tolist() == [[0] * 3, [expected] * 3]


def test_a_prepared_picture_says_how_many_visual_tokens_it_gives(spec: ImageSpec) -> None:
    (image,) = prepare([noise(50, 40)], spec, MODEL)
    assert (image.pixels.shape, image.pixels.dtype) == ((1, 3, SIDE, SIDE), np.float32)
    assert image.packing == Packing(tokens=576)


def test_the_key_tells_pictures_apart_by_every_pixel_shape_and_packing() -> None:
    image = PreparedImage(pixels=np.zeros((1, 3, 4, 4), np.float32), packing=Packing(tokens=4))
    others = [
        replace(image, pixels=image.pixels.reshape(3, 1, 4, 4)),
        replace(image, packing=Packing(tokens=1)),
    ]
    for place in ((0, 0, 0, 0), (0, 2, 3, 3), (0, 1, 2, 1)):
        pixels = image.pixels.copy()
        pixels[place] = 1e-7
        others.append(replace(image, pixels=pixels))
    assert len({image.key, *(other.key for other in others)}) == 6
    assert replace(image, pixels=image.pixels.copy()).key == image.key
    assert replace(image, pixels=image.pixels[:, :, ::-1]).key == image.key  # not contiguous
