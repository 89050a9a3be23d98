"""The fake GPU itself: the calls that CUDA has, work in order and no sooner, and nothing forgiven."""

import gc
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from star_export.answer.pipeline import Pipeline
from star_export.bundle import Bundle
from star_export.engines import Runtime, open_session
from star_export.engines.tensorrt import cuda
from star_export.engines.tensorrt.argmax import Argmax
from star_export.engines.tensorrt.bindings import load_bindings
from star_export.engines.tensorrt.engine import create_runtime, deserialize
from star_export.errors import BundleError, DeviceError, PlatformError, SettingsError
from tests.fake_gpu import tensorrt as fake_tensorrt
from tests.fake_gpu.bindings import FakeDriver, FakeRuntime
from tests.fake_gpu.device import FakeEvent, FakeGpu, FakeStream
from tests.fake_gpu.install import installed
from tests.fake_gpu.memory import POISON

trt = fake_tensorrt.tensorrt_rtx


@pytest.fixture
def lazy() -> Iterator[FakeGpu]:
    with installed(FakeGpu(lazy=True, total=1 << 20)) as gpu:
        yield gpu


def on_gpu(gpu: FakeGpu, buffer: cuda.DeviceBuffer) -> set[int]:
    """The values of all bytes of a buffer."""
    return set(gpu.memory.view(buffer.pointer, buffer.size).tolist())


@pytest.mark.parametrize("module", [FakeRuntime, FakeDriver])
def test_calls_are_those_of_cuda_bindings(module: type, lazy: FakeGpu) -> None:
    fake = module(lazy)
    for name in (name for name in vars(module) if name.startswith("cu")):
        own = list(inspect.signature(getattr(fake, name)).parameters)
        assert own == list(inspect.signature(getattr(fake.real, name)).parameters), name


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (fake_tensorrt.FakeRuntime, trt.Runtime),
        (fake_tensorrt.FakeEngine, trt.ICudaEngine),
        (fake_tensorrt.FakeContext, trt.IExecutionContext),
    ],
)
def test_tensorrt_has_what_its_stand_ins_have(fake: type, real: type) -> None:
    assert {name for name in vars(fake) if not name.startswith("_")} <= set(dir(real))


def test_what_is_not_faked_is_not_reached(lazy: FakeGpu) -> None:
    with pytest.raises(AttributeError, match="the fake GPU has no cudaDeviceReset"):
        cuda.library("runtime").cudaDeviceReset()
    for bindings in map(load_bindings, ("tensorrt", "tensorrt-rtx")):
        with pytest.raises(AttributeError, match="the fake TensorRT has no Builder"):
            bindings.trt.Builder(bindings.logger)


def test_work_waits_until_somebody_waits_for_it(lazy: FakeGpu) -> None:
    buffer, stream, event = cuda.DeviceBuffer(512, "x"), cuda.Stream(), cuda.Event()
    event.synchronize()  # never recorded: it has passed
    stream.zero(buffer.pointer, 512)
    stream.record(event)
    stream.zero(buffer.pointer, 256)
    pinned = cuda.PinnedBuffer(512)
    stream.download(pinned.pointer, buffer.pointer, 512)
    assert on_gpu(lazy, buffer) == set(pinned.array) == {POISON}
    event.synchronize()
    assert on_gpu(lazy, buffer) == {0}
    assert set(pinned.array) == {POISON}  # behind the event
    stream.synchronize()
    assert set(pinned.array) == {0}


def test_copies_read_their_source_when_they_run(lazy: FakeGpu) -> None:
    buffer, stream, pinned = cuda.DeviceBuffer(256, "x"), cuda.Stream(), cuda.PinnedBuffer(256)
    for value in (1, 2):
        pinned.array[:] = value
        stream.upload(buffer.pointer, pinned.pointer, 256)
    pinned.array[:] = 3
    stream.synchronize()
    assert on_gpu(lazy, buffer) == {3}


def test_freeing_waits_for_all_work(lazy: FakeGpu) -> None:
    first, second, stream = cuda.DeviceBuffer(256, "x"), cuda.DeviceBuffer(256, "y"), cuda.Stream()
    stream.zero(second.pointer, 256)
    first.close()
    assert on_gpu(lazy, second) == {0}
    with pytest.raises(PlatformError, match="cudaErrorInvalidValue"):
        stream.zero(first.pointer, 1)


def test_a_graph_is_recorded_and_replayed(lazy: FakeGpu) -> None:
    buffer, stream, pinned = cuda.DeviceBuffer(256, "x"), cuda.Stream(), cuda.PinnedBuffer(256)
    graph = stream.capture(lambda: stream.upload(buffer.pointer, pinned.pointer, 256))
    stream.synchronize()
    assert on_gpu(lazy, buffer) == {POISON}
    for value in (5, 6):
        pinned.array[:] = value
        stream.launch(graph)
        stream.synchronize()
        assert on_gpu(lazy, buffer) == {value}
    with pytest.raises(PlatformError, match="cudaErrorStreamCaptureUnsupported"):
        stream.capture(stream.synchronize)
    stream.synchronize()  # usable again


def test_copies_stay_within_their_memory(lazy: FakeGpu) -> None:
    buffer, stream, pinned = cuda.DeviceBuffer(256, "x"), cuda.Stream(), cuda.PinnedBuffer(256)
    neighbour = cuda.DeviceBuffer(256, "y")
    assert neighbour.pointer > buffer.pointer + buffer.size
    for to, source, size in (
        (buffer.pointer, pinned.pointer, 257),
        (buffer.pointer + 1, pinned.pointer, 256),
        (buffer.pointer - 1, pinned.pointer, 1),
        (pinned.pointer, buffer.pointer, 256),  # the wrong way round
        (buffer.pointer, np.zeros(256, np.uint8).ctypes.data, 256),  # not pinned
    ):
        with pytest.raises(PlatformError, match="copying to the GPU: cudaErrorInvalidValue"):
            stream.upload(to, source, size)
    stream.upload(buffer.pointer, pinned.pointer, 256)  # nothing is lost


def test_memory_ends(lazy: FakeGpu) -> None:
    cuda.DeviceBuffer(1 << 19, "much")
    with pytest.raises(PlatformError, match=r"no room for more: 0\.00 GB asked for"):
        cuda.DeviceBuffer((1 << 20) + 1, "more")


@pytest.mark.parametrize(("shift", "error"), [(256, "IllegalAddress"), (2, "MisalignedAddress")])
def test_a_kernel_that_leaves_its_memory_loses_the_gpu(lazy: FakeGpu, shift: int, error: str) -> None:
    stream, buffer = cuda.Stream(), cuda.DeviceBuffer(512, "logits")
    argmax = Argmax(stream, (8, 9), max_rows=1)
    with pytest.raises(DeviceError, match=f"running on the GPU: cudaError{error}"):
        argmax(buffer.pointer + shift, 1, 128)
    for doing in (
        stream.synchronize,
        lambda: cuda.DeviceBuffer(1, "x"),
        lambda: argmax(buffer.pointer, 1, 1),
    ):
        with pytest.raises(DeviceError, match="the GPU is lost"):
            doing()


@pytest.fixture
def decode(lazy: FakeGpu, fake_engine_bundle: Callable[..., Bundle]) -> Any:
    """A context of the decode engine."""
    bindings = load_bindings("tensorrt")
    bundle = fake_engine_bundle("tensorrt", "mha", "sm89")
    path = bundle.path("engines/tensorrt/decode.engine")
    engine = deserialize(bindings, create_runtime(bindings, bindings.version), path, command="rebuild")
    context = engine.create_execution_context(engine.create_runtime_config())
    context.said = bindings.messages
    return context


def test_a_context_refuses_what_tensorrt_refuses(decode: Any) -> None:
    assert "input_ids" in decode.infer_shapes()
    assert not decode.set_input_shape("past_key_values.0.key", (1, 2, 3, 4))
    assert not decode.set_input_shape("input_ids", (1,))
    assert not decode.set_tensor_address("logits", 0)
    assert not decode.set_tensor_address("logits", 4097)
    assert not decode.set_tensor_address("logit", 4096)
    for name in ("input_ids", "position_ids"):
        assert decode.set_input_shape(name, (2, 1))
    assert decode.get_tensor_shape("logits") == (2, 512)
    assert not decode.execute_async_v3(1)
    assert "no address for early_lengths" in decode.said[-1].text


def test_an_engine_file_of_another_kind(lazy: FakeGpu, tmp_path: Path) -> None:
    bindings, path = load_bindings("tensorrt-rtx"), tmp_path / "vision.engine"
    path.write_bytes(b"no engine at all")
    with pytest.raises(BundleError, match=r"cannot load .*vision.engine: not an engine of the fake GPU"):
        deserialize(bindings, create_runtime(bindings, bindings.version), path, command="rebuild")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_session_gives_everything_back(
    backend: str, fake_engine_bundle: Callable[..., Bundle], picture: Path
) -> None:
    bundle = fake_engine_bundle(backend, "mha", "sm89")
    with installed(FakeGpu(lazy=True)) as gpu:
        pipeline = Pipeline(bundle, open_session(bundle, Runtime(backend=backend)))
        pipeline.generate(picture, "Where?", max_new_tokens=4).result()
        rows = pipeline.session.allocate_caches(2).rows(1, 2)
        gc.collect()
        rows.zero()  # the whole's memory, which the rows keep
        pipeline.session.synchronize()
        with pytest.raises(SettingsError, match="got 5"):
            pipeline.session.allocate_caches(5)
        del pipeline, rows
        gc.collect()
        assert not gpu.memory.blocks
        assert not any(isinstance(made, FakeStream | FakeEvent | tuple) for made in gpu.objects.values())
