"""How the weights of linear layers are stored: in few bits, with a scale for each block of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from star_export.errors import SettingsError, option
from star_export.specs.values import Count

#: Integers of a weight. Signed ones have no zero point, unsigned ones one for each block.
QuantizedType = Literal["int4", "uint4", "int8", "uint8"]

QUANTIZED_TYPES: tuple[QuantizedType, ...] = get_args(QuantizedType)

#: Weights of one column that share a scale. The largest that divides every layer is taken: products of few
#: bits scale each block by itself, so that large ones are quicker.
BLOCKS = (32, 64, 128)

#: The module whose weight is a row for each token: of the blocks of a row, each has a scale.
EMBEDDING = "language_model.embed_tokens"

#: Types that others have and bundles have not, and why. TensorRT-RTX 1.7.1 was tried.
_REFUSED = {
    "fp8": "its engines would run on sm89 and newer alone; int8 takes as little room",
    "nvfp4": "its engines would run on sm120 and newer alone; int4 takes as little room",
}


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Which weights are stored in few bits, and how.

    Scores, norms, biases and convolutions are not, nor is a layer that no block divides
    (4304 inputs in SigLIP). The last layer before the logits has 8 bits: it decides between tokens, and
    nothing behind it makes up for an error.

    Attributes:
        type: The decoder's integers.
        block: Weights of one column that share a scale.
        vision: Whether the tower's and the projector's layers are stored in 8 bits.
        embedding: Whether the rows of tokens are stored in int8.
        layers: Those that the checkpoint has in few bits, which stay as they are, all of one type; None
            where weights are quantised on their way.
    """

    type: QuantizedType
    block: Count
    vision: bool = False
    embedding: bool = False
    layers: tuple[str, ...] | None = None

    def of(self, module: str, inputs: int) -> QuantizedType | None:
        """The integers of a weight, by its layer's name and inputs; None if it is stored whole.

        Of the embedding, inputs are the elements of a row.
        """
        if module == EMBEDDING:
            return "int8" if self.embedding and inputs % self.block == 0 else None
        if self.layers is not None:
            return self.type if module in self.layers else None
        if all(inputs % block for block in BLOCKS):
            return None
        wide: QuantizedType = "uint8" if self.type.startswith("u") else "int8"
        if module == "lm_head":
            return wide
        if module.startswith("language_model."):
            return self.type
        return wide if self.vision else None


def resolve_quantization(
    kind: str | None, *, block: int | None, vision: bool, embedding: bool, inputs: Mapping[str, int]
) -> Quantization | None:
    """Checked settings; None without any.

    Args:
        kind: The integers that are asked for.
        block: Weights of one column that share a scale; None for the largest block that divides every layer.
        vision: Whether the tower's are asked for too.
        embedding: Whether the rows of tokens are.
        inputs: How many inputs each linear layer has, by its name.

    Raises:
        SettingsError: If one is unknown, has no meaning without another, or does not divide a layer.
    """
    if kind is None:
        for name, given in (("quantize_vision", vision), ("quantize_embedding", embedding)):
            if given:
                raise SettingsError(f"{option(name, True)} needs {option('quantize', 'int4')}")
        return None
    if kind not in QUANTIZED_TYPES:
        why = f": {_REFUSED[kind]}" if kind in _REFUSED else ""
        raise SettingsError(f"{option('quantize')} must be {', '.join(QUANTIZED_TYPES)}, got {kind}{why}")
    if block not in (None, *BLOCKS):
        raise SettingsError(f"{option('quantize_block')} must be {', '.join(map(str, BLOCKS))}, got {block}")
    how = Quantization(type=kind, block=block or max(BLOCKS), vision=vision, embedding=embedding)
    held = {name: count for name, count in inputs.items() if how.of(name, count)}
    fitting = max(size for size in BLOCKS if not any(count % size for count in held.values()))
    for name, count in held.items():
        if block and count % block:
            raise SettingsError(
                f"{name} has {count} inputs, which blocks of {block} do not divide; "
                f"give {option('quantize_block', fitting)} or leave it out"
            )
    return how if block else replace(how, block=fitting)
