# ruff: noqa: N802, N803
"""Stand-ins for ``cuda.bindings.runtime`` and ``cuda.bindings.driver`` over the fake GPU.

Functions have the names, parameters and results of the real ones, and there are only those that
the package calls. Types, error codes and texts are the real modules' own.
"""

import functools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fake_gpu.device import FakeEvent, FakeGpu, FakeStream, Work
from tests.fake_gpu.memory import ILLEGAL_ADDRESS, INVALID_VALUE, CudaError

INVALID_DIRECTION, NOT_FOUND = 21, 500


def call(function: Callable[..., Any]) -> Callable[..., Any]:
    """A CUDA call: its result, if it has one, behind an error code; a lost GPU fails every call."""
    has_result = function.__annotations__["return"] is not None

    @functools.wraps(function)
    def called(self: "_Bindings", *given: Any) -> tuple[Any, ...]:
        result = None
        with self.gpu.lock:
            try:
                if self.gpu.lost is None:
                    result = function(self, *given)
                code = self.gpu.lost or 0
            except CudaError as error:
                code = error.code
        return (self.error(code), result) if has_result else (self.error(code),)

    return called


class _Bindings(ModuleType):
    """One module: our functions, and the real one's types and numbers."""

    def __init__(self, name: str, error: str, gpu: FakeGpu) -> None:
        super().__init__(f"cuda.bindings.{name}")
        self.real = pytest.importorskip(f"cuda.bindings.{name}")
        self.gpu, self.error = gpu, getattr(self.real, error)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if not isinstance(found, type | int):
            raise AttributeError(f"the fake GPU has no {name}")
        return found


class FakeRuntime(_Bindings):
    """``cuda.bindings.runtime``."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__("runtime", "cudaError_t", gpu)
        self.cudaGetErrorString = self.real.cudaGetErrorString

    @call
    def cudaDriverGetVersion(self) -> int:
        return 13000

    @call
    def cudaRuntimeGetVersion(self) -> int:
        return 13000

    @call
    def cudaGetDeviceCount(self) -> int:
        return 1

    @call
    def cudaGetDeviceProperties(self, device: int) -> SimpleNamespace:
        major, minor = self.gpu.capability
        return SimpleNamespace(name=b"fake GPU", major=major, minor=minor)

    @call
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.gpu.memory.free_bytes, self.gpu.memory.total

    @call
    def cudaMalloc(self, size: int) -> int:
        return self.gpu.memory.allocate(size)

    @call
    def cudaMallocHost(self, size: int) -> int:
        return self.gpu.memory.allocate(size, on_host=True)

    @call
    def cudaFree(self, devPtr: int) -> None:
        self.gpu.free(devPtr)

    @call
    def cudaFreeHost(self, ptr: int) -> None:
        self.gpu.free(ptr)

    @call
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> None:
        """Host memory must be pinned: CUDA takes any, but would then wait for the copy."""
        kinds = self.real.cudaMemcpyKind
        if kind not in (kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost):
            raise CudaError(INVALID_DIRECTION)
        up = kind == kinds.cudaMemcpyHostToDevice

        def copy() -> None:
            source = self.gpu.memory.view(src, count, on_host=up)
            self.gpu.memory.view(dst, count, on_host=not up)[:] = source

        self._look(src, count, on_host=up)
        self._look(dst, count, on_host=not up)
        self.gpu.queue(stream, copy)

    @call
    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: Any) -> None:
        self._look(devPtr, count, on_host=False)
        self.gpu.queue(stream, lambda: self.gpu.memory.view(devPtr, count, on_host=False).fill(value))

    @call
    def cudaDeviceGetStreamPriorityRange(self) -> tuple[int, int]:
        return 0, -5

    @call
    def cudaStreamCreateWithPriority(self, flags: int, priority: int) -> Any:
        return self.real.cudaStream_t(self.gpu.register(FakeStream()))

    @call
    def cudaStreamDestroy(self, stream: Any) -> None:
        self.gpu.finish(self.gpu.find(stream, FakeStream))
        del self.gpu.objects[int(stream)]

    @call
    def cudaStreamSynchronize(self, stream: Any) -> None:
        self.gpu.finish(self.gpu.find(stream, FakeStream))

    @call
    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return self.real.cudaEvent_t(self.gpu.register(FakeEvent()))

    @call
    def cudaEventDestroy(self, event: Any) -> None:
        del self.gpu.objects[int(event)]

    @call
    def cudaEventRecord(self, event: Any, stream: Any) -> None:
        found, event_ = self.gpu.find(stream, FakeStream), self.gpu.find(event, FakeEvent)
        event_.stream, event_.after = found, found.queued

    @call
    def cudaEventSynchronize(self, event: Any) -> None:
        found = self.gpu.find(event, FakeEvent)
        if found.stream is not None:
            self.gpu.finish(found.stream, after=found.after)

    @call
    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        self.gpu.find(stream, FakeStream).recorded = []

    @call
    def cudaStreamEndCapture(self, stream: Any) -> Any:
        found = self.gpu.find(stream, FakeStream)
        work, found.recorded = found.recorded, None
        return self.real.cudaGraph_t(self.gpu.register(work))

    @call
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        work: list[Work] = self.gpu.find(graph, list)
        return self.real.cudaGraphExec_t(self.gpu.register(tuple(work)))

    @call
    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> None:
        for work in self.gpu.find(graphExec, tuple):
            self.gpu.queue(stream, work)

    @call
    def cudaGraphDestroy(self, graph: Any) -> None:
        del self.gpu.objects[int(graph)]

    @call
    def cudaGraphExecDestroy(self, graphExec: Any) -> None:
        del self.gpu.objects[int(graphExec)]

    def _look(self, address: int, size: int, *, on_host: bool) -> None:
        """CUDA knows its allocations: it refuses a copy that leaves them before it begins."""
        try:
            self.gpu.memory.view(address, size, on_host=on_host)
        except CudaError as error:
            raise CudaError(INVALID_VALUE if error.code == ILLEGAL_ADDRESS else error.code) from error


class FakeDriver(_Bindings):
    """``cuda.bindings.driver``: launches of the one kernel that there is."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__("driver", "CUresult", gpu)
        self._functions: dict[int, list[int]] = {}  # by module

    @call
    def cuModuleLoadData(self, image: bytes) -> Any:
        return self.real.CUmodule(self.gpu.register(bytes(image)))

    @call
    def cuModuleUnload(self, hmod: Any) -> None:
        self.gpu.find(hmod, bytes)
        for handle in (int(hmod), *self._functions.pop(int(hmod), ())):
            del self.gpu.objects[handle]

    @call
    def cuModuleGetFunction(self, hmod: Any, name: bytes) -> Any:
        if name != b"star_argmax" or name not in self.gpu.find(hmod, bytes):
            raise CudaError(NOT_FOUND)
        handle = self.gpu.register(self._argmax)
        self._functions.setdefault(int(hmod), []).append(handle)
        return self.real.CUfunction(handle)

    @call
    def cuLaunchKernel(
        self,
        f: Any,
        gridDimX: int,
        gridDimY: int,
        gridDimZ: int,
        blockDimX: int,
        blockDimY: int,
        blockDimZ: int,
        sharedMemBytes: int,
        hStream: Any,
        kernelParams: tuple[tuple[Any, ...], tuple[Any, ...]],
        extra: int,
    ) -> None:
        kernel = self.gpu.find(f, type(self._argmax))
        given = [kind(value).value for value, kind in zip(*kernelParams, strict=True)]
        self.gpu.queue(hStream, lambda: kernel(gridDimX, *given))

    def _argmax(self, rows: int, logits: int, tokens: int, vocab: int) -> None:
        memory = self.gpu.memory
        values = memory.view(logits, 4 * rows * vocab, alignment=4).view(np.float32)
        memory.view(tokens, 8 * rows, alignment=8).view(np.int64)[:] = self.gpu.argmax(
            values.reshape(rows, vocab)
        )
