"""How a quantised checkpoint packs its linear layers: AWQ's, GPTQ's and compressed-tensors' formats.

The config says how values are packed. Which layers are, the tensors' names say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from star_export.checkpoint.folder import read_config, read_json
from star_export.checkpoint.supported import require_supported
from star_export.errors import CheckpointError
from star_export.specs import QuantizedType

Packing = Literal["awq", "gptq", "pack-quantized", "int-quantized"]

#: What follows a layer's name in those of the tensors that it is packed in. None of compressed-tensors'
#: says anything that the config does not, but for the values.
PARTS: dict[Packing, tuple[str, ...]] = {
    "awq": ("qweight", "qzeros", "scales"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "pack-quantized": (
        "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape",
        "input_scale", "input_zero_point",
    ),
    "int-quantized": ("weight", "weight_scale", "weight_zero_point", "input_scale", "input_zero_point"),
}  # fmt: skip

#: What a folder holds where the config is silent, as older versions of the two libraries saved it.
_BESIDE_CONFIG = {"quantize_config.json": "gptq", "quant_config.json": "awq"}

#: What is added to GPTQ's stored zero points, by its ``checkpoint_format``.
_GPTQ_OFFSETS = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a checkpoint's linear layers are packed.

    Attributes:
        method: Hugging Face's ``quant_method``.
        packing: Which tensors hold a layer, and the order of its values in them.
        bits: Of one integer.
        group: Inputs that share a scale; None for all of a layer.
        symmetric: Whether there are no zero points, so that integers are signed.
        zero_offset: What is added to a stored zero point.
        reordered: Whether each layer says which inputs share a scale; else neighbours do.
    """

    method: str
    packing: Packing
    bits: int
    group: int | None
    symmetric: bool
    zero_offset: int = 0
    reordered: bool = False

    @property
    def type(self) -> QuantizedType:
        """The integers that hold its values."""
        if self.bits == 4:
            return "int4" if self.symmetric else "uint4"
        return "int8" if self.symmetric else "uint8"

    def is_part(self, leaf: str, dtype: str) -> bool:
        """Whether a tensor is a part of a packed layer.

        Args:
            leaf: The last part of its name.
            dtype: Its element type, as safetensors calls it.
        """
        return leaf in PARTS[self.packing] and (leaf != "weight" or dtype == "I8")

    def shapes(self, inputs: int, outputs: int) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The shapes that each part of a layer may have; of parts that it may lack too."""
        groups = -(-inputs // (self.group or inputs))

        def words(count: int) -> int:
            return -(-count * self.bits // 32)

        if self.packing in ("awq", "gptq"):
            packed = (inputs, words(outputs)) if self.packing == "awq" else (words(inputs), outputs)
            zeros, scales = ((groups, words(outputs)),), ((groups, outputs),)
            return {"qweight": (packed,), "qzeros": zeros, "scales": scales, "g_idx": ((inputs,),)}
        return {
            "weight_packed": ((outputs, words(inputs)),),
            "weight": ((outputs, inputs),),
            "weight_scale": ((outputs, groups),),
            # Older versions do not pack them.
            "weight_zero_point": ((words(outputs), groups), (outputs, groups)),
            "weight_g_idx": ((inputs,),),
        }

    def required(self) -> tuple[str, ...]:
        """The parts that every packed layer has."""
        order = tuple(part for part in PARTS[self.packing] if part.endswith("g_idx") and self.reordered)
        if self.packing in ("awq", "gptq"):
            return (*PARTS["awq"], *order)
        return (*PARTS[self.packing][: 2 if self.symmetric else 3], *order)


def read_scheme(folder: Path) -> Scheme | None:
    """How the checkpoint in a folder is quantised; None if it is not.

    Raises:
        CheckpointError: If it is in a way that is not read.
    """
    found = _quantization_config(folder)
    if found is None:
        return None
    method = found.get("quant_method")
    if method is None and any(str(key).startswith("load_in_") for key in found):
        method = "bitsandbytes"
    require_supported("quantization", method, _METHODS)
    try:
        return _METHODS[str(method)](found)
    except (AttributeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} has no readable quantization_config: {error!r}") from error


def _quantization_config(folder: Path) -> dict[str, Any] | None:
    config = read_config(folder)
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        found = place.get("quantization_config") or place.get("compression_config")
        if isinstance(found, dict):
            return found
        if found is not None:
            raise CheckpointError(f"{folder} has no readable quantization_config: found {found!r}")
    for name, method in _BESIDE_CONFIG.items():
        if (folder / name).is_file():
            return {"quant_method": method, **read_json(folder / name)}
    return None


def _awq(found: dict[str, Any]) -> Scheme:
    version = found.get("version") or found.get("checkpoint_format") or "gemm"
    require_supported("AWQ version", str(version).lower(), ("gemm",))
    bits, group = _sizes(
        "AWQ", {"bits": found.get("w_bit"), "group_size": found.get("q_group_size"), **found}, (4,)
    )
    return Scheme(method="awq", packing="awq", bits=bits, group=group, symmetric=False)


def _gptq(found: dict[str, Any]) -> Scheme:
    form = "marlin" if found.get("is_marlin_format") else found.get("checkpoint_format", "gptq")
    require_supported("GPTQ checkpoint_format", form, _GPTQ_OFFSETS)
    bits, group = _sizes("GPTQ", found, (4, 8))
    return Scheme(
        method="gptq", packing="gptq", bits=bits, group=group, symmetric=bool(found.get("sym", True)),
        zero_offset=_GPTQ_OFFSETS[form], reordered=bool(found.get("desc_act")),
    )  # fmt: skip


def _compressed(found: dict[str, Any]) -> Scheme:
    groups = [group for group in found["config_groups"].values() if group.get("weights")]
    kinds = {
        tuple(
            group["weights"].get(key) for key in ("num_bits", "type", "symmetric", "strategy", "group_size")
        )
        for group in groups
    }
    if len(kinds) != 1:
        raise CheckpointError(
            f"its config_groups have {len(kinds)} kinds of weights, of which one is read; "
            "give the original float weights"
        )
    form: Packing = groups[0].get("format") or found["format"]
    require_supported("compressed-tensors format", form, ("pack-quantized", "int-quantized"))
    weights = groups[0]["weights"]
    require_supported("compressed-tensors type", weights.get("type", "int"), ("int",))
    require_supported("compressed-tensors strategy", weights.get("strategy"), ("group", "channel"))
    bits, group = _sizes("compressed-tensors", weights, (4, 8), "num_bits", "group_size")
    symmetric = bool(weights.get("symmetric", True))
    return Scheme(
        method="compressed-tensors", packing=form, bits=bits, symmetric=symmetric,
        group=group if weights["strategy"] == "group" else None, reordered=weights.get("actorder") == "group",
    )  # fmt: skip


def _sizes(
    what: str,
    found: dict[str, Any],
    supported: tuple[int, ...],
    bits: str = "bits",
    group: str = "group_size",
) -> tuple[int, int | None]:
    """Bits, and the group's size unless all inputs are one."""
    require_supported(f"{what} {bits}", found.get(bits), supported)
    size = found.get(group) or -1
    if not isinstance(size, int) or size < -1:
        raise CheckpointError(f"{what} {group} must be -1 or at least 1, found {size!r}")
    return int(found[bits]), None if size == -1 else size


_METHODS: dict[str, Callable[[dict[str, Any]], Scheme]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed,
}
