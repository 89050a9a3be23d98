"""C++ reads, resizes and prepares pictures bit for bit as Python does."""

import json
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star_export.errors import BundleError, InputError
from star_export.preprocessing import ImageSpec, load_image, prepare
from star_export.preprocessing.packing import packed_index, packed_taps
from star_export.preprocessing.parameters import read_preprocessing
from star_export.specs import ModelSpec, Tiling, VisionSpec, picture_grid
from tests.cpp import pictures
from tests.shapes import NEXT, ONEVISION

BUILD = Path(__file__).parents[2] / os.environ.get("STAR_EXPORT_CPP", "build/cpp")
TALKER = BUILD / "talk_image"

pytestmark = pytest.mark.skipif(not TALKER.exists(), reason=f"{TALKER} is not built")

Pixels = np.ndarray


class Talker:
    """The C++ program, which answers a line of JSON with one."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([TALKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder, self.out = folder, folder / "out"

    def ask(self, **request: Any) -> Any:
        """The answer to a request; its arrays are in ``out``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request | {"out": str(self.out)}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the C++ program ended: {self.process.wait()}"
        return json.loads(line)

    def read(self, data: bytes) -> Pixels | str:
        """Pixels of a file, or why there are none."""
        path = self.folder / "picture"
        path.write_bytes(data)
        return self.pixels(self.ask(do="read", file=str(path)))

    def pixels(self, answer: Any) -> Pixels | str:
        """Of an answer."""
        if "error" in answer:
            return str(answer["error"])
        found = np.fromfile(self.out, np.uint8)
        return found.reshape(answer["height"], answer["width"], 3)

    def raw(self, image: Image.Image, name: str = "raw") -> dict[str, Any]:
        """A picture as requests hold it."""
        path = self.folder / name
        path.write_bytes(image.tobytes())
        return {"file": str(path), "width": image.width, "height": image.height}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talker]:
    talker = Talker(tmp_path_factory.mktemp("talker"))
    yield talker
    talker.process.communicate()


def expected(data: bytes) -> Pixels | str:
    """What Python makes of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.asarray(load_image(data))
        except InputError as error:
            return str(error)


def same(found: Pixels | str, wanted: Pixels | str) -> bool:
    """Whether both are refusals or the same pixels."""
    if isinstance(found, str) or isinstance(wanted, str):
        return isinstance(found, str) and isinstance(wanted, str)
    return found.shape == wanted.shape and bool((found == wanted).all())


def assert_all_same(talker: Talker, files: Iterator[bytes]) -> int:
    """That C++ reads, or refuses, each file as Python does; how many are read."""
    count = 0
    for index, data in enumerate(files):
        found, wanted = talker.read(data), expected(data)
        assert same(found, wanted), f"file {index}: {found}, expected {wanted}"
        count += not isinstance(found, str)
    return count


def test_jpegs(talker: Talker) -> None:
    assert assert_all_same(talker, pictures.jpegs(np.random.default_rng(1))) > 200


def test_pngs(talker: Talker) -> None:
    assert assert_all_same(talker, pictures.pngs(np.random.default_rng(2))) > 600


def test_animation_is_its_first_frame(talker: Talker) -> None:
    assert assert_all_same(talker, iter([pictures.animated(np.random.default_rng(3))])) == 1


def test_damaged_files_are_refused_or_read_as_in_python(talker: Talker) -> None:
    """Versions of libjpeg may differ in what they refuse, never in pixels."""
    random = np.random.default_rng(int(os.environ.get("STAR_EXPORT_SEED", "4")))
    files = [*pictures.jpegs(random), *pictures.pngs(random), pictures.animated(random)]
    files += [pictures.with_text(random) for _ in range(50)]
    count, refused = int(os.environ.get("STAR_EXPORT_DAMAGED", "1500")), 0
    for _ in range(count):
        data = pictures.damaged(random, files[random.integers(len(files))])
        found, wanted = talker.read(data), expected(data)
        if isinstance(found, str) and not isinstance(wanted, str):
            refused += 1
        else:
            assert same(found, wanted), (data, found, wanted)
    assert refused <= count / 100


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected JPEG or PNG"),
        (b"GIF89a" + bytes(20), "expected JPEG or PNG"),
        (pictures.header(100_000, 1_001), "100000x1001, over the limit of 100000000 pixels; scale it down"),
        (pictures.header(100_000, 2_000), "the picture has too many pixels; the limit is 100000000"),
        (pictures.header(2**31 - 1, 2**31 - 1), "the picture has too many pixels; the limit is 100000000"),
        (pictures.header(20_100, 100), "the picture is 20100x100; sides may differ by 200x at most"),
        (pictures.header(100, 20_100), "the picture is 100x20100; sides may differ by 200x at most"),
    ],
)
def test_refusals_say_why(talker: Talker, data: bytes, message: str) -> None:
    found = talker.read(data)
    assert isinstance(found, str)
    assert message in found
    wanted = expected(data)
    assert isinstance(wanted, str)
    assert "JPEG" in message or message in wanted


def image_of(random: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(pictures.noisy(random, width, height))


@pytest.mark.parametrize("resampling", list(range(6)))
def test_resampling(talker: Talker, resampling: int) -> None:
    """Larger and smaller, in either order of the two passes."""
    random = np.random.default_rng(resampling)
    sizes = [tuple(random.integers(1, 60 if index % 3 else 400, 4)) for index in range(150)]
    sizes += [(1, 1, 7, 9), (200, 1, 3, 40), (1, 200, 40, 3), (300, 301, 300, 20), (301, 300, 20, 300)]
    for width, height, *wanted in sizes:
        image = image_of(random, int(width), int(height))
        to_width, to_height = (int(side) for side in wanted)
        answer = talker.ask(
            do="resample", picture=talker.raw(image), width=to_width, height=to_height, filter=resampling
        )
        resized = image.resize((to_width, to_height), Image.Resampling(resampling))
        assert same(talker.pixels(answer), np.asarray(resized)), (width, height, wanted)
