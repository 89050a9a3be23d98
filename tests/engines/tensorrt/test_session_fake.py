"""What a real GPU cannot be asked for: refusals and rare answers of TensorRT, on the fake one."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import Steps
from star_export.bundle import Bundle
from star_export.contract import DECODE, GRAPHS
from star_export.engines import Runtime, open_session
from star_export.engines.tensorrt import cuda, weights
from star_export.engines.tensorrt import session as session_module
from star_export.engines.tensorrt.facts import read_facts
from star_export.engines.tensorrt.session import TensorRTSession
from star_export.engines.tensorrt.transfers import LANDING_BYTES
from star_export.errors import BundleError, NonFiniteError, PlatformError, SettingsError
from tests.fake_gpu import bindings
from tests.fake_gpu.device import FakeGpu, FakeStream
from tests.fake_gpu.install import installed
from tests.fake_gpu.memory import CudaError
from tests.fake_gpu.tensorrt import DEVICE, HOST, FakeContext, FakeEngine, FakeRuntime
from tests.fake_gpu.tensorrt import tensorrt_rtx as trt

RTX = "tensorrt-rtx"


@pytest.fixture
def engines(lazy_gpu: FakeGpu, fake_engine_bundle: Callable[..., Bundle]) -> Callable[[str], Bundle]:
    return lambda backend: fake_engine_bundle(backend, "mha", "sm89")


def answer(bundle: Bundle, backend: str, picture: Path) -> tuple[int, ...]:
    pipeline = Pipeline(bundle, open_session(bundle, Runtime(backend=backend, threads=1)))
    return pipeline.generate(picture, "What is this?", max_new_tokens=6).result().token_ids


def test_streamed_weights_are_shared_out(
    fake_engine_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT has put there what fits; the session begins anew and leaves the reserve free."""
    size, reserve = 2 << 20, 1 << 20
    monkeypatch.setattr(session_module, "STREAMING_RESERVE", reserve)
    monkeypatch.setattr(FakeEngine, "streamable_weights_size", size)
    bundle = fake_engine_bundle("tensorrt", "mha", "sm89", weights="baked")
    entry = bundle.manifest["engines"]["tensorrt"] | {"weight_streaming": True}
    bundle = replace(bundle, manifest={**bundle.manifest, "engines": {"tensorrt": entry}})
    token_ids = cuda.ALIGNMENT
    total = token_ids + reserve + bundle.spec.slot_bytes + 2 * size + 1000
    for budget, shares in ((3 << 20, [0, size // 2, size]), (None, [1000, size, size])):
        with installed(FakeGpu(lazy=True, total=total)):
            session = TensorRTSession(bundle, "tensorrt", weight_budget=budget)
            loaded = [session._graphs[graph].engines[bundle.spec.capacities].engine for graph in GRAPHS]
        assert [engine.weight_streaming_budget_v2 for engine in loaded] == shares


def weights_on_the_gpu(bundle: Bundle) -> int:
    """Bytes of all weights, each at a multiple of what TensorRT aligns to."""
    tensors = [tensor for file in bundle.weights for tensor in weights.stored(bundle.path(file.path))]
    return sum(-(-tensor.nbytes // cuda.ALIGNMENT) * cuda.ALIGNMENT for tensor in tensors)


def test_sessions_share_weights_and_the_last_frees_them(
    engines: Callable[[str], Bundle], lazy_gpu: FakeGpu, picture: Path
) -> None:
    bundle, everything = engines("tensorrt"), lazy_gpu.memory.free_bytes
    first = TensorRTSession(bundle, "tensorrt")
    one = everything - lazy_gpu.memory.free_bytes
    second = TensorRTSession(bundle, "tensorrt")
    assert everything - lazy_gpu.memory.free_bytes == 2 * one - weights_on_the_gpu(bundle)
    first.close()
    expected = answer(bundle, "onnxruntime", picture)
    found = Pipeline(bundle, second).generate(picture, "What is this?", max_new_tokens=6).result()
    assert found.token_ids == expected
    second.close()
    assert lazy_gpu.memory.free_bytes == everything


def test_what_runs_beside_is_not_waited_for(
    engines: Callable[[str], Bundle], lazy_gpu: FakeGpu, picture: Path
) -> None:
    bundle, everything = engines("tensorrt"), lazy_gpu.memory.free_bytes
    session = TensorRTSession(bundle, "tensorrt")
    other, one = session.beside(), Pipeline(bundle, session)
    assert session.beside() is other
    caches = session.allocate_caches(2)
    request = one.request(picture, "What is this?", max_new_tokens=4)
    (vision,) = one.steps.encode_images(request.images)
    seen = vision.copied(bundle.spec.dtype)
    session.synchronize()
    rows = other.borrow(caches.rows(1, 2))
    state = Steps(other).prefill(request.tokens, seen, caches=rows)
    pending = lazy_gpu.find(other.stream.handle, FakeStream).pending
    lengths = np.ones((len(bundle.spec.groups), 1), np.int64)
    one.steps.decode_batch(caches.rows(0, 1), np.array([5]), lengths).argmax()
    assert len(pending) > 0
    assert state.best_token() == one.answer(request).result().token_ids[0]
    assert len(pending) == 0
    session.close()
    assert lazy_gpu.memory.free_bytes == everything


@pytest.mark.parametrize("backend", ["tensorrt", RTX])
@pytest.mark.usefixtures("lazy_gpu")
def test_weights_inside_each_engine(
    fake_engine_bundle: Callable[..., Bundle], backend: str, picture: Path
) -> None:
    bundle = fake_engine_bundle(backend, "mha", "sm89", weights="baked")
    assert answer(bundle, backend, picture) == answer(bundle, "onnxruntime", picture)
    assert not weights.LOADED


@pytest.mark.parametrize("quantize", ["int4", "int8"])
@pytest.mark.usefixtures("lazy_gpu")
def test_quantised_weights(fake_engine_bundle: Callable[..., Bundle], quantize: str, picture: Path) -> None:
    bundle = fake_engine_bundle(RTX, "mha", "sm89", quantize=quantize)
    assert answer(bundle, RTX, picture) == answer(bundle, "onnxruntime", picture)


def test_weights_in_pieces(
    engines: Callable[[str], Bundle], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PIECE_BYTES", 1000)
    bundle = engines(RTX)
    assert answer(bundle, RTX, picture) == answer(bundle, "onnxruntime", picture)


def test_weights_that_are_not_there_yet_would_show(
    engines: Callable[[str], Bundle], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_fill", lambda *_: None)
    with pytest.raises(NonFiniteError):
        answer(engines(RTX), RTX, picture)


def test_weights_that_cannot_be_read(
    engines: Callable[[str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = engines(RTX)
    path = bundle.path(bundle.weights[0].path)
    damaged = tmp_path / path.name
    for content in (b"", path.read_bytes()[:-1], b"\xff" * 100):
        damaged.write_bytes(content)
        with pytest.raises(BundleError, match="no weights file"):
            weights.stored(damaged)
    tensors = weights.stored(path)
    longer = [tensor._replace(offset=tensor.offset + 1) for tensor in tensors[-1:]]  # cut after it was read
    monkeypatch.setattr(weights, "stored", lambda _: longer)
    with pytest.raises(BundleError, match="ends early"):
        weights.shared_weights(bundle, read_facts(bundle, RTX)).addresses()


def test_engines_of_other_weights(engines: Callable[[str], Bundle]) -> None:
    bundle = engines(RTX)
    entry = bundle.manifest["engines"][RTX]
    files = dict.fromkeys(entry["weights_files"], "0" * 64)
    other = replace(bundle, manifest=bundle.manifest | {"engines": {RTX: entry | {"weights_files": files}}})
    with pytest.raises(BundleError, match=r"vision\.safetensors, which is not what they were"):
        open_session(other, Runtime(backend=RTX))


def test_results_come_back_in_pieces_and_bfloat16_as_float32(engines: Callable[[str], Bundle]) -> None:
    session = TensorRTSession(engines("tensorrt"), "tensorrt")
    bits = np.random.default_rng(0).integers(0, 0x7F00, LANDING_BYTES + 100).astype(np.uint16)
    buffer, pinned = cuda.DeviceBuffer(bits.nbytes, "x"), cuda.PinnedBuffer(bits.nbytes)
    pinned.array[:] = bits.view(np.uint8)
    session.stream.upload(buffer.pointer, pinned.pointer, bits.nbytes)
    found = session.fetch(buffer.pointer, "bfloat16", (2, bits.size // 2))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.ravel().view(np.uint32), bits.astype(np.uint32) << 16)


def test_rows_of_caches_lie_in_the_whole(engines: Callable[[str], Bundle]) -> None:
    session = TensorRTSession(engines("tensorrt"), "tensorrt")
    whole = session.allocate_caches(4)
    for start, stop in ((0, 1), (1, 3), (2, 4)):
        rows, row_bytes = whole.rows(start, stop), whole._sizes["past_key_values.0.key"] // 4
        for present, past in session.contract[DECODE].aliases.items():
            assert rows.addresses[past] == rows.addresses[present]
        name = "past_key_values.0.key"
        assert rows.addresses[name] == whole.addresses[name] + start * row_bytes
        assert rows.rows(stop - start - 1, stop - start).addresses == whole.rows(stop - 1, stop).addresses


def test_a_cache_is_filled_with_what_was_read_of_it(engines: Callable[[str], Bundle]) -> None:
    """In pieces, in one row, with less than it has room for."""
    session = TensorRTSession(engines("tensorrt"), "tensorrt")
    caches = session.allocate_caches(2)
    name = "past_key_values.0.key"
    row, shape = caches.rows(1, 2), caches.numpy(name)[1:].shape
    values = np.random.default_rng(0).standard_normal((*shape[:2], 7, shape[3])).astype(np.float32)
    values = values.astype(caches.numpy(name).dtype)
    row.fill(name, values)
    found = caches.numpy(name)
    assert (found[1, :, :7] == values[0]).all()
    assert not found[0].any()
    assert not found[1, :, 7:].any()


def test_inputs_of_another_type(engines: Callable[[str], Bundle]) -> None:
    session = TensorRTSession(engines("tensorrt"), "tensorrt")
    shape = {spec.name: spec.shape for spec in session.contract["vision"].inputs}["pixel_values"]
    slots = np.arange(session.spec.image_tokens)
    for dtype in (np.float32, np.int16):
        with pytest.raises(TypeError, match=f"vision: pixel_values must be float16, got {np.dtype(dtype)}"):
            session.run("vision", {"pixel_values": np.zeros(shape, dtype), "stage1_slots": slots})


#: What CUDA's calls return on machines that cannot run an engine, and what is said of it.
MACHINES: list[tuple[dict[str, tuple[int, int | None]], str]] = [
    ({"cudaDriverGetVersion": (0, 0)}, "this machine has no NVIDIA driver"),
    (
        {"cudaDriverGetVersion": (0, 12090), "cudaGetDeviceCount": (35, None)},
        "the NVIDIA driver runs CUDA 12.9, cuda-bindings needs 13; update",
    ),
    ({"cudaGetDeviceCount": (100, None)}, "the NVIDIA driver sees no GPU"),
    ({"cudaGetDeviceCount": (0, 0)}, "the NVIDIA driver sees no GPU"),
    ({"cudaGetDeviceCount": (999, None)}, "counting GPUs: cudaErrorUnknown"),
]


@pytest.mark.parametrize(("calls", "message"), MACHINES)
def test_machines_without_a_gpu(
    lazy_gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    calls: dict[str, tuple[int, int | None]],
    message: str,
) -> None:
    cudart = cuda.library("runtime")
    assert cuda.require_device() == cuda.DeviceFacts("fake GPU", (8, 9), "13.0", 1 << 32, 1 << 32)
    for name, (code, value) in calls.items():
        returned = cudart.cudaError_t(code), value
        monkeypatch.setattr(cudart, name, lambda returned=returned: returned)
    with pytest.raises(PlatformError, match=message):
        cuda.require_device()


@pytest.mark.usefixtures("lazy_gpu")
def test_caches_that_cannot_be_used_row_by_row(fake_engine_bundle: Callable[..., Bundle]) -> None:
    bundle = fake_engine_bundle("tensorrt", "gqa", "sm89")
    caches = open_session(bundle, Runtime(backend="tensorrt")).allocate_caches(2)
    with pytest.raises(SettingsError, match="takes 43392 bytes a sequence, no multiple of 256"):
        caches.rows(0, 1)


def test_inputs_that_tensorrt_reads_on_the_host(
    engines: Callable[[str], Bundle], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = engines("tensorrt")
    expected = answer(bundle, "onnxruntime", picture)
    place = lambda self, name: HOST if name == "stage2_slots" else DEVICE  # noqa: E731
    monkeypatch.setattr(FakeEngine, "get_tensor_location", place)
    assert answer(bundle, "tensorrt", picture) == expected


def test_a_decode_step_that_cannot_be_captured_runs_as_it_is(
    engines: Callable[[str], Bundle],
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = engines("tensorrt")
    expected = answer(bundle, "onnxruntime", picture)

    def refuse(self: Any, graph: Any, flags: int) -> int:
        raise CudaError(801)

    monkeypatch.setattr(bindings.FakeRuntime, "cudaGraphInstantiate", bindings.call(refuse))
    assert answer(bundle, "tensorrt", picture) == expected
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1  # it does not try again
    assert said[0].startswith("decode runs without a CUDA graph: instantiating a CUDA graph: cudaErrorNotSup")


@pytest.mark.parametrize(
    ("more", "what"),
    [(-1, "the weights"), (1 << 15, "the engines' activations"), (1 << 20, "the KV caches of 4")],
)
def test_no_room_on_the_gpu(fake_engine_bundle: Callable[..., Bundle], more: int, what: str) -> None:
    bundle = fake_engine_bundle("tensorrt", "mha", "sm89")
    total = cuda.ALIGNMENT + weights_on_the_gpu(bundle) + more  # sampled tokens come first
    with (
        installed(FakeGpu(lazy=True, total=total)),
        pytest.raises(PlatformError, match=f"no room for {what}"),
    ):
        open_session(bundle, Runtime(backend="tensorrt")).allocate_caches(4)


def infer_shapes(self: Any) -> list[str]:
    raise RuntimeError


#: Method of a stand-in, what it does instead, and what the session then says.
REFUSALS: list[tuple[type, str, Any, str]] = [
    (FakeEngine, "create_execution_context", lambda *_: None, "tensorrt cannot prepare vision: it gave no"),
    (FakeContext, "set_tensor_address", lambda *_: False, "refuses the address of vision_tower.embeddings"),
    (
        FakeContext,
        "set_tensor_address",
        lambda _, name, __: name != "image_features",
        "refuses the address of image_features",
    ),
    (FakeContext, "set_input_shape", lambda *_: False, r"refuses shape \(1, 3, 96, 96\) of pixel_values"),
    (FakeContext, "infer_shapes", infer_shapes, "refuses the shapes of pixel_values, stage1_slots"),
    (FakeContext, "infer_shapes", lambda _: ["pixel_values"], r"refuses the shapes of pixel_values \(vision"),
    (FakeContext, "get_tensor_shape", lambda *_: (1, 7), r"for output image_features and wants \(1, 7\)"),
    (FakeContext, "execute_async_v3", lambda *_: False, r"refuses to run \(vision\)"),
    (
        FakeEngine,
        "get_aliased_input_tensor",
        lambda *_: None,
        "writes present.0.key in place of None",
    ),
    (FakeEngine, "get_tensor_dtype", lambda *_: trt.DataType.INT8, "has image_features in INT8"),
]


@pytest.mark.parametrize(("kind", "method", "instead", "message"), REFUSALS)
def test_what_tensorrt_refuses_is_told(
    engines: Callable[[str], Bundle],
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    method: str,
    instead: Any,
    message: str,
) -> None:
    monkeypatch.setattr(kind, method, instead)
    with pytest.raises((PlatformError, BundleError), match=message):
        answer(engines("tensorrt"), "tensorrt", picture)


def test_after_a_refusal_the_next_run_is_told_everything_again(
    engines: Callable[[str], Bundle], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = engines("tensorrt")
    pipeline = Pipeline(bundle, open_session(bundle, Runtime(backend="tensorrt")))
    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "infer_shapes", infer_shapes)
        with pytest.raises(PlatformError, match="refuses the shapes"):
            pipeline.generate(picture, "What is this?").result()
    found = pipeline.generate(picture, "What is this?", max_new_tokens=6).result().token_ids
    assert found == answer(bundle, "onnxruntime", picture)


@pytest.mark.parametrize("validity", ["INVALID", "SUBOPTIMAL"])
def test_tensorrt_rtx_is_asked_whether_an_engine_fits(
    engines: Callable[[str], Bundle],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    validity: str,
) -> None:
    found = getattr(trt.EngineValidity, validity), int(trt.EngineInvalidityDiagnostics.VERSION_MISMATCH)
    monkeypatch.setattr(FakeRuntime, "get_engine_validity", lambda *_: found)
    bundle = engines(RTX)
    if validity == "INVALID":
        with pytest.raises(BundleError, match=r"on this GPU \(VERSION_MISMATCH\); build the engines again"):
            open_session(bundle, Runtime(backend=RTX))
    else:
        open_session(bundle, Runtime(backend=RTX))
        assert caplog.text.count("it runs, but slower than one built here") == 3
