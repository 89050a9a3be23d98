"""C++ reads, resizes and prepares pictures bit for bit as Python does."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star_export.errors import BundleError, InputError
from star_export.preprocessing import ImageSpec, load_image, prepare
from star_export.preprocessing.packing import packed_taps
from star_export.preprocessing.parameters import _check as check_parameters
from star_export.specs import ModelSpec, picture_grid
from star_export.typed import convert as to_dataclass
from tests.conftest import MAX_KEEP
from tests.cpp import pictures
from tests.cpp.talker import Talker
from tests.shapes import NEXT, ONEVISION

Pixels = np.ndarray


class Pictures:
    """What C++ makes of pictures, whose arrays travel in files of a folder."""

    def __init__(self, talker: Talker, folder: Path) -> None:
        self._talker, self._folder, self.out = talker, folder, folder / "out"

    def ask(self, what: str, **values: Any) -> Any:
        """The answer to a request; its arrays are in ``out``."""
        return self._talker.ask(what, out=str(self.out), **values)

    def pixels(self, what: str, **values: Any) -> Pixels | str:
        """Pixels of a picture, or why there are none."""
        try:
            size = self.ask(what, **values)
        except InputError as error:
            return str(error)
        return np.fromfile(self.out, np.uint8).reshape(size["height"], size["width"], 3)

    def read(self, data: bytes) -> Pixels | str:
        """Pixels of a file, or why there are none."""
        path = self._folder / "picture"
        path.write_bytes(data)
        return self.pixels("read", file=str(path))

    def raw(self, image: Image.Image, name: str = "raw") -> dict[str, Any]:
        """A picture as requests hold it."""
        path = self._folder / name
        path.write_bytes(image.tobytes())
        return {"file": str(path), "width": image.width, "height": image.height}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pictures]:
    with Talker("talk_image") as talker:
        yield Pictures(talker, tmp_path_factory.mktemp("talker"))


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


def assert_all_same(talker: Pictures, files: Iterator[bytes]) -> int:
    """That C++ reads, or refuses, each file as Python does; how many are read."""
    count = 0
    for index, data in enumerate(files):
        found, wanted = talker.read(data), expected(data)
        assert same(found, wanted), f"file {index}: {found}, expected {wanted}"
        count += not isinstance(found, str)
    return count


def test_jpegs(talker: Pictures) -> None:
    assert assert_all_same(talker, pictures.jpegs(np.random.default_rng(1))) > 200


def test_pngs(talker: Pictures) -> None:
    assert assert_all_same(talker, pictures.pngs(np.random.default_rng(2))) > 600


def test_large_pictures(talker: Pictures) -> None:
    """Files of several of the blocks that Pillow reads."""
    assert assert_all_same(talker, pictures.large(np.random.default_rng(8))) == 8


def test_animation_is_its_first_frame(talker: Pictures) -> None:
    assert assert_all_same(talker, iter([pictures.animated(np.random.default_rng(3))])) == 1


def test_damaged_files_are_refused_or_read_as_in_python(talker: Pictures) -> None:
    """Pixels never differ; versions of libjpeg differ rarely in what damage they refuse."""
    random = np.random.default_rng(int(os.environ.get("STAR_EXPORT_SEED", "4")))
    files = [*pictures.jpegs(random), *pictures.pngs(random), pictures.animated(random)]
    files += [pictures.with_text(random) for _ in range(50)]
    count, refused_by_one = int(os.environ.get("STAR_EXPORT_DAMAGED", "1500")), 0
    for _ in range(count):
        data = pictures.damaged(random, files[random.integers(len(files))])
        found, wanted = talker.read(data), expected(data)
        if isinstance(found, str) != isinstance(wanted, str):
            refused_by_one += 1
        else:
            assert same(found, wanted), (data, found, wanted)
    assert refused_by_one <= count / 100


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
def test_refusals_say_why(talker: Pictures, data: bytes, message: str) -> None:
    found = talker.read(data)
    assert isinstance(found, str)
    assert message in found
    wanted = expected(data)
    assert isinstance(wanted, str)
    assert "JPEG" in message or message in wanted


def image_of(random: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(pictures.noisy(random, width, height))


@pytest.mark.parametrize("resampling", list(range(6)))
def test_resampling(talker: Pictures, resampling: int) -> None:
    """Larger and smaller, in either order of the two passes."""
    random = np.random.default_rng(resampling)
    sizes = [tuple(random.integers(1, 60 if index % 3 else 400, 4)) for index in range(150)]
    sizes += [(1, 1, 7, 9), (200, 1, 3, 40), (1, 200, 40, 3), (300, 301, 300, 20), (301, 300, 20, 300)]
    for width, height, *wanted in sizes:
        image = image_of(random, int(width), int(height))
        to_width, to_height = (int(side) for side in wanted)
        found = talker.pixels(
            "resample", picture=talker.raw(image), width=to_width, height=to_height, filter=resampling
        )
        resized = image.resize((to_width, to_height), Image.Resampling(resampling))
        assert same(found, np.asarray(resized)), (width, height, wanted)


def asked(model: ModelSpec) -> dict[str, Any]:
    """What requests say of a model."""
    vision, tiling = model.vision, model.tiling
    sizes = {name: getattr(vision, name) for name in ("image_size", "patch_size", "tile_tokens")}
    return {"vision": sizes, "tiling": tiling and asdict(tiling)}


def assert_prepared(talker: Pictures, images: list[Image.Image], spec: ImageSpec, model: ModelSpec) -> None:
    """That the tensors of a request have the same bits, and so has what says how they are packed."""
    wanted = prepare(images, spec, model)
    raw = [talker.raw(image, f"raw{index}") for index, image in enumerate(images)]
    answer = talker.ask("prepare", pictures=raw, spec=asdict(spec), **asked(model))
    assert [image["packing"] for image in answer] == [plain(asdict(image.packing)) for image in wanted]
    assert [image["tiles"] for image in answer] == [len(image.pixels) for image in wanted]
    pixels = np.concatenate([image.pixels for image in wanted])
    assert talker.out.read_bytes() == pixels.tobytes()
    taps = [packed_taps(image.packing, model.vision) for image in wanted]
    index, weights = (np.concatenate(arrays) for arrays in zip(*taps, strict=True))
    assert Path(f"{talker.out}.index").read_bytes() == index.tobytes()
    assert Path(f"{talker.out}.weights").read_bytes() == weights.tobytes()


def plain(values: Any) -> Any:
    """Values as JSON has them."""
    return json.loads(json.dumps(values))


def some_sizes(random: np.random.Generator, count: int, longest: int) -> list[tuple[int, int]]:
    """Sizes of pictures, slivers among them."""
    sizes = [tuple(int(side) for side in random.integers(1, longest, 2)) for _ in range(count)]
    return [size for size in sizes if max(size) <= 200 * min(size)] + [(1, 1), (2, 90), (longest, 3)]


@pytest.mark.parametrize("preset", sorted(MAX_KEEP))
def test_pictures_are_prepared(talker: Pictures, checkpoint: Callable[[str], Path], preset: str) -> None:
    """With the parameters that a bundle of each small checkpoint has, one picture and several."""
    from star_export.checkpoint.checkpoint import open_checkpoint
    from star_export.preprocessing import convert
    from star_export.preprocessing.processor import read_processor

    model = open_checkpoint(str(checkpoint(preset))).model
    spec = convert.image_spec(read_processor(checkpoint(preset)), model)
    random = np.random.default_rng(len(preset))
    images = [image_of(random, *size) for size in some_sizes(random, 12, 300)]
    for image in images:
        assert_prepared(talker, [image], spec, model)
    assert_prepared(talker, images[:3], spec, model)


@pytest.mark.parametrize("model", [NEXT, ONEVISION], ids=["next", "onevision"])
def test_pictures_are_prepared_for_published_models(talker: Pictures, model: ModelSpec) -> None:
    side = model.vision.image_size
    spec = ImageSpec(
        shortest_edge=None, resize_to=(side, side), resample=3, crop=None, rescale_factor=1 / 255,
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
    )  # fmt: skip
    random = np.random.default_rng(side)
    images = [image_of(random, *size) for size in [(640, 480), (97, 1500), (1333, 1000), (336, 336)]]
    for image in images:
        assert_prepared(talker, [image], spec, model)
    assert_prepared(talker, images[:2], spec, model)


@pytest.mark.parametrize("model", [NEXT, ONEVISION], ids=["next", "onevision"])
def test_grids(talker: Pictures, model: ModelSpec) -> None:
    assert model.tiling is not None
    vision, random = model.vision, np.random.default_rng(9)
    sizes = [(int(h), int(w)) for h, w in np.exp(random.uniform(0, 9.5, (20_000, 2))).astype(int) + 1]
    sizes += [(height, width) for height in range(1, 60) for width in range(1, 60)]
    found = talker.ask("grids", sizes=sizes, **asked(model))
    for size, grid in zip(sizes, found, strict=True):
        wanted = picture_grid(size, model.tiling, tile=vision.image_size, side=vision.grid_side)
        assert grid == [list(pair) for pair in asdict(wanted).values()], size


def test_several_pictures_have_a_limit_as_squares(talker: Pictures) -> None:
    """Each is padded to a square, which may have too many pixels."""
    spec = ImageSpec(
        shortest_edge=None, resize_to=(384, 384), resample=3, crop=None, rescale_factor=1 / 255,
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    long = Image.new("RGB", (10_001, 60))
    with pytest.raises(InputError) as wanted:
        prepare([long, long], spec, ONEVISION)
    raw = [talker.raw(long)] * 2
    with pytest.raises(InputError) as found:
        talker.ask("prepare", pictures=raw, spec=asdict(spec), **asked(ONEVISION))
    assert str(found.value) == str(wanted.value)


GOOD = {
    "shortest_edge": 336, "resize_to": None, "resample": 3, "crop": [336, 336], "rescale_factor": 1 / 255,
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
}  # fmt: skip
ODD = (
    None, True, 0, 1, -1, 3, 336, 335, 337, 336.0, 16384, 16385, 2**63, 2**64, 1e300, 0.5, "3", [], {}, [336],
    [336, 336], [336, 336.0], [337, 336], [336, 336, 336], [1, 1, 1], [0, 0, 0], [1e4, 0, 0],
    [0.5, 0.5, None], [-1e3, 1e3, 0.001],
)  # fmt: skip


@pytest.mark.parametrize("cut", [False, True])
def test_parameters_are_refused_as_in_python(talker: Pictures, cut: bool) -> None:
    model = NEXT if cut else replace(NEXT, tiling=None)
    prompt = SimpleNamespace(image_token_id=model.image_token_id, forms=None, image_token="")
    kinds: list[dict[str, Any]] = [GOOD | {key: value} for key in GOOD for value in ODD]
    kinds += [GOOD | {"shortest_edge": None, "resize_to": value, "crop": crop}
              for value in ODD for crop in (None, [336, 336], [300, 300])]  # fmt: skip
    kinds += [{key: GOOD[key] for key in GOOD if key != left_out} for left_out in GOOD]
    kinds.append(GOOD | {"more": 1})
    read = 0
    for kind in kinds:
        try:
            values = to_dataclass(plain(kind), ImageSpec)
            check_parameters(SimpleNamespace(image=values, prompt=prompt), model)
            wanted = None
        except ValueError as error:
            wanted = str(error)
        found = None
        try:
            talker.ask("prepare", pictures=[], spec=kind, **asked(model))
        except BundleError as error:
            found = str(error)
        assert (found is None) == (wanted is None), (kind, found, wanted)
        read += wanted is None
    assert read >= 2
