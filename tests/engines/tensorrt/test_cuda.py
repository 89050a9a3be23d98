"""What our CUDA calls make of errors: real error values, and a fake of the calls where there is no GPU."""

from types import SimpleNamespace

import pytest

from star_export.engines.tensorrt import cuda
from star_export.errors import DeviceError, PlatformError

cudart = pytest.importorskip("cuda.bindings.runtime")
driver = pytest.importorskip("cuda.bindings.driver")
SUCCESS = cudart.cudaError_t.cudaSuccess


@pytest.mark.parametrize(
    "error",
    [
        cudart.cudaError_t.cudaErrorECCUncorrectable,
        cudart.cudaError_t.cudaErrorIllegalAddress,
        cudart.cudaError_t.cudaErrorLaunchTimeout,
        cudart.cudaError_t.cudaErrorAssert,
        cudart.cudaError_t.cudaErrorHardwareStackError,
        cudart.cudaError_t.cudaErrorIllegalInstruction,
        cudart.cudaError_t.cudaErrorMisalignedAddress,
        cudart.cudaError_t.cudaErrorInvalidAddressSpace,
        cudart.cudaError_t.cudaErrorInvalidPc,
        cudart.cudaError_t.cudaErrorLaunchFailure,
        cudart.cudaError_t.cudaErrorMpsClientTerminated,
        driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
        driver.CUresult.CUDA_ERROR_LAUNCH_FAILED,
    ],
)
def test_sticky_errors_mean_that_the_gpu_is_lost(error) -> None:
    with pytest.raises(DeviceError, match=f"the GPU is lost, running: {error.name}"):
        cuda.check((error,), "running")


@pytest.mark.parametrize(
    "error",
    [
        cudart.cudaError_t.cudaErrorMemoryAllocation,
        cudart.cudaError_t.cudaErrorStreamCaptureInvalidated,
        cudart.cudaError_t.cudaErrorDevicesUnavailable,
        cudart.cudaError_t.cudaErrorLaunchOutOfResources,
        driver.CUresult.CUDA_ERROR_INVALID_VALUE,
    ],
)
def test_other_errors_leave_the_gpu_usable(error) -> None:
    with pytest.raises(PlatformError, match=f"^running: {error.name}"):
        cuda.check((error,), "running")


class FakeRuntime:
    """The calls of a capture; counts the graphs that are alive."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, **failing: object) -> None:
        self.failing, self.alive, self.capturing = failing, set(), False

    def __getattr__(self, name: str):
        return lambda *given: self._call(name, *given)

    def _call(self, name: str, *given):
        error = self.failing.get(name, SUCCESS)
        if name == "cudaStreamBeginCapture":
            self.capturing = True
        elif name == "cudaStreamEndCapture":
            self.capturing = False
            if error == SUCCESS:
                self.alive.add("graph")
            return error, "graph" if error == SUCCESS else None
        elif name == "cudaGraphInstantiate":
            if error == SUCCESS:
                self.alive.add("executable")
            return error, "executable" if error == SUCCESS else None
        elif name in ("cudaGraphDestroy", "cudaGraphExecDestroy"):
            self.alive.remove(given[0])
        elif name == "cudaGetErrorString":
            return SUCCESS, b"a text"
        elif name == "cudaDeviceGetStreamPriorityRange":
            return error, 0, -5
        return error, 7


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    def install(**failing: object) -> FakeRuntime:
        runtime = FakeRuntime(**failing)
        monkeypatch.setattr(cuda, "library", lambda name: runtime)
        return runtime

    return install


def test_a_captured_graph_lives_as_long_as_its_object(fake) -> None:
    runtime = fake()
    graph = cuda.Stream().capture(lambda: None)
    assert runtime.alive == {"executable"}
    graph.close()
    assert not runtime.alive


def refuse() -> None:
    raise PlatformError("TensorRT refuses to run")


@pytest.mark.parametrize(
    ("enqueue", "failing", "message"),
    [
        (refuse, {}, "TensorRT refuses to run"),
        (refuse, {"cudaStreamEndCapture": "cudaErrorStreamCaptureInvalidated"}, "TensorRT refuses to run"),
        (lambda: None, {"cudaStreamEndCapture": "cudaErrorStreamCaptureInvalidated"}, "capturing a CUDA"),
        (lambda: None, {"cudaGraphInstantiate": "cudaErrorNotSupported"}, "instantiating a CUDA graph"),
    ],
)
def test_a_capture_that_fails_leaves_nothing_behind(fake, enqueue, failing, message) -> None:
    runtime = fake(**{call: getattr(cudart.cudaError_t, error) for call, error in failing.items()})
    with pytest.raises(PlatformError, match=message):
        cuda.Stream().capture(enqueue)
    assert not runtime.alive
    assert not runtime.capturing
