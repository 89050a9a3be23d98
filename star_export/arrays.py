"""Host arrays in a bundle's element type. numpy has no bfloat16: its bits travel as uint16."""

from typing import Any

import numpy as np
import numpy.typing as npt

from star_export.dtypes import DType

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
