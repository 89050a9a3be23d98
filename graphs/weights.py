"""Weights, streamed from a checkpoint into the files that the graphs point into.

A weights file is an ordinary safetensors file. The graphs refer to its tensors
as ONNX external data (file, offset, length), so prefill and decode share one
copy on disk, and no tensor passes through memory with more than itself.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from star_export.checkpoint.checkpoint import Checkpoint
from star_export.dtypes import DTYPE_BYTES, DType
from star_export.errors import CheckpointError, option
from star_export.graphs.layers import Linear
from star_export.specs import ExportSpec

_SAFETENSORS_DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_TORCH_DTYPE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_IR_DTYPE = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
_ALIGNMENT = 4096  # a page, so that runtimes can map the data


@dataclass(frozen=True)
class Weight:
    """One tensor of a weights file, its element type there, and how to get it."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Size of its data in the file."""
        return torch.Size(self.shape).numel() * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Slice:
    """Where a tensor's bytes lie in a weights file."""

    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: DType


@dataclass(frozen=True)
class WeightsFile:
    """A written weights file."""

    path: Path
    slices: dict[str, Slice]

    def external_tensor(self, name: str) -> ir.ExternalTensor:
        """Tensor ``name`` as ONNX external data beside the graph."""
        where = self.slices[name]
        return ir.ExternalTensor(
            self.path.name,
            where.offset,
            where.length,
            _IR_DTYPE[where.dtype],
            shape=ir.Shape(where.shape),
            name=name,
            base_dir=self.path.parent,
        )


def plan_weights(graph: nn.Module, checkpoint: Checkpoint, spec: ExportSpec) -> list[Weight]:
    """What a weights file for ``graph`` holds; reads headers only.

    Args:
        graph: A graph module whose parameters carry checkpoint names.
        checkpoint: Where the values come from.
        spec: Element types, and the sizes of the computed rotary tables.

    Raises:
        CheckpointError: If a tensor is missing or has another shape.
    """
    linear = {f"{name}.weight" for name, module in graph.named_modules() if isinstance(module, Linear)}
    weights = [
        _rotary(name, tuple(tensor.shape), spec)
        if name.startswith("rotary.")
        else _stored(
            name, tuple(tensor.shape), checkpoint, spec.weight_dtype(name), transposed=name in linear
        )
        for name, tensor in graph.state_dict().items()
    ]
    # Wide ones first: whatever the sizes, each tensor lies at a multiple of its element's size.
    return sorted(weights, key=lambda weight: -DTYPE_BYTES[weight.dtype])


def _stored(
    name: str, shape: tuple[int, ...], checkpoint: Checkpoint, dtype: DType, *, transposed: bool
) -> Weight:
    source = name
    if name == "lm_head.weight" and checkpoint.model.text.tie_word_embeddings:
        source = "language_model.embed_tokens.weight"
    if source not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.folder} has no tensor {source}; is the checkpoint complete?")
    path, _, found = checkpoint.tensors[source]
    expected = shape[::-1] if transposed else shape
    if found != expected:
        raise CheckpointError(
            f"{source} in {path.name} is {list(found)}, the config asks for {list(expected)}"
        )

    def load() -> Tensor:
        tensor = checkpoint.tensor(source)
        return tensor.T if transposed else tensor

    return Weight(name, shape, dtype, load)


def _rotary(name: str, shape: tuple[int, ...], spec: ExportSpec) -> Weight:
    def load() -> Tensor:
        inverse, scaling = _inverse_frequencies(spec)
        angles = torch.arange(shape[0], dtype=torch.float32)[:, None] * inverse
        return (angles.cos() if name == "rotary.cos" else angles.sin()) * scaling

    return Weight(name, shape, spec.dtype, load)


def _inverse_frequencies(spec: ExportSpec) -> tuple[Tensor, float]:
    """RoPE frequencies ``[D/2]`` and the factor on cos and sin, by the config's rope type."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    text = spec.model.text
    rope = text.rope_parameters
    if rope.get("rope_type", "default") == "default":
        exponents = torch.arange(0, text.head_dim, 2, dtype=torch.float32) / text.head_dim
        return 1.0 / (rope["rope_theta"] ** exponents), 1.0
    config = LlamaConfig(
        hidden_size=text.hidden_size,
        num_attention_heads=text.num_heads,
        head_dim=text.head_dim,
        max_position_embeddings=text.max_position_embeddings,
        rope_parameters=rope,
    )
    inverse, scaling = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, device="cpu")
    return inverse, float(scaling)


def weights_bytes(weights: list[Weight]) -> int:
    """Size of the tensors' data in a weights file."""
    return sum(weight.nbytes for weight in weights)


def write_weights(path: Path, weights: list[Weight], progress: Callable[[int], None]) -> WeightsFile:
    """Write a safetensors file, one tensor in memory at a time.

    Args:
        path: File to write.
        weights: Its tensors, in order.
        progress: Called with the number of bytes after each tensor.

    Raises:
        OSError: If the disk is full.
        CheckpointError: If a value does not fit into its element type.
    """
    layout, header = _layout(weights)
    with path.open("wb") as file:
        file.write(header)
        for weight in weights:
            for block in _blocks(weight):
                file.write(block)
            progress(layout[weight.name].length)
    return WeightsFile(path, layout)


def _layout(weights: list[Weight]) -> tuple[dict[str, Slice], bytes]:
    """Byte ranges in the file, and the safetensors header padded to a whole page."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    slices: dict[str, Slice] = {}
    for weight in weights:
        slices[weight.name] = Slice(begin, weight.nbytes, weight.shape, weight.dtype)
        entries[weight.name] = {
            "dtype": _SAFETENSORS_DTYPE[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [begin, begin + weight.nbytes],
        }
        begin += weight.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    start = len(text) + 8
    placed = {name: replace(s, offset=s.offset + start) for name, s in slices.items()}
    return placed, len(text).to_bytes(8, "little") + text


def _blocks(weight: Weight, rows: int = 1024) -> Iterator[bytes]:
    """The tensor's bytes, converted ``rows`` rows at a time."""
    tensor = weight.load()
    for begin in range(0, len(tensor), rows):
        block = tensor[begin : begin + rows].to(_TORCH_DTYPE[weight.dtype]).contiguous()
        if weight.dtype != "float32" and not torch.isfinite(block).all():
            raise CheckpointError(
                f"{weight.name} has values that {weight.dtype} cannot hold; "
                f"give {option('fp32_layers', weight.name.rpartition('.')[0])}, or another {option('dtype')}"
            )
        yield block.view(torch.uint8).numpy().tobytes()  # numpy has no bfloat16
