"""Which weights of a bundle are in few bits: those that are asked for, or that the checkpoint has so."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from star_export.checkpoint.checkpoint import Checkpoint
from star_export.errors import SettingsError, option
from star_export.parameters import linear_shapes
from star_export.specs import BLOCKS, ModelSpec, Quantization, resolve_quantization

log = logging.getLogger("star_export.quantizing")


def quantization_of(
    model: ModelSpec,
    checkpoint: Checkpoint | None,
    kind: str | None,
    *,
    block: int | None,
    vision: bool,
    embedding: bool,
) -> Quantization | None:
    """Checked settings for a model; None if all weights are whole.

    Args:
        model: Its shape.
        checkpoint: Where weights come from, which may be quantised; None for a shape alone.
        kind: The integers that are asked for.
        block: Weights of one column that share a scale; None for the largest block that fits.
        vision: Whether the tower's are asked for too.
        embedding: Whether the rows of tokens are.

    Raises:
        SettingsError: If one is unknown, has no meaning without another, or the checkpoint is quantised.
        CheckpointError: If a quantised layer of it is not complete.
    """
    if checkpoint is not None and checkpoint.scheme is not None:
        return _kept(checkpoint, refused=bool(kind or vision), embedding=embedding)
    inputs = {layer.name: layer.inputs for layer in linear_shapes(model)}
    return resolve_quantization(kind, block=block, vision=vision, embedding=embedding, inputs=inputs)


def _kept(checkpoint: Checkpoint, *, refused: bool, embedding: bool) -> Quantization | None:
    """The checkpoint's own, and the rows of tokens if they are asked for."""
    from star_export.graphs.unpack import kept_quantization

    assert checkpoint.scheme is not None
    if refused:
        raise SettingsError(
            f"{checkpoint.source} is quantised already ({checkpoint.scheme.method}, "
            f"{checkpoint.scheme.bits} bits) and stays so; leave out {option('quantize')} and "
            f"{option('quantize_vision')}, or give the original float weights"
        )
    shapes = linear_shapes(checkpoint.model)
    linears = {name: (layer.inputs, layer.outputs) for layer in shapes for name in layer.names}
    kept = kept_quantization(checkpoint, linears) if checkpoint.tensors else _told(checkpoint, linears)
    if embedding and kept is None:
        raise SettingsError(f"{option('quantize_embedding', True)} needs layers in few bits beside it")
    return replace(kept, embedding=embedding) if kept else None


def _told(checkpoint: Checkpoint, linears: Mapping[str, tuple[int, int]]) -> Quantization | None:
    """What a config alone lets expect: the decoder's layers without the head, as quantisers do by default."""
    scheme = checkpoint.scheme
    assert scheme is not None
    log.warning(
        "%s has no weights here to say which of its layers are in %s (%s); its decoder's are taken to be",
        checkpoint.source,
        scheme.type,
        scheme.method,
    )
    inputs = {name: size for name, (size, _) in linears.items() if name.startswith("language_model.")}
    sizes = {*inputs.values(), scheme.group or 0}
    fitting = [block for block in BLOCKS if not any(size % block for size in sizes)]
    return Quantization(type=scheme.type, block=max(fitting), layers=tuple(inputs)) if fitting else None
