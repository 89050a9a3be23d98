"""Weights of linear layers in 4 or 8 bits.

The graphs hold them as ``DequantizeLinear`` in front of the product: standard ONNX, of which ONNX Runtime
makes its own product of few bits when it loads, and TensorRT a weight-only quantised one.
"""

import onnx_ir as ir
import torch
from onnx_ir.passes import InPlacePass, PassResult, PreconditionError
from torch import Tensor

from star_export.dtypes import DTYPES
from star_export.specs import EMBEDDING, ExportSpec, QuantizedType

#: What is put behind a weight's name for its scales, and for its zero points.
SCALE, ZERO_POINT = "_scale", "_zero_point"

#: Bytes of memory for each weight while they are computed, the given float32 among them.
QUANTIZING_BYTES = 7

#: Weights that are quantised at once: what a processor's caches hold.
_AT_ONCE = 1 << 20


def quantize(weight: Tensor, kind: QuantizedType, block: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The nearest integers, block by block; beside the given weights, in little memory.

    Args:
        weight: ``[in, out]``.
        kind: ``int4``: ``w = q * scale``; ``uint4``: ``w = (q - zero_point) * scale``; 8 bits likewise.
        block: Inputs that share a scale.
        dtype: Element type of the scales.

    Returns:
        Integers int8, or uint8 where unsigned, ``[in, out]``, scales ``[in / block, out]`` and, where
        unsigned, zero points uint8 ``[in / block, out]``.
    """
    rows, columns = weight.shape
    integer = torch.uint8 if kind.startswith("u") else torch.int8
    integers = torch.empty(rows, columns, dtype=integer)
    scales = torch.empty(rows // block, columns, dtype=dtype)
    zeros = torch.empty_like(scales, dtype=integer)
    step = max(1, _AT_ONCE // rows)
    for begin in range(0, columns, step):
        part = slice(begin, begin + step)
        found, scales[:, part], zeros[:, part] = _quantize(weight[:, part], kind, block, dtype)
        integers[:, part] = found.flatten(0, 1)
    return (integers, scales, zeros) if kind.startswith("u") else (integers, scales)


def _quantize(
    weight: Tensor, kind: QuantizedType, block: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Some columns: integers ``[in / block, block, out]`` as float32, scales, zero points."""
    blocks = weight.float().reshape(-1, block, weight.shape[1])
    levels = 1 << int(kind[-1])
    low, high = blocks.amin(1).clamp(max=0), blocks.amax(1).clamp(min=0)
    if kind.startswith("u"):
        scale = _usable((high - low) / (levels - 1), dtype)
        zero = (-low / scale.float()).round().clamp(0, levels - 1)
        return (blocks / scale.float()[:, None] + zero[:, None]).round().clamp(0, levels - 1), scale, zero
    # The lowest integer has no counterpart: a block whose value farthest from zero is negative uses it.
    # Turning the others' signs would use it always, but TensorRT takes no negative scale.
    scale = _usable(torch.maximum(high / (levels // 2 - 1), -low / (levels // 2)), dtype)
    integers = (blocks / scale.float()[:, None]).round().clamp(-levels // 2, levels // 2 - 1)
    return integers, scale, torch.zeros_like(scale)


def dequantize(integers: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """float32 ``[in, out]`` of what :func:`quantize` gives."""
    blocks = integers.float().reshape(scale.shape[0], -1, scale.shape[1])
    if zero is not None:
        blocks = blocks - zero.float()[:, None]
    return (blocks * scale.float()[:, None]).flatten(0, 1)


def packed(integers: Tensor, kind: str) -> Tensor:
    """Integers as they are stored: of 4 bits two in a byte, the first in the lower half."""
    if not kind.endswith("4"):
        return integers.to(torch.int8 if kind == "int8" else torch.uint8)
    flat = integers.flatten().to(torch.uint8)
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[::2] & 0xF | flat[1::2] << 4


def _usable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they are stored; 1 where there is nothing to scale."""
    scale = scale.to(dtype)
    return torch.where(scale == 0, 1.0, scale).to(dtype)


class QuantizeWeights(InPlacePass):
    """Put ``DequantizeLinear`` between each quantised weight and its product, instead of a transposition.

    Needs weights without values, of which those to be quantised are used by one product alone, transposed.
    Leaves integers ``[in, out]`` in their place, and scales and zero points beside them.

    Args:
        spec: Which weights.
    """

    def __init__(self, spec: ExportSpec) -> None:
        self.spec = spec

    def call(self, model: ir.Model) -> PassResult:
        graph, done = model.graph, False
        for weight in list(graph.initializers.values()):
            if weight.name == f"{EMBEDDING}.weight" and weight.shape is not None:
                if kind := self.spec.quantized(str(weight.name), weight.shape.numpy()[1]):
                    self._embedding(graph, weight, kind)
                    done = True
                continue
            if weight.const_value is not None or weight.shape is None or not _is_multiplied(weight):
                continue
            if (kind := self.spec.quantized(str(weight.name), weight.shape.numpy()[-1])) is None:
                continue
            if len(weight.uses()) != 1:
                raise PreconditionError(f"{weight.name} is used by more than one product")
            self._quantize(graph, weight, kind)
            done = True
        return PassResult(model, modified=done)

    def _embedding(self, graph: ir.Graph, weight: ir.Value, kind: QuantizedType) -> None:
        """Multiply out what was gathered, not the table."""
        assert self.spec.quantization is not None
        assert weight.shape is not None
        block, ((gather, _),) = self.spec.quantization.block, weight.uses()
        rows, width = weight.shape.numpy()
        (embedded,), ids = gather.outputs, gather.inputs[1]
        scale = ir.Value(
            name=f"{weight.name}{SCALE}", shape=ir.Shape([rows, width // block]), type=weight.type
        )
        graph.initializers.add(scale)
        weight.type = ir.TensorType(ir.DataType[DTYPES[kind].onnx])
        origin = dict(gather.metadata_props)
        parts = [
            ir.Node("", "Gather", [table, ids], name=f"{gather.name}_{what}", metadata_props=dict(origin))
            for what, table in (("integers", weight), ("scales", scale))
        ]
        wide = ir.Node(
            "",
            "DequantizeLinear",
            [part.outputs[0] for part in parts],
            [ir.AttrInt64("axis", 2), ir.AttrInt64("block_size", block)],
            name=gather.name,
            metadata_props=origin,
        )
        graph.insert_before(gather, [*parts, wide])
        wide.outputs[0].shape, wide.outputs[0].type = embedded.shape, embedded.type
        ir.convenience.replace_all_uses_with(embedded, wide.outputs[0])
        graph.remove(gather, safe=True)

    def _quantize(self, graph: ir.Graph, weight: ir.Value, kind: QuantizedType) -> None:
        assert self.spec.quantization is not None
        block, ((transpose, _),) = self.spec.quantization.block, weight.uses()
        ((product, index),) = transpose.outputs[0].uses()
        assert weight.shape is not None
        columns, rows = weight.shape.numpy()
        integers = ir.TensorType(ir.DataType[DTYPES[kind].onnx])
        shape = ir.Shape([rows // block, columns])
        inputs = [weight, ir.Value(name=f"{weight.name}{SCALE}", shape=shape, type=weight.type)]
        if kind.startswith("u"):
            inputs.append(ir.Value(name=f"{weight.name}{ZERO_POINT}", shape=shape, type=integers))
        for value in inputs[1:]:
            graph.initializers.add(value)
        wide = ir.Value(name=f"{weight.name}_dequantized", shape=ir.Shape([rows, columns]), type=weight.type)
        node = ir.Node(
            "",
            "DequantizeLinear",
            inputs,
            [ir.AttrInt64("axis", 0), ir.AttrInt64("block_size", block)],
            outputs=[wide],
            name=f"{product.name}_weight",
            metadata_props=dict(product.metadata_props),
        )
        weight.type, weight.shape = integers, ir.Shape([rows, columns])
        graph.insert_before(product, node)
        product.replace_input_with(index, wide)
        graph.remove(transpose, safe=True)


def _is_multiplied(weight: ir.Value) -> bool:
    """Whether something is multiplied by it, transposed."""
    turned = [value for use in weight.uses() if use.node.op_type == "Transpose" for value in use.node.outputs]
    return any((use.node.op_type, use.idx) == ("MatMul", 1) for value in turned for use in value.uses())
