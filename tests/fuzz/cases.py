"""The cases: what is damaged, and what is then asked of it."""

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from star_export.answer.pipeline import Pipeline, open_pipeline
from star_export.answer.sampling import Sampling
from star_export.bundle import MANIFEST, PREPROCESSOR, TOKENIZER, open_bundle
from star_export.contract import GRAPHS
from star_export.engines import Runtime, open_session
from star_export.engines.session import Session

from .damage import damaged_bytes, damaged_json, damaged_text, flipped_bytes, random_text

PROMPT = "What color is the square?"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F")


@dataclass(frozen=True)
class World:
    """A good bundle, to be damaged case by case.

    Attributes:
        folder: A copy of it, without its weights.
        whole: Another copy, with its weights.
        pipeline: The bundle itself, loaded.
        picture: A PNG.
    """

    folder: Path
    whole: Path
    pipeline: Pipeline
    picture: bytes

    @property
    def session(self) -> Session:
        return self.pipeline.session


def make_world(bundle: Path, place: Path) -> World:
    """Copies of ``bundle`` under ``place``."""
    whole = Path(shutil.copytree(bundle, place / "whole"))
    folder = Path(shutil.copytree(bundle, place / "light"))
    for path in folder.glob("graphs/*.safetensors"):
        path.write_bytes(b"")
        _rehash(folder, path.relative_to(folder).as_posix())
    picture = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 20).convert("RGB")
    return World(folder, whole, open_pipeline(bundle, Runtime(threads=1)),
                 _encoded(picture, "PNG"))  # fmt: skip


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _rehash(folder: Path, name: str) -> None:
    """Let the manifest agree with a file that was damaged on purpose."""
    manifest, data = json.loads((folder / MANIFEST).read_bytes()), (folder / name).read_bytes()
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry.update(bytes=len(data), sha256=sha256(data).hexdigest())
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _with_damaged(
    folder: Path, name: str, damaged: bytes, use: Callable[[], None], *, rehash: bool = True
) -> None:
    """Call ``use`` while a file of the bundle is damaged."""
    files = {path: path.read_bytes() for path in (folder / name, folder / MANIFEST)}
    try:
        (folder / name).write_bytes(damaged)
        if rehash and name != MANIFEST:
            _rehash(folder, name)
        use()
    finally:
        for path, data in files.items():
            path.write_bytes(data)


def _answer(pipeline: Pipeline, image: bytes, prompt: str, **options: Any) -> None:
    pipeline.generate(image, prompt, max_new_tokens=2, **options).result()


def _damaged_file(name: str, world: World, rng: random.Random) -> None:
    """Load the bundle with one of its JSON files damaged, and ask it something."""

    def use() -> None:
        _answer(Pipeline(open_bundle(world.folder), world.session), world.picture, PROMPT)

    data = (world.folder / name).read_bytes()
    damaged = damaged_json(json.loads(data), rng) if rng.random() < 0.85 else damaged_bytes(data, rng)
    _with_damaged(world.folder, name, damaged, use, rehash=rng.random() < 0.95)


def manifest(world: World, rng: random.Random) -> None:
    """A damaged ``manifest.json``."""
    _damaged_file(MANIFEST, world, rng)


def preprocessor(world: World, rng: random.Random) -> None:
    """A damaged ``preprocessor.json``."""
    _damaged_file(PREPROCESSOR, world, rng)


def tokenizer(world: World, rng: random.Random) -> None:
    """A damaged ``tokenizer.json``."""
    _damaged_file(TOKENIZER, world, rng)


def graph(world: World, rng: random.Random) -> None:
    """A damaged ONNX file."""
    name = f"graphs/{rng.choice(GRAPHS)}.onnx"

    def use() -> None:
        bundle = open_bundle(world.whole)
        _answer(Pipeline(bundle, open_session(bundle, Runtime(threads=1))), world.picture, PROMPT)

    damage = flipped_bytes if rng.random() < 0.8 else damaged_bytes
    damaged = damage((world.whole / name).read_bytes(), rng)
    _with_damaged(world.whole, name, damaged, use)


def picture(world: World, rng: random.Random) -> None:
    """A damaged picture of any format and mode."""
    size = rng.choice(((40, 30), (1, 1), (300, 2), (17, 400), (64, 64)))
    image = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).convert("RGB")
    kind, mode = rng.choice(FORMATS), rng.choice(MODES)
    try:
        data = _encoded(image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode), kind)
    except (OSError, ValueError):  # not every format has every mode and size
        data = _encoded(image, "PNG")
    world.pipeline.request(damaged_bytes(data, rng) if rng.random() < 0.95 else data, PROMPT)


def prompt(world: World, rng: random.Random) -> None:
    """Any text as prompt and as stop string, with any seed."""
    vocabulary = world.pipeline.prompt_spec.special_tokens
    parts = [PROMPT, world.pipeline.prompt_spec.image_token, *vocabulary.values(), "x" * 4000, "\0", " ", ""]
    texts = [rng.choice((random_text(rng), rng.choice(parts))) for _ in range(rng.randint(1, 5))]
    text = damaged_text("".join(texts), rng) if rng.random() < 0.5 else "".join(texts)
    stop = [random_text(rng) for _ in range(rng.randint(0, 2))]
    sampling = Sampling(temperature=rng.choice((0.0, 0.7)), seed=rng.randrange(2**31))
    _answer(world.pipeline, world.picture, text, stop=stop, sampling=sampling)


def conversation(world: World, rng: random.Random) -> None:
    """Messages in which something is wrong, or nothing."""
    image, said = {"type": "image"}, {"type": "text", "text": random_text(rng)}
    messages = [
        {"role": "user", "content": [image, said]},
        {"role": "assistant", "content": random_text(rng)},
        {"role": "user", "content": [said]},
    ]
    damaged = damaged_json(messages, rng) if rng.random() < 0.9 else json.dumps(messages)
    world.pipeline.tokenize(json.loads(damaged), world.pipeline.prepare(world.picture))


#: Each kind with its share of the cases; graphs take longest.
CASES: dict[Callable[[World, random.Random], None], int] = {
    manifest: 38, preprocessor: 20, tokenizer: 15, graph: 2, picture: 15, prompt: 10,
    conversation: 10,
}  # fmt: skip
