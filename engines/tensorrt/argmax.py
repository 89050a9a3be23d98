"""Greedy sampling on the GPU: 8 bytes per sequence come back instead of its logits.

The kernel is compiled at session start for the GPU at hand, to machine code and
not to PTX: a driver refuses PTX of a newer toolkit than its own.
"""

import ctypes
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from star_export.engines.plugins.nvrtc import compile_cubin
from star_export.engines.tensorrt.cuda import DeviceBuffer, PinnedBuffer, Stream, check, library

SOURCE = Path(__file__).with_name("argmax.cu")
KERNEL = b"star_argmax"

#: Threads of a block, as in the source.
THREADS = 512


class Argmax:
    """The compiled kernel and the memory for its result.

    Args:
        stream: Where it runs.
        capability: Compute capability of the GPU.
        max_rows: Sequences it can be called for at once.

    Raises:
        PlatformError: If NVRTC is missing or does not know the GPU.
    """

    def __init__(self, stream: Stream, capability: tuple[int, int], *, max_rows: int) -> None:
        driver = library("driver")
        self._stream = stream
        self._module = check(driver.cuModuleLoadData(compile_kernel(capability)), "loading the argmax kernel")
        self._unload = weakref.finalize(self, driver.cuModuleUnload, self._module)
        self._kernel = check(driver.cuModuleGetFunction(self._module, KERNEL), "loading the argmax kernel")
        self._tokens = DeviceBuffer(8 * max_rows, "token ids")
        self._landing = PinnedBuffer(8 * max_rows)

    def __call__(self, logits: int, rows: int, vocab: int) -> npt.NDArray[np.int64]:
        """Index of the largest of each row: int64 ``[rows]``, on the host; waits for the stream.

        -1 for a row whose largest is not finite.

        Args:
            logits: Address of float32 ``[rows, vocab]``.
            rows: Sequences.
            vocab: Size of the vocabulary.
        """
        driver = library("driver")
        values = (logits, self._tokens.pointer, vocab)
        types = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        stream = driver.CUstream(self._stream.handle)
        launched = driver.cuLaunchKernel(
            self._kernel, rows, 1, 1, THREADS, 1, 1, 0, stream, (values, types), 0
        )
        check(launched, "launching the argmax kernel")
        self._stream.download(self._landing.pointer, self._tokens.pointer, 8 * rows)
        self._stream.synchronize()
        return self._landing.array[: 8 * rows].view(np.int64).copy()

    def close(self) -> None:
        """Free its memory and unload the kernel."""
        for free in (self._tokens.close, self._landing.close, self._unload):
            free()


def compile_kernel(capability: tuple[int, int]) -> bytes:
    """Machine code of the kernel for one GPU.

    Raises:
        PlatformError: If NVRTC is missing or does not know the GPU.
    """
    return compile_cubin("sm_{}{}".format(*capability), source=SOURCE)
