"""Real checkpoints and real bundles, made once per test run."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

pytest_plugins = ["tests.fake_gpu.machine"]

# Small models: two torch threads mostly wait for each other, for seconds on a busy machine. Torch itself
# is imported where a test needs it, so that the others start at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Largest budget below each small model's stage-1 count that tests use.
MAX_KEEP = {"mha": 288, "gqa": 288, "deep": 128, "mini": 288, "vicuna": 40, "serving": 64}
#: The same of the small checkpoints of other families: of a picture's 16 to 88 visual tokens.
MAX_KEEP |= dict.fromkeys(
    ("full", "feature-layers", "interleave", "next", "next-mistral", "next-llama3", "onevision"), 40
)
MINI = Path(__file__).parents[1] / "models/mini"
PROMPT = "What is in the picture?"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of this test run share; a given one also with other runs."""
    if given := os.environ.get("STAR_EXPORT_TEST_BUNDLES"):
        return Path(given)
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def checkpoint(shared: Path) -> Callable[[str], Path]:
    """``checkpoint("mha")``: folder of a small random checkpoint, or of the trained "mini".

    Do not write into it.
    """

    def get(preset: str) -> Path:
        from star_export.testing.checkpoints import make_checkpoint

        if preset == "mini":
            return MINI
        folder = shared / preset
        with FileLock(f"{folder}.lock"):
            return folder if folder.exists() else make_checkpoint(folder, preset)

    return get


@pytest.fixture(scope="session")
def bundle(checkpoint: Callable[[str], Path], shared: Path) -> Callable[..., Path]:
    """``bundle("mha", prune=False, dtype="float16")``: folder of a built bundle. Do not write into it."""

    def get(
        preset: str,
        *,
        prune: bool = True,
        dtype: str = "float32",
        fp32_layers: tuple[str, ...] = (),
        max_new_tokens: int = 32,
        max_images: int = 1,
        schedule: str | None = None,
        stage1: str | None = None,
        stage2: str | None = None,
        quantize: str | None = None,
        quantize_embedding: bool = False,
    ) -> Path:
        kind = (schedule or "star").replace("%", "p") if prune else "full"
        several = [f"{max_images}-images"] if max_images > 1 else []
        rows = "rows" if quantize_embedding else None
        scores = [score for score in (stage1, stage2, quantize, rows) if score]
        folder = shared / "-".join(
            (preset, kind, dtype, str(max_new_tokens), *fp32_layers, *several, *scores)
        )
        if folder.exists():  # whole: builds rename
            return folder
        from star_export.build import BuildOptions, build

        options = BuildOptions(
            model=str(checkpoint(preset)),
            output=folder,
            keep=min(64, MAX_KEEP[preset]) if prune and not schedule else None,
            max_keep=MAX_KEEP[preset] if prune and not schedule else None,
            schedule=schedule,
            stage1=stage1,
            stage2=stage2,
            quantize=quantize,
            quantize_vision=quantize is not None,
            quantize_embedding=quantize_embedding,
            prune=prune,
            max_text_tokens=128,
            max_new_tokens=max_new_tokens,
            max_images=max_images,
            dtype=dtype,
            fp32_layers=fp32_layers,
        )
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                build(options)
        return folder

    return get


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PNG of 400x300 pixels with large and small structure."""
    random = np.random.default_rng(7)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((400, 300))
    noise = random.integers(-20, 21, (300, 400, 3))
    pixels = np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(pixels).save(path)
    return path
