"""Element types of tensors, one table for all that name them, and host arrays in them."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

#: What a bundle can be built in, and a checkpoint be stored in.
DType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ElementType:
    """What everyone calls one element type.

    Attributes:
        host: What holds it in host memory. numpy has no bfloat16: its bits travel as uint16.
        safetensors: Its name in a safetensors header.
        onnx: Its name in ONNX's ``TensorProto.DataType``.
        tensorrt: Its name in TensorRT's ``DataType``.
    """

    host: np.dtype[Any]
    safetensors: str
    onnx: str
    tensorrt: str

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.host.itemsize


def _row(host: npt.DTypeLike, safetensors: str, onnx: str, tensorrt: str) -> ElementType:
    return ElementType(host=np.dtype(host), safetensors=safetensors, onnx=onnx, tensorrt=tensorrt)


#: Every element type that a tensor of a graph or of a weights file may have, by torch's name.
DTYPES = {
    "float32": _row(np.float32, "F32", "FLOAT", "FLOAT"),
    "float16": _row(np.float16, "F16", "FLOAT16", "HALF"),
    "bfloat16": _row(np.uint16, "BF16", "BFLOAT16", "BF16"),
    "int64": _row(np.int64, "I64", "INT64", "INT64"),
    "uint8": _row(np.uint8, "U8", "UINT8", "UINT8"),
}

Float32 = npt.NDArray[np.float32]


def to_device_dtype(array: Float32, dtype: DType) -> npt.NDArray[Any]:
    """Round float32 values to a bundle's element type, ties to even.

    Args:
        array: Values of any shape.
        dtype: Element type of a graph's input.

    Returns:
        An array of ``dtype``; for bfloat16, uint16 of the same shape with its bits.
    """
    if dtype != "bfloat16":
        return array.astype(dtype, copy=False)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    quiet = bits >> 16 | 0x40  # rounding would carry some NaNs into infinity
    return np.where(np.isnan(array), quiet, rounded).astype(np.uint16)


def to_float32(array: npt.NDArray[Any], dtype: str) -> Float32:
    """The inverse of :func:`to_device_dtype`, exact.

    Args:
        array: Values of ``dtype``; for bfloat16, uint16 with its bits.
        dtype: Its element type in the contract.
    """
    if dtype != "bfloat16":
        return array.astype(np.float32, copy=False)
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
