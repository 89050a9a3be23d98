"""Element types of tensors: one table for all that name them."""

from dataclasses import dataclass
from typing import Literal

#: What a bundle can be built in, and a checkpoint be stored in.
DType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ElementType:
    """What everyone calls one element type.

    Attributes:
        itemsize: Bytes of one element, or of several that share a byte.
        host: numpy's name of what holds it in host memory; for bfloat16, which numpy has not, its bits.
        safetensors: Its name in a safetensors header.
        onnx: Its name in ONNX's ``TensorProto.DataType``.
        tensorrt: Its name in TensorRT's ``DataType``; empty if it has none.
        packed: Elements that share a byte.
    """

    itemsize: int
    host: str
    safetensors: str
    onnx: str
    tensorrt: str
    packed: int = 1

    def nbytes(self, elements: int) -> int:
        """Bytes of so many elements."""
        return -(-elements // self.packed) * self.itemsize


def _row(
    itemsize: int, host: str, safetensors: str, onnx: str, tensorrt: str, packed: int = 1
) -> ElementType:
    return ElementType(
        itemsize=itemsize, host=host, safetensors=safetensors, onnx=onnx, tensorrt=tensorrt, packed=packed
    )


#: Every element type that a tensor of a graph or of a weights file may have, by torch's name.
DTYPES = {
    "float32": _row(4, "float32", "F32", "FLOAT", "FLOAT"),
    "float16": _row(2, "float16", "F16", "FLOAT16", "HALF"),
    "bfloat16": _row(2, "uint16", "BF16", "BFLOAT16", "BF16"),
    "int64": _row(8, "int64", "I64", "INT64", "INT64"),
    "int8": _row(1, "int8", "I8", "INT8", "INT8"),
    "uint8": _row(1, "uint8", "U8", "UINT8", "UINT8"),
    "int4": _row(1, "uint8", "U8", "INT4", "INT4", packed=2),
    "uint4": _row(1, "uint8", "U8", "UINT4", "", packed=2),
}
