"""Tensors on their way between host and GPU, in order with the work of a stream."""

import math

import numpy as np

from star_export.arrays import to_float32
from star_export.dtypes import DTYPES
from star_export.engines.session import HostArray
from star_export.engines.tensorrt import cuda
from star_export.engines.tensorrt.facts import Shape

#: Pinned memory through which tensors travel, in pieces when they are larger.
LANDING_BYTES = 4 << 20


class Transfers:
    """Copies that wait for the stream.

    Args:
        stream: What they are put on.
    """

    def __init__(self, stream: cuda.Stream) -> None:
        self._stream, self._landing = stream, cuda.PinnedBuffer(LANDING_BYTES)
        self.close = self._landing.close

    def fetch(self, address: int, dtype: str, shape: Shape) -> HostArray:
        """Copy a tensor to host memory. bfloat16 becomes float32."""
        raw = np.empty(tensor_bytes(dtype, shape), np.uint8)
        for start in range(0, raw.size, self._landing.size):
            size = min(self._landing.size, raw.size - start)
            self._stream.download(self._landing.pointer, address + start, size)
            self._stream.synchronize()
            raw[start : start + size] = self._landing.array[:size]
        host = raw.view(DTYPES[dtype].host).reshape(shape)
        return to_float32(host, dtype) if dtype == "bfloat16" else host

    def store(self, address: int, values: HostArray) -> None:
        """Copy a tensor, of the element type that it has there, from host memory."""
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        for start in range(0, raw.size, self._landing.size):
            size = min(self._landing.size, raw.size - start)
            self._landing.array[:size] = raw[start : start + size]
            self._stream.upload(address + start, self._landing.pointer, size)
            self._stream.synchronize()


def tensor_bytes(dtype: str, shape: Shape) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * DTYPES[dtype].itemsize
