"""What tests of running engines run on: the fake GPU in both of its modes, or this machine's own."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from star_export.bundle import Bundle, open_bundle
from star_export.engines.session import HostArray
from star_export.errors import PlatformError

if TYPE_CHECKING:
    from tests.fake_gpu.device import FakeGpu

#: How far logits, features and caches of a real GPU may be from ONNX Runtime's.
ATOL = 0.05

_REAL = pytest.param("gpu", marks=pytest.mark.gpu)
#: Not on the fake GPU that begins work at once: what passes when it begins late passes there too,
#: but for the order of calls, which the sessions' own tests see to.
LATE = pytest.mark.parametrize("machine", ["fake-lazy", _REAL], indirect=True, scope="module")


@dataclass(frozen=True)
class Machine:
    """A GPU to run on.

    Attributes:
        engines: ``engines("tensorrt-rtx", "mha", "sm89")``: a float16 bundle with engines; without a
            target they are for this GPU. Do not write into it.
        target: Name of its architecture.
        fake: The fake GPU; None on a real one.
    """

    engines: Callable[..., Bundle]
    target: str
    fake: "FakeGpu | None" = None

    def close(self, found: HostArray, expected: HostArray) -> None:
        """Compare with what ONNX Runtime computed: on the fake GPU, which computes with it, bit for bit."""
        if self.fake is None:
            nearly_equal(found, expected)
        else:
            np.testing.assert_array_equal(found, expected)


def nearly_equal(found: HostArray, expected: HostArray) -> None:
    """Within what two float16 computations of the small models differ."""
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=0.02, atol=ATOL)


@pytest.fixture(scope="session")
def engine_bundle(
    bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """``engine_bundle("tensorrt-rtx", "mha", "sm89")``: a float16 bundle with engines by the TensorRT
    that is installed. Do not write into it.
    """
    root = tmp_path_factory.mktemp("engines")

    def get(
        backend: str, preset: str, target: str, *, prune: bool = True, capacities: tuple[int, ...] = ()
    ) -> Bundle:
        from star_export.build import add_engines
        from star_export.engines.tensorrt.builder import EngineOptions

        folder = root / "-".join(map(str, (backend, preset, prune, target, *capacities)))
        if not folder.exists():
            shutil.copytree(bundle(preset, prune=prune, dtype="float16"), folder)
            targets = (target,) if backend == "tensorrt-rtx" else ()
            options = EngineOptions(backend=backend, targets=targets, max_batch=4, capacities=capacities)
            add_engines(folder, options)
        return open_bundle(folder)

    return get


@pytest.fixture(scope="session")
def fake_engine_bundle(
    bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """The same with engine files of the fake GPU, which any bundle can have."""
    from tests.fake_gpu.install import fake_engines

    root = tmp_path_factory.mktemp("fake engines")

    def get(
        backend: str,
        preset: str,
        target: str,
        *,
        prune: bool = True,
        dtype: str = "float16",
        weights: str = "shared",
        quantize: str | None = None,
        capacities: tuple[int, ...] = (),
    ) -> Bundle:
        kind = (backend, preset, prune, dtype, weights, quantize, target, *capacities)
        folder = root / "-".join(map(str, kind))
        if not folder.exists():
            source = bundle(preset, prune=prune, dtype=dtype, quantize=quantize)
            fake_engines(source, folder, backend, target, weights=weights, capacities=capacities)
        return open_bundle(folder)

    return get


@pytest.fixture(scope="module", params=["fake", "fake-lazy", _REAL])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Each GPU in turn; the real one in `make test-gpu` only."""
    if request.param == "gpu":
        yield _real(request.getfixturevalue("engine_bundle"))
        return
    make = request.getfixturevalue("fake_engine_bundle")
    from tests.fake_gpu.device import FakeGpu
    from tests.fake_gpu.install import installed

    with installed(FakeGpu(lazy=request.param == "fake-lazy")) as gpu:
        yield _fake(make, gpu)


@pytest.fixture
def lazy_gpu() -> "Iterator[FakeGpu]":
    """A fake GPU for one test, which may break it; work begins late."""
    from tests.fake_gpu.device import FakeGpu
    from tests.fake_gpu.install import installed

    with installed(FakeGpu(lazy=True)) as gpu:
        yield gpu


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def backend(request: pytest.FixtureRequest, machine: Machine) -> str:
    """Each TensorRT; one that a real GPU's machine lacks is skipped."""
    from star_export.engines.tensorrt.bindings import load_bindings

    try:
        load_bindings(request.param)
    except PlatformError as error:
        pytest.skip(str(error))
    return str(request.param)


def _fake(make: Callable[..., Bundle], gpu: "FakeGpu") -> Machine:
    here = "sm{}{}".format(*gpu.capability)

    def engines(backend: str, preset: str, target: str = here, **kind: Any) -> Bundle:
        return make(backend, preset, target, **kind)

    return Machine(engines, here, gpu)


def _real(make: Callable[..., Bundle]) -> Machine:
    from star_export.engines.tensorrt.cuda import require_device
    from star_export.engines.tensorrt.facts import RTX_TARGETS

    here = "sm{}{}".format(*require_device().capability)

    def engines(backend: str, preset: str, target: str = here, **kind: Any) -> Bundle:
        if backend == "tensorrt-rtx" and target not in RTX_TARGETS:
            pytest.skip(f"{backend} does not build for {target}")
        return make(backend, preset, target, **kind)

    return Machine(engines, here)
