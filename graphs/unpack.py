"""Linear layers that a checkpoint has in few bits: integers as the graphs hold them, or values."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from star_export.checkpoint.checkpoint import Checkpoint
from star_export.checkpoint.scheme import Scheme
from star_export.checkpoint.tensors import StoredTensor, read_tensor
from star_export.errors import CheckpointError
from star_export.specs import BLOCKS, Quantization

log = logging.getLogger("star_export.graphs.unpack")

#: Where in a word of 8 AWQ has each of 8 columns.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, kw_only=True)
class PackedLayer:
    """A linear layer of a checkpoint in few bits, with all its tensors in their shapes."""

    name: str
    scheme: Scheme
    parts: Mapping[str, StoredTensor]
    inputs: int
    outputs: int

    def groups(self) -> Tensor:
        """The group of each input, int64 ``[in]``."""
        neighbours = torch.arange(self.inputs) // (self.scheme.group or self.inputs)
        for part in ("g_idx", "weight_g_idx"):
            if part in self.parts:
                given = read_tensor(self.parts[part]).long()
                if not (given.min() >= 0 and given.max() <= neighbours[-1]):
                    if (given == -1).all():  # compressed-tensors' word for neighbours
                        break
                    raise CheckpointError(f"{self.name}.{part} names groups that {self.name} does not have")
                return given
        return neighbours

    def block(self) -> int | None:
        """The largest block that neither the groups' borders nor their order cuts; None without one."""
        group = self.scheme.group or self.inputs
        if not torch.equal(self.groups(), torch.arange(self.inputs) // group):
            return None
        fitting = [b for b in BLOCKS if self.inputs % b == 0 and (group >= self.inputs or group % b == 0)]
        return max(fitting, default=None)

    def unpack(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Integers int16 ``[in, out]``, and of each group scales and, if unsigned, zero points int16.

        Both are ``[groups, out]``.
        """
        transposed = self.scheme.packing in ("pack-quantized", "int-quantized")
        integers, scales, zeros = (_compressed if transposed else _gptq)(self)
        middle = 1 << (self.scheme.bits - 1)
        if self.scheme.symmetric:
            if zeros is not None and (zeros != middle).any():
                raise CheckpointError(
                    f"{self.name} has other zero points than {middle}, though the config says symmetric"
                )
            return integers - middle, scales, None
        return integers, scales, zeros

    def blocks(self, block: int) -> tuple[Tensor, ...]:
        """The same with a scale, and a zero point, for each ``block`` of inputs: ``[in / block, out]``."""
        integers, scales, zeros = self.unpack()
        rows = torch.arange(0, self.inputs, block) // (self.scheme.group or self.inputs)
        return (integers, scales[rows], *([] if zeros is None else [zeros[rows]]))

    def values(self) -> Tensor:
        """float32 ``[in, out]``."""
        integers, scales, zeros = self.unpack()
        groups = self.groups()
        if zeros is not None:
            integers -= zeros[groups]
        return integers.float() * scales.float()[groups]


def packed_layer(checkpoint: Checkpoint, name: str, inputs: int, outputs: int) -> PackedLayer | None:
    """A layer by its name, its headers checked; None if the checkpoint has it whole.

    Raises:
        CheckpointError: If a part is missing or of another shape.
    """
    scheme, parts = checkpoint.scheme, checkpoint.packed.get(name)
    if scheme is None or parts is None:
        return None
    for part in scheme.required():
        if part not in parts:
            raise CheckpointError(
                f"{checkpoint.folder} has no tensor {name}.{part}; is the checkpoint complete?"
            )
    for part, shapes in scheme.shapes(inputs, outputs).items():
        if part in parts and parts[part].shape not in shapes:
            raise CheckpointError(
                f"{name}.{part} in {parts[part].path.name} is {list(parts[part].shape)}, "
                f"the config asks for {list(shapes[0])}"
            )
    return PackedLayer(name=name, scheme=scheme, parts=parts, inputs=inputs, outputs=outputs)


def kept_quantization(checkpoint: Checkpoint, linears: Mapping[str, tuple[int, int]]) -> Quantization | None:
    """What stays in a checkpoint's own bits; the log names what cannot.

    Args:
        checkpoint: Any.
        linears: Inputs and outputs of every linear layer of the graphs, by its name.

    Raises:
        CheckpointError: If a part of a layer is missing or of another shape.
    """
    found = [packed_layer(checkpoint, name, *size) for name, size in linears.items()]
    blocks = {layer.name: layer.block() for layer in found if layer is not None}
    held = {name: block for name, block in blocks.items() if block}
    if others := sorted(blocks.keys() - held.keys()):
        log.warning(
            "%s and %d more layers are stored in the bundle's element type, not in the checkpoint's bits: "
            "their inputs have no scales in blocks of %s",
            others[0],
            len(others) - 1,
            ", ".join(map(str, BLOCKS)),
        )
    if checkpoint.scheme is None or not held:
        return None
    return Quantization(
        type=checkpoint.scheme.type,
        block=min(held.values()),
        vision=any(not name.startswith(("language_model.", "lm_head")) for name in held),
        layers=tuple(held),
    )


def _gptq(layer: PackedLayer) -> tuple[Tensor, Tensor, Tensor]:
    """AWQ's and GPTQ's: unsigned integers, scales and zero points."""
    bits = layer.scheme.bits
    words, zeros, scales = (read_tensor(layer.parts[part]) for part in ("qweight", "qzeros", "scales"))
    zeros = _fields(zeros, bits)
    if layer.scheme.packing == "gptq":
        integers = _fields(words.T, bits).T[: layer.inputs]
    else:
        integers, zeros = (
            each.reshape(len(each), -1, 8)[..., _AWQ_PLACES].flatten(1)
            for each in (_fields(words, bits), zeros)
        )
    zeros = (zeros[:, : layer.outputs] + layer.scheme.zero_offset) & ((1 << bits) - 1)
    return integers[:, : layer.outputs], scales, zeros


def _compressed(layer: PackedLayer) -> tuple[Tensor, Tensor, Tensor | None]:
    """compressed-tensors': likewise, of what lies the other way."""
    bits, parts, middle = layer.scheme.bits, layer.parts, 1 << (layer.scheme.bits - 1)
    if layer.scheme.packing == "pack-quantized":
        integers = _fields(read_tensor(parts["weight_packed"]), bits)[:, : layer.inputs]
    else:
        integers = read_tensor(parts["weight"]).short() + middle
    zeros = None
    if not layer.scheme.symmetric:
        zeros = read_tensor(parts["weight_zero_point"])
        if zeros.dtype == torch.int32:
            zeros = _fields(zeros.T, bits)[:, : layer.outputs]
        else:
            zeros = zeros.T.short() + middle
    return integers.T, read_tensor(parts["weight_scale"]).T, zeros


def _fields(words: Tensor, bits: int) -> Tensor:
    """The unsigned integers in each row of int32 ``[rows, words]``, the lowest first; int16."""
    # A row of one word counts as contiguous whatever its stride, and such a one has no view as bytes.
    octets = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    if bits == 4:
        octets = torch.stack((octets & 0xF, octets >> 4), -1).flatten(-2)
    return octets.short()
