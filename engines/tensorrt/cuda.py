"""CUDA in the few pieces a session needs, over NVIDIA's own bindings (``cuda-bindings``).

Importing this module needs neither that package nor a driver; calling it does.
Which GPU: the first visible one, so ``CUDA_VISIBLE_DEVICES`` chooses.
"""

import ctypes
import functools
import importlib
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from star_export.errors import DeviceError, PlatformError, option

#: Tensors that share an allocation start at multiples of this, as separate ones would.
ALIGNMENT = 256

#: Errors of the runtime and of the driver after which every further call fails in this process.
STICKY = frozenset({
    214,  # ECC uncorrectable
    220,  # NVLink uncorrectable
    226,  # contained
    700,  # illegal address
    702,  # launch timeout
    710,  # assert
    714,  # hardware stack error
    715,  # illegal instruction
    716,  # misaligned address
    717,  # invalid address space
    718,  # invalid program counter
    719,  # launch failure
    721,  # tensor memory leak
    810,  # MPS client terminated
    911,  # external device
})  # fmt: skip

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DeviceFacts:
    """The GPU that sessions use.

    Attributes:
        name: Its product name.
        capability: Compute capability, such as ``(8, 9)``.
        driver: Newest CUDA version that the driver runs, such as ``13.0``.
        free_memory: Free bytes.
        total_memory: All bytes.
    """

    name: str
    capability: tuple[int, int]
    driver: str
    free_memory: int
    total_memory: int


@functools.cache
def library(name: str) -> Any:
    """The module ``runtime``, ``driver`` or ``nvrtc`` of cuda-bindings.

    Raises:
        PlatformError: If it is not installed.
    """
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise PlatformError(
            f"CUDA's Python bindings are not installed ({error}); "
            "run: pip install 'star-export[tensorrt]' (or 'star-export[rtx]')"
        ) from error


def check(returned: tuple[Any, ...], doing: str) -> Any:
    """What a call of cuda-bindings returned, without the error code in front.

    Args:
        returned: The error code, then the results.
        doing: What the call was for, for the message.

    Raises:
        DeviceError: If no call will succeed in this process any more.
        PlatformError: If this one failed. Both with CUDA's name and text of the error.
    """
    error, *values = returned
    if int(error) in STICKY:
        raise DeviceError(f"the GPU is lost, {doing}: {_describe(error)}; start the program again")
    if int(error):
        raise PlatformError(f"{doing}: {_describe(error)}")
    return values[0] if len(values) == 1 else tuple(values)


def require_device() -> DeviceFacts:
    """The GPU that sessions use.

    Raises:
        PlatformError: If there is none, naming what is missing: package, driver or device.
    """
    cudart = library("runtime")
    version = check(cudart.cudaDriverGetVersion(), "asking for the CUDA driver")
    if version == 0:
        raise PlatformError(
            f"this machine has no NVIDIA driver; install one, or use {option('backend', 'onnxruntime')}"
        )
    error, count = cudart.cudaGetDeviceCount()
    if error == cudart.cudaError_t.cudaErrorInsufficientDriver:
        needed = check(cudart.cudaRuntimeGetVersion(), "asking for the CUDA version")
        raise PlatformError(
            f"the NVIDIA driver runs CUDA {_version(version)}, cuda-bindings needs {needed // 1000}; "
            "update the driver"
        )
    if error == cudart.cudaError_t.cudaErrorNoDevice or (not int(error) and count == 0):
        raise PlatformError("the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    check((error,), "counting GPUs")
    properties = check(cudart.cudaGetDeviceProperties(0), "asking for the GPU")
    free, total = memory()
    capability = (int(properties.major), int(properties.minor))
    return DeviceFacts(properties.name.decode(), capability, _version(version), free, total)


def memory() -> tuple[int, int]:
    """Free and total bytes of the GPU."""
    free, total = check(library("runtime").cudaMemGetInfo(), "asking for free GPU memory")
    return int(free), int(total)


def out_of_memory(what: str, size: int, free: int) -> str:
    """The message of an allocation of ``size`` bytes that failed with ``free`` bytes left."""
    return (
        f"the GPU has no room for {what}: {size / 1e9:.2f} GB asked for, {free / 1e9:.2f} GB free; "
        "close what else uses it, or build the bundle again with "
        f"a smaller {option('max_text_tokens')} or {option('max_new_tokens')}, "
        f"or its engines with {option('weight_streaming', True)}"
    )


class DeviceBuffer:
    """Device memory, allocated once and freed with the object.

    Args:
        size: Bytes; an empty buffer has an address too, since TensorRT refuses null.
        what: What it holds, for the message when there is no room.

    Raises:
        PlatformError: If there is no room.
    """

    def __init__(self, size: int, what: str) -> None:
        cudart = library("runtime")
        self.size = max(size, ALIGNMENT)
        error, pointer = cudart.cudaMalloc(self.size)
        if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
            raise PlatformError(out_of_memory(what, self.size, memory()[0]))
        check((error,), f"allocating {what}")
        self.pointer = int(pointer)
        self.close = weakref.finalize(self, cudart.cudaFree, self.pointer)


class Tensors:
    """Named tensors in one allocation of device memory, each where TensorRT takes it.

    Args:
        sizes: Bytes of each.
        what: What they are; see :class:`DeviceBuffer`.

    Raises:
        PlatformError: If there is no room.
    """

    def __init__(self, sizes: Mapping[str, int], what: str) -> None:
        self.offsets: dict[str, int] = {}
        total = 0
        for name, size in sizes.items():
            self.offsets[name] = total
            total += max(1, -(-size // ALIGNMENT)) * ALIGNMENT
        self.buffer = DeviceBuffer(total, what)

    def address(self, name: str) -> int:
        """Where one lies."""
        return self.buffer.pointer + self.offsets[name]


class PinnedBuffer:
    """Host memory that the GPU copies from and to without a detour.

    Attributes:
        array: uint8 ``[size]``, a view: never hand it out.
    """

    def __init__(self, size: int) -> None:
        cudart = library("runtime")
        self.size = max(size, ALIGNMENT)
        doing = f"allocating {self.size} bytes of pinned memory"
        self.pointer = int(check(cudart.cudaMallocHost(self.size), doing))
        self.array: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.pointer))
        self.close = weakref.finalize(self, cudart.cudaFreeHost, self.pointer)


class Graph:
    """A captured CUDA graph, ready to be launched; see :meth:`Stream.capture`."""

    def __init__(self, graph: Any) -> None:
        cudart = library("runtime")
        try:
            self.executable = check(cudart.cudaGraphInstantiate(graph, 0), "instantiating a CUDA graph")
        finally:
            cudart.cudaGraphDestroy(graph)
        self.close = weakref.finalize(self, cudart.cudaGraphExecDestroy, self.executable)


class Stream:
    """A queue of work for the GPU; everything of one session goes through one of them.

    Args:
        yielding: Let work of other streams go first: they have the highest priority, this one the lowest.

    Attributes:
        handle: Its address, as TensorRT takes it.
    """

    def __init__(self, *, yielding: bool = False) -> None:
        cudart = library("runtime")
        lowest, highest = check(cudart.cudaDeviceGetStreamPriorityRange(), "asking for CUDA's priorities")
        # Non-blocking: the default stream, and so anyone else's work, is not waited for.
        how = cudart.cudaStreamNonBlocking, lowest if yielding else highest
        self._stream = check(cudart.cudaStreamCreateWithPriority(*how), "creating a CUDA stream")
        self.handle = int(self._stream)
        self.close = weakref.finalize(self, cudart.cudaStreamDestroy, self._stream)

    def synchronize(self) -> None:
        """Wait until everything is done; an error of earlier work comes out here."""
        check(library("runtime").cudaStreamSynchronize(self._stream), "running on the GPU")

    def upload(self, to: int, source: int, size: int) -> None:
        """Copy from pinned to device memory, without waiting."""
        cudart = library("runtime")
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(cudart.cudaMemcpyAsync(to, source, size, kind, self._stream), "copying to the GPU")

    def download(self, to: int, source: int, size: int) -> None:
        """Copy from device to pinned memory, without waiting."""
        cudart = library("runtime")
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(cudart.cudaMemcpyAsync(to, source, size, kind, self._stream), "copying from the GPU")

    def zero(self, pointer: int, size: int) -> None:
        """Fill device memory with zeros, without waiting."""
        check(library("runtime").cudaMemsetAsync(pointer, 0, size, self._stream), "clearing GPU memory")

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` puts on this stream instead of running it.

        Raises:
            PlatformError: If something in it cannot be captured; the stream is usable again.
        """
        cudart = library("runtime")
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self._stream, mode), "beginning a CUDA graph")
        try:
            enqueue()
        except BaseException:
            _, graph = cudart.cudaStreamEndCapture(self._stream)
            if graph is not None:  # what was recorded until then
                cudart.cudaGraphDestroy(graph)
            raise
        return Graph(check(cudart.cudaStreamEndCapture(self._stream), "capturing a CUDA graph"))

    def launch(self, graph: Graph) -> None:
        """Run a captured graph, without waiting."""
        check(library("runtime").cudaGraphLaunch(graph.executable, self._stream), "launching a CUDA graph")

    def record(self, event: "Event") -> None:
        """Let ``event`` happen when everything before it is done."""
        check(library("runtime").cudaEventRecord(event.event, self._stream), "recording a CUDA event")


class Event:
    """A moment in a stream; one that was never recorded has passed."""

    def __init__(self) -> None:
        cudart = library("runtime")
        flags = cudart.cudaEventDisableTiming
        self.event = check(cudart.cudaEventCreateWithFlags(flags), "creating a CUDA event")
        self.close = weakref.finalize(self, cudart.cudaEventDestroy, self.event)

    def synchronize(self) -> None:
        """Wait until it has passed."""
        check(library("runtime").cudaEventSynchronize(self.event), "running on the GPU")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _describe(error: Any) -> str:
    """CUDA's name of an error and, from the runtime, its text."""
    if type(error).__name__ != "cudaError_t":
        return str(error.name)
    _, text = library("runtime").cudaGetErrorString(error)
    return f"{error.name} ({text.decode()})"
