"""Picture files of every kind that the C++ readers take, and ways to damage them."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

Random = np.random.Generator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIZES = ((1, 1), (1, 9), (7, 1), (2, 3), (8, 8), (15, 17), (16, 16), (33, 31), (64, 48), (101, 67))
#: PNG's colour types: samples of a pixel and bits that they may have.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def noisy(random: Random, width: int, height: int, channels: int = 3) -> np.ndarray:
    """Large and small structure, ``uint8 [height, width, channels]``."""
    small = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
    large = small.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].astype(int)
    noise = random.integers(-30, 31, large.shape)
    return np.clip(large + noise, 0, 255).astype(np.uint8)


def exif(orientation: int | None, *, dpi: bool = False) -> bytes:
    """EXIF data of Pillow's."""
    found = Image.Exif()
    if orientation is not None:
        found[274] = orientation
    found[271] = "a camera of some length"
    if dpi:
        found[282], found[296] = 72.0, 2
    return found.tobytes()


def raw_exif(kind: int, count: int, value: bytes, *, order: str = "<", tag: int = 274) -> bytes:
    """EXIF data with one entry of any type, which is behind it where it is long."""
    head = (b"II\x2a\x00" if order == "<" else b"MM\x00\x2a") + struct.pack(order + "I", 8)
    inside = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", 26)
    entry = struct.pack(order + "HHI", tag, kind, count) + inside
    return b"Exif\0\0" + head + struct.pack(order + "H", 1) + entry + bytes(4) + value * (len(value) > 4)


def odd_exifs() -> Iterator[bytes]:
    """Orientations of unusual types, and data that is none."""
    for order in "<>":
        yield raw_exif(3, 1, struct.pack(order + "H", 6), order=order)
        yield raw_exif(3, 2, struct.pack(order + "HH", 6, 3), order=order)
        yield raw_exif(3, 3, struct.pack(order + "HHH", 8, 3, 3), order=order)
        yield raw_exif(4, 1, struct.pack(order + "I", 5), order=order)
        yield raw_exif(4, 1, struct.pack(order + "I", 2**31 + 6), order=order)
        yield raw_exif(5, 1, struct.pack(order + "II", 6, 1), order=order)
        yield raw_exif(5, 1, struct.pack(order + "II", 7, 2), order=order)
        yield raw_exif(5, 1, struct.pack(order + "II", 6, 0), order=order)
        yield raw_exif(10, 1, struct.pack(order + "ii", -8, -1), order=order)
        yield raw_exif(11, 1, struct.pack(order + "f", 7), order=order)
        yield raw_exif(12, 1, struct.pack(order + "d", 3), order=order)
        yield raw_exif(16, 1, struct.pack(order + "Q", 4), order=order)
        yield raw_exif(8, 1, struct.pack(order + "h", 8), order=order)
        yield raw_exif(9, 1, struct.pack(order + "i", -6), order=order)
        yield raw_exif(3, 0, b"", order=order)
        yield raw_exif(3, 1, struct.pack(order + "H", 9), order=order)
        yield raw_exif(3, 1, struct.pack(order + "H", 0), order=order)
    yield raw_exif(1, 1, b"\6")
    yield raw_exif(7, 1, b"\6")
    yield raw_exif(2, 2, b"6\0")
    yield raw_exif(99, 1, b"\6")
    yield raw_exif(3, 1, b"\6\0", tag=275)
    yield b"Exif\0\0"
    yield b"Exif\0\0Exif\0\0" + raw_exif(3, 1, b"\6\0")[6:]
    yield b"Exif\0\0II\x2a\x00\x08"
    yield b"Exif\0\0no TIFF at all"
    yield b"Exif\0\0II\x2b\x00\x08\0\0\0\0\0"
    yield raw_exif(3, 1, b"\6\0")[:20]
    yield raw_exif(3, 3, b"\6\0\0\0\0\0")[:-3]
    yield b"Exif\0\0II\x2a\x00\xff\xff\xff\xff" + bytes(40)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    to = io.BytesIO()
    image.save(to, kind, **options)  # type: ignore[arg-type]
    return to.getvalue()


def jpegs(random: Random) -> Iterator[bytes]:
    """Modes, sizes, qualities, subsampling, scans, orientations."""
    for index, (width, height) in enumerate(_SIZES):
        image = Image.fromarray(noisy(random, width, height))
        for quality in (5, 50, 75, 90, 100):
            subsampling = (index + quality) % 3
            progressive, optimize = quality == 50, quality == 75
            yield _saved(
                image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive,
                optimize=optimize,
            )  # fmt: skip
        for subsampling in range(3):
            yield _saved(image, "JPEG", subsampling=subsampling, progressive=True, restart_marker_rows=1)
        grey = image.convert("L")
        yield _saved(grey, "JPEG", quality=80, progressive=index % 2 == 0)
        cmyk = Image.fromarray(noisy(random, width, height, 4), "CMYK")
        yield _saved(cmyk, "JPEG", quality=90, progressive=index % 2 == 0)
        yield _saved(image, "JPEG", keep_rgb=True)
    for orientation in (None, *range(10)):
        image = Image.fromarray(noisy(random, 37, 22))
        yield _saved(image, "JPEG", exif=exif(orientation))
        yield _saved(image, "JPEG", exif=exif(orientation, dpi=True), dpi=(72, 72))
        if orientation is not None:
            for text in (f'tiff:Orientation="{orientation}"', f"<tiff:Orientation>{orientation}</x>"):
                yield _saved(image, "JPEG", xmp=b"tiff:Orientation= " + text.encode())
    for data in odd_exifs():
        image = Image.fromarray(noisy(random, 21, 30))
        yield _saved(image, "JPEG", exif=data)
        yield _saved(image, "JPEG", exif=data, dpi=(72, 72))
    yield ycck(random)


def large(random: Random) -> Iterator[bytes]:
    """Files of some hundred kilobytes."""
    image = Image.fromarray(noisy(random, 1003, 702))
    for subsampling in range(3):
        yield _saved(image, "JPEG", quality=92, subsampling=subsampling)
        yield _saved(image, "JPEG", quality=92, subsampling=subsampling, progressive=True)
    yield _saved(image, "PNG", compress_level=1)
    yield _saved(Image.fromarray(noisy(random, 702, 1003, 4), "RGBA"), "PNG", compress_level=1)


def ycck(random: Random) -> bytes:
    """Four channels, of which Adobe's marker says that three are a luma and chromas."""
    data = _saved(Image.fromarray(noisy(random, 45, 38, 4), "CMYK"), "JPEG", quality=90)
    at = data.index(b"Adobe")
    return data[: at + 11] + b"\2" + data[at + 12 :]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int, height: int) -> bytes:
    """A PNG file that claims to be of this size."""
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return SIGNATURE + content + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def png(
    random: Random, size: tuple[int, int], bits: int, colour: int, *extra: bytes, behind: bytes = b""
) -> bytes:
    """A PNG file of random samples, with filters of all kinds."""
    width, height = size
    row_bytes = (width * bits * _SAMPLES[colour] + 7) // 8
    rows = random.integers(0, 256, (height, 1 + row_bytes), dtype=np.uint8)
    if width > 16:
        rows[:, 1:] //= 64
    rows[:, 0] %= 5
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = zlib.compress(rows.tobytes())
    half = len(data) // 2
    pixels = chunk(b"IDAT", data[:half]) + chunk(b"IDAT", b"") + chunk(b"IDAT", data[half:])
    return SIGNATURE + header + b"".join(extra) + pixels + behind + chunk(b"IEND", b"")


def _palette(random: Random, colours: int) -> bytes:
    return chunk(b"PLTE", random.bytes(3 * colours))


def pngs(random: Random) -> Iterator[bytes]:
    """Every colour type and number of bits, with and without transparency; palettes; orientations."""
    for colour, every in _BITS.items():
        for bits in every:
            for size in _SIZES:
                colours = random.integers(1, 2**bits + 1) if colour == 3 else 0
                palette = (_palette(random, colours),) if colour == 3 else ()
                yield png(random, size, bits, colour, *palette)
                for clear in clears(random, bits, colour, colours):
                    yield png(random, size, bits, colour, *palette, chunk(b"tRNS", clear))
    yield from saved_pngs(random)
    yield from oriented_pngs(random)


def clears(random: Random, bits: int, colour: int, colours: int) -> Iterator[bytes]:
    """Contents of tRNS."""
    if colour == 3:
        yield random.bytes(colours)
        yield b"\xff" * (colours - 1) + b"\0"
        yield random.bytes(min(colours + 3, 256))
        yield b""
    elif colour in (0, 2):
        for _ in range(2):
            values = random.integers(0, min(2**bits, 4), _SAMPLES[colour])
            yield struct.pack(f">{len(values)}H", *values)
        yield struct.pack(f">{_SAMPLES[colour]}H", *[0x100 + 2] * _SAMPLES[colour])


def saved_pngs(random: Random) -> Iterator[bytes]:
    """What Pillow writes, and interlaced ones."""
    for width, height in _SIZES:
        image = Image.fromarray(noisy(random, width, height))
        alpha = Image.fromarray(noisy(random, width, height, 4), "RGBA")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
            yield _saved((alpha if "A" in mode else image).convert(mode), "PNG", compress_level=width % 10)
        wide = random.integers(0, 65536, (height, width), dtype=np.uint16)
        yield _saved(Image.fromarray(wide), "PNG")
        yield _saved(image.quantize(7), "PNG", transparency=3)
        yield _saved(image.quantize(100), "PNG", transparency=bytes(range(0, 200, 2)))
        for colour, bits in (
            (0, 1),
            (0, 2),
            (0, 4),
            (0, 8),
            (0, 16),
            (2, 8),
            (2, 16),
            (3, 4),
            (3, 8),
            (4, 16),
            (6, 8),
        ):
            yield interlaced(random, (width, height), bits, colour)


def interlaced(random: Random, size: tuple[int, int], bits: int, colour: int) -> bytes:
    """The seven passes of Adam7, of random samples."""
    (width, height), rows = size, b""
    for x, y, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
    ):  # fmt: skip
        wide, high = -(-(width - x) // across), -(-(height - y) // down)
        if wide > 0 and high > 0:
            row_bytes = (wide * bits * _SAMPLES[colour] + 7) // 8
            for _ in range(high):
                rows += bytes([random.integers(5)]) + random.bytes(row_bytes)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 1))
    palette = _palette(random, 2**bits) if colour == 3 else b""
    return SIGNATURE + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def oriented_pngs(random: Random) -> Iterator[bytes]:
    """EXIF and XMP data in the places where they may be."""
    size = (19, 26)
    for orientation in range(10):
        data = exif(orientation)
        yield png(random, size, 8, 2, chunk(b"eXIf", data[6:]))
        yield png(random, size, 16, 0, behind=chunk(b"eXIf", data[6:]))
        digits = data.hex().encode()
        profile = b"\nexif\n%8d\n" % len(data) + digits[:72] + b"\n" + digits[72:] + b"\n"
        yield png(random, size, 8, 6, chunk(b"tEXt", b"Raw profile type exif\0" + profile))
        yield png(random, size, 8, 6, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)))
        yield png(random, size, 8, 6, chunk(b"tEXt", b"exif\0" + data))
        xmp = b'<x tiff:Orientation="%d"/>' % orientation
        for value in (b"\0\0\0\0" + xmp, b"\1\0en\0key\0" + zlib.compress(xmp)):
            yield png(random, size, 8, 2, chunk(b"iTXt", b"XML:com.adobe.xmp\0" + value))
    for data in odd_exifs():
        yield png(random, size, 8, 2, chunk(b"eXIf", data[6:]))
    for extra in odd_chunks():
        yield png(random, size, 8, 2, extra)
        yield png(random, size, 8, 2, behind=extra)


def odd_chunks() -> Iterator[bytes]:
    """What readers differ in: short, damaged and unknown ones."""
    for kind, length in ((b"gAMA", 4), (b"cHRM", 32), (b"sRGB", 1), (b"pHYs", 9), (b"tRNS", 6), (b"bKGD", 6)):
        yield chunk(kind, bytes(length))
        yield chunk(kind, bytes(length - 1))
    profile = zlib.compress(bytes(500))
    yield chunk(b"iCCP", b"name\0\0" + profile)
    yield chunk(b"iCCP", b"name\0\0" + profile[:-9])
    yield chunk(b"iCCP", b"name\0\0not compressed")
    yield chunk(b"iCCP", b"name\0\1" + profile)
    yield chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(3 << 20)))
    yield chunk(b"zTXt", b"key\0\0" + profile)
    yield chunk(b"zTXt", b"key\0\0not compressed")
    yield chunk(b"zTXt", b"key\0\1" + profile)
    yield chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(3 << 20)))
    yield chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n\n\nzz"))
    yield chunk(b"tEXt", b"key without a value")
    yield chunk(b"tEXt", b"transparency\0white")
    yield chunk(b"iTXt", b"key\0\1\0\0\0not compressed")
    yield chunk(b"iTXt", b"key\0\0")
    yield chunk(b"prIv", b"private")
    yield chunk(b"acTL", struct.pack(">II", 2, 0))
    yield chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(
        b"fcTL", struct.pack(">IIIIIHHBB", 0, 19, 26, 0, 0, 1, 1, 0, 0)
    )
    yield chunk(b"hIST", b"")[:-1] + b"!"  # Its checksum is wrong.


def animated(random: Random) -> bytes:
    """An animation of Pillow's, and its first frame."""
    frames = [Image.fromarray(noisy(random, 30, 20)) for _ in range(3)]
    return _saved(frames[0], "PNG", save_all=True, append_images=frames[1:])


def with_text(random: Random) -> bytes:
    """A PNG file with texts before and behind its pixels."""
    info = PngImagePlugin.PngInfo()
    info.add_text("key", "value" * 20)
    info.add_text("late", "text " * 50, zip=True)
    return _saved(Image.fromarray(noisy(random, 40, 30)), "PNG", pnginfo=info, exif=exif(6))


def damaged(random: Random, data: bytes) -> bytes:
    """A file cut off, with flipped bits, or with bytes that are not its own."""
    what = random.integers(4)
    if what == 0:
        return data[: random.integers(len(data))]
    if what == 1:
        return data[: -int(random.integers(1, min(40, len(data))))]
    found = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(found)))
        found[at] = found[at] ^ (1 << int(random.integers(8))) if what == 2 else int(random.integers(256))
    return bytes(found)
