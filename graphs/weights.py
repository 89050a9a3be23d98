"""Weights, streamed from a checkpoint into the files that the graphs point into.

A weights file is an ordinary safetensors file. The graphs refer to its tensors
as ONNX external data (file, offset, length), so prefill and decode share one
copy on disk, and no tensor passes through memory with more than itself.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from star_export.checkpoint.checkpoint import Checkpoint
from star_export.dtypes import DTYPES, DType
from star_export.errors import CheckpointError, option
from star_export.graphs.layers import Linear
from star_export.graphs.quantize import QUANTIZING_BYTES, SCALE, ZERO_POINT, packed, quantize
from star_export.graphs.unpack import packed_layer
from star_export.specs import EMBEDDING, QUANTIZED_TYPES, ExportSpec, QuantizedType

_ALIGNMENT = 4096  # a page, so that runtimes can map the data


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter or table of a graph: its name and shape there, and the module it is of."""

    name: str
    shape: tuple[int, ...]
    owner: nn.Module


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a weights file.

    Attributes:
        name: In the file and among the graph's initializers.
        shape: In the graphs; in the file too, unless several elements share a byte.
        dtype: A key of :data:`star_export.dtypes.DTYPES`.
        load: Gives its values, in any element type; where several share a byte, those bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Size of its data in the file."""
        return DTYPES[self.dtype].nbytes(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Slice:
    """Where a tensor's bytes lie in a weights file."""

    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class WeightsFile:
    """A written weights file; ``sha256`` is of all its bytes, in hex."""

    path: Path
    slices: dict[str, Slice]
    sha256: str

    def external_tensor(self, name: str) -> ir.ExternalTensor:
        """Tensor ``name`` as ONNX external data beside the graph."""
        where = self.slices[name]
        return ir.ExternalTensor(
            self.path.name,
            where.offset,
            where.length,
            ir.DataType[DTYPES[where.dtype].onnx],
            shape=ir.Shape(where.shape),
            name=name,
            base_dir=self.path.parent,
        )


def torch_dtype(name: str) -> torch.dtype:
    """torch's own of an element type of :data:`star_export.dtypes.DTYPES`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def plan_weights(graph: nn.Module, checkpoint: Checkpoint, spec: ExportSpec) -> list[StoredTensor]:
    """What a weights file for ``graph`` holds; reads headers only.

    Args:
        graph: A graph module whose parameters carry checkpoint names.
        checkpoint: Where the values come from.
        spec: Element types, and the sizes of the computed rotary tables.

    Raises:
        CheckpointError: If a tensor is missing or has another shape.
    """
    stored: list[tuple[StoredTensor, ...]] = []
    for name, parameter in graph.state_dict().items():
        owner = graph.get_submodule(name.rpartition(".")[0])
        stored.append(store(Weight(name=name, shape=tuple(parameter.shape), owner=owner), checkpoint, spec))
    # Wide ones first: whatever the sizes, each tensor lies at a multiple of its element's size. Those of one
    # quantised weight stay together, and each has a multiple of 16 bytes but perhaps the last.
    stored.sort(key=lambda tensors: -max(DTYPES[tensor.dtype].itemsize for tensor in tensors))
    return [tensor for tensors in stored for tensor in tensors]


def store(weight: Weight, checkpoint: Checkpoint, spec: ExportSpec) -> tuple[StoredTensor, ...]:
    """The tensors that hold a weight in the file. Here, and only here, its storage is chosen.

    A storage that gives more than one (packed values, scales, zero points) takes a pass of the
    export that puts the graph's nodes on the stored names.

    Raises:
        CheckpointError: If the checkpoint lacks it or has it in another shape.
    """
    if weight.name.startswith("rotary."):
        return rotary(weight, spec)
    if isinstance(weight.owner, Linear) and weight.name.endswith(".weight"):
        return linear(weight, checkpoint, spec)
    if weight.name == f"{EMBEDDING}.weight" and (kind := spec.quantized(weight.name, weight.shape[1])):
        return embedding(weight, checkpoint, spec, kind)
    return plain(weight, checkpoint, spec.weight_dtype(weight.name))


def plain(weight: Weight, checkpoint: Checkpoint, dtype: DType) -> tuple[StoredTensor, ...]:
    """As the checkpoint has it."""
    load = _source(weight.name, weight.shape, checkpoint)
    return (StoredTensor(name=weight.name, shape=weight.shape, dtype=dtype, load=load),)


def linear(weight: Weight, checkpoint: Checkpoint, spec: ExportSpec) -> tuple[StoredTensor, ...]:
    """As the checkpoint has it, or integers ``[in, out]``: what the runtimes' products of few bits take."""
    dtype = spec.weight_dtype(weight.name)
    columns, rows = weight.shape
    layer = packed_layer(checkpoint, weight.name.removesuffix(".weight"), rows, columns)
    kind = spec.quantized(weight.name, rows)
    if kind is None or spec.quantization is None:
        if layer is None:
            return plain(weight, checkpoint, dtype)
        load = layer.values
        return (StoredTensor(name=weight.name, shape=weight.shape, dtype=dtype, load=lambda: load().T),)
    block, turned = spec.quantization.block, replace(weight, shape=(rows, columns))
    if layer is not None:
        return quantized(turned, kind, block, dtype, partial(layer.blocks, block))
    source, scales = _source(weight.name, weight.shape, checkpoint), torch_dtype(dtype)
    return quantized(turned, kind, block, dtype, lambda: quantize(source().T, kind, block, scales))


def embedding(
    weight: Weight, checkpoint: Checkpoint, spec: ExportSpec, kind: QuantizedType
) -> tuple[StoredTensor, ...]:
    """``[vocab, width]``, in blocks of each row."""
    assert spec.quantization is not None
    block, dtype = spec.quantization.block, spec.weight_dtype(weight.name)
    source, scales = _source(weight.name, weight.shape, checkpoint), torch_dtype(dtype)

    def make() -> tuple[Tensor, ...]:
        return tuple(part.T for part in quantize(source().T, kind, block, scales))

    return quantized(weight, kind, block, dtype, make, axis=1)


def quantized(
    weight: Weight,
    kind: QuantizedType,
    block: int,
    dtype: DType,
    make: Callable[[], tuple[Tensor, ...]],
    *,
    axis: int = 0,
) -> tuple[StoredTensor, ...]:
    """Scales, integers and, where these are unsigned, zero points: read in turn, and made once.

    Args:
        weight: ``[in, out]``, or an embedding.
        kind: Type of the integers.
        block: Inputs that share a scale.
        dtype: Element type of the scales.
        make: Gives integers, scales and zero points as :func:`star_export.graphs.quantize.quantize` does.
        axis: The one that is cut into blocks.
    """
    blocks = tuple(size // block if i == axis else size for i, size in enumerate(weight.shape))
    names = (f"{weight.name}{SCALE}", weight.name, f"{weight.name}{ZERO_POINT}")
    shapes = (blocks, weight.shape, blocks)
    computed: list[Tensor] = []

    def load(part: int, last: bool) -> Tensor:
        if not computed:
            integers, scale, *zero = make()
            computed.extend([scale, packed(integers, kind), *(packed(z, kind) for z in zero)])
        value = computed[part]
        if last:
            computed.clear()
        return value

    count = 3 if kind.startswith("u") else 2
    return tuple(
        StoredTensor(
            name=names[part], shape=shapes[part], dtype=kind if part else dtype,
            load=partial(load, part, part + 1 == count),
        )
        for part in range(count)
    )  # fmt: skip


def rotary(weight: Weight, spec: ExportSpec) -> tuple[StoredTensor, ...]:
    """cos or sin of every position's angles, computed, ``[positions, D/2]``."""

    def load() -> Tensor:
        inverse, scaling = _inverse_frequencies(spec)
        angles = torch.arange(weight.shape[0], dtype=torch.float32)[:, None] * inverse
        return (angles.cos() if weight.name == "rotary.cos" else angles.sin()) * scaling

    return (StoredTensor(name=weight.name, shape=weight.shape, dtype=spec.dtype, load=load),)


def _source(name: str, shape: tuple[int, ...], checkpoint: Checkpoint) -> Callable[[], Tensor]:
    """What reads a tensor of the checkpoint, which must have ``shape``."""
    if name == "lm_head.weight" and checkpoint.model.text.tie_word_embeddings:
        name = f"{EMBEDDING}.weight"
    if name not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.folder} has no tensor {name}; is the checkpoint complete?")
    path, _, found = checkpoint.tensors[name]
    if found != shape:
        raise CheckpointError(f"{name} in {path.name} is {list(found)}, the config asks for {list(shape)}")
    return partial(checkpoint.tensor, name)


def _inverse_frequencies(spec: ExportSpec) -> tuple[Tensor, float]:
    """RoPE frequencies ``[D/2]`` and the factor on cos and sin, by the config's rope type.

    Raises:
        CheckpointError: If the config's values give none.
    """
    rope = spec.model.text.rope_parameters
    try:
        inverse, scaling = _computed_frequencies(spec)
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise CheckpointError(f"rope_parameters {rope} give no frequencies: {error}") from error
    if not torch.isfinite(inverse * scaling).all():
        raise CheckpointError(f"rope_parameters {rope} give frequencies that are not finite")
    return inverse, scaling


def _computed_frequencies(spec: ExportSpec) -> tuple[Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    text = spec.model.text
    rope = text.rope_parameters
    if rope["rope_type"] == "default":
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


def weights_bytes(tensors: list[StoredTensor]) -> int:
    """Size of the tensors' data in a weights file."""
    return sum(tensor.nbytes for tensor in tensors)


def writing_bytes(tensors: list[StoredTensor]) -> int:
    """Memory that writing the largest of them takes, at most."""
    integers = {True: QUANTIZING_BYTES, False: DTYPES["float32"].itemsize}
    return max(
        integers[tensor.dtype in QUANTIZED_TYPES] * torch.Size(tensor.shape).numel() for tensor in tensors
    )


def write_weights(path: Path, tensors: list[StoredTensor], progress: Callable[[int], None]) -> WeightsFile:
    """Write a safetensors file, one tensor in memory at a time.

    Args:
        path: File to write.
        tensors: What it holds, in order.
        progress: Called with the number of bytes after each tensor.

    Raises:
        OSError: If the disk is full.
        CheckpointError: If a value does not fit into its element type.
    """
    layout, header = _layout(tensors)
    digest = hashlib.sha256(header)
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        file.write(header)
        hashed = pool.submit(lambda: None)
        for tensor in tensors:
            for block in _blocks(tensor):
                file.write(block)
                hashed.result()  # one block at a time waits in memory
                hashed = pool.submit(digest.update, block)
            progress(layout[tensor.name].length)
    return WeightsFile(path, layout, digest.hexdigest())


def _layout(tensors: list[StoredTensor]) -> tuple[dict[str, Slice], bytes]:
    """Byte ranges in the file, and the safetensors header padded to a whole page."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    slices: dict[str, Slice] = {}
    for tensor in tensors:
        slices[tensor.name] = Slice(begin, tensor.nbytes, tensor.shape, tensor.dtype)
        entries[tensor.name] = {
            "dtype": DTYPES[tensor.dtype].safetensors,
            "shape": list(tensor.shape) if DTYPES[tensor.dtype].packed == 1 else [tensor.nbytes],
            "data_offsets": [begin, begin + tensor.nbytes],
        }
        begin += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    start = len(text) + 8
    placed = {name: replace(s, offset=s.offset + start) for name, s in slices.items()}
    return placed, len(text).to_bytes(8, "little") + text


def _blocks(tensor: StoredTensor, rows: int = 1024) -> Iterator[memoryview]:
    """The tensor's bytes, converted ``rows`` rows at a time."""
    values = tensor.load()
    dtype = values.dtype if DTYPES[tensor.dtype].packed > 1 else torch_dtype(tensor.dtype)
    if values.ndim == 1:  # of which a row is an element
        rows = len(values)
    for begin in range(0, len(values), rows):
        block = values[begin : begin + rows].to(dtype).contiguous()
        if tensor.dtype != "float32" and not _finite(block):
            raise CheckpointError(
                f"{tensor.name} has values that {tensor.dtype} cannot hold; "
                f"give {option('fp32_layers', tensor.name.rpartition('.')[0])}, or another {option('dtype')}"
            )
        yield block.view(torch.uint8).numpy().data  # numpy has no bfloat16


def _finite(block: Tensor) -> bool:
    """Whether no value is NaN or infinite; ten times as quick as to ask that of every value."""
    return all(bool(torch.isfinite(end)) for end in block.aminmax())
