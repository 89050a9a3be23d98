"""Bundles with real engines, built by the TensorRT that is installed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from star_export.build import add_engines
from star_export.bundle import Bundle, open_bundle
from star_export.engines.tensorrt.builder import EngineOptions


@pytest.fixture(scope="session")
def engine_bundle(
    bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """``engine_bundle("tensorrt-rtx", "mha", "sm89")``: a float16 bundle. Do not write into it."""
    root = tmp_path_factory.mktemp("engines")

    def get(backend: str, preset: str, target: str, *, prune: bool = True) -> Bundle:
        folder = root / f"{backend}-{preset}-{prune}-{target}"
        if not folder.exists():
            shutil.copytree(bundle(preset, prune=prune, dtype="float16"), folder)
            targets = (target,) if backend == "tensorrt-rtx" else ()
            add_engines(folder, EngineOptions(backend=backend, targets=targets, max_batch=4))
        return open_bundle(folder)

    return get
