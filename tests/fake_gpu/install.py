"""Put the fake GPU where this process looks for a real one, and make bundles for it.

Builders are processes of their own and never see it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from star_export.bundle import Bundle, open_bundle, write_engines
from star_export.contract import GRAPHS
from star_export.engines.tensorrt import argmax, bindings, cuda
from star_export.engines.tensorrt import weights as shared
from star_export.engines.tensorrt.builder import SHARED, EngineOptions, smaller_engines
from star_export.engines.tensorrt.facts import EngineFacts, engine_folder, engine_path
from star_export.engines.tensorrt.profiles import engine_profiles
from tests.fake_gpu.bindings import FakeDriver, FakeRuntime
from tests.fake_gpu.device import FakeGpu
from tests.fake_gpu.tensorrt import VERSIONS, FakeTensorRT, engine_file


@contextmanager
def installed(gpu: FakeGpu) -> Iterator[FakeGpu]:
    """Let the package, and nobody else, find ``gpu`` and TensorRTs that run on it."""
    modules = {"cuda.bindings.runtime": FakeRuntime(gpu), "cuda.bindings.driver": FakeDriver(gpu)}
    modules |= {product.module: FakeTensorRT(backend, gpu) for backend, product in bindings.PRODUCTS.items()}
    with pytest.MonkeyPatch.context() as patch:
        for module in (cuda, bindings):
            patch.setattr(module, "importlib", SimpleNamespace(import_module=modules.__getitem__))
        patch.setattr(argmax, "compile_kernel", lambda capability: argmax.KERNEL)
        cuda.library.cache_clear()
        shared.LOADED.clear()  # of an earlier GPU
        yield gpu
    cuda.library.cache_clear()


def fake_engines(
    source: Path,
    folder: Path,
    backend: str,
    target: str,
    *,
    max_batch: int = 4,
    weights: str = SHARED,
    capacities: tuple[int, ...] = (),
) -> Bundle:
    """A copy of a bundle with engines for the fake GPU."""
    shutil.copytree(source, folder)
    bundle, files = open_bundle(folder), {graph: engine_path(backend, graph) for graph in GRAPHS}
    bundle.path(engine_folder(backend)).mkdir(parents=True)
    for graph, name in files.items():
        bundle.path(name).write_text(engine_file(source, graph, weights))
    options = EngineOptions(backend=backend, max_batch=max_batch)
    smaller = tuple(smaller_engines(options, bundle.spec, room) for room in capacities)
    for engines in smaller:
        for graph, name in engines.files.items():
            bundle.path(name).write_text(engine_file(source, graph, weights, engines.room))
    facts = EngineFacts(
        backend=backend,
        version=VERSIONS[backend],
        targets=(target,),
        plugins="none",
        version_compatible=False,
        weight_streaming=False,
        driver=None,
        profiles=engine_profiles(bundle.spec, max_batch=max_batch),
        files=files,
        weights_files={file.path: file.sha256 for file in bundle.weights} if weights == SHARED else {},
        smaller=smaller,
    )
    write_engines(bundle, backend, facts.to_dict())
    return open_bundle(folder)
