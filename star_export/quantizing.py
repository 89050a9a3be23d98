"""Which weights of a bundle are in few bits: those that are asked for, or that the checkpoint has so."""

from dataclasses import replace

from star_export.checkpoint.checkpoint import Checkpoint
from star_export.errors import SettingsError, option
from star_export.specs import ExportSpec, Quantization, check_blocks, resolve_quantization


def quantization_of(
    checkpoint: Checkpoint,
    spec: ExportSpec,
    kind: str | None,
    *,
    block: int,
    vision: bool,
    embedding: bool,
) -> Quantization | None:
    """Checked settings for a checkpoint; None if all weights are whole.

    Args:
        checkpoint: Where weights come from.
        spec: The bundle, without them.
        kind: The integers that are asked for.
        block: Weights of one column that share a scale.
        vision: Whether the tower's are asked for too.
        embedding: Whether the rows of tokens are.

    Raises:
        SettingsError: If one is unknown, has no meaning without another, or the checkpoint is quantised.
        CheckpointError: If a quantised layer of it is not complete.
    """
    if checkpoint.scheme is not None:
        return _kept(checkpoint, spec, refused=bool(kind or vision), embedding=embedding)
    asked = resolve_quantization(kind, block=block, vision=vision, embedding=embedding)
    if asked:
        from star_export.graphs.export import linear_layers

        check_blocks(asked, {name: inputs for name, (inputs, _) in linear_layers(spec).items()})
    return asked


def _kept(checkpoint: Checkpoint, spec: ExportSpec, *, refused: bool, embedding: bool) -> Quantization | None:
    """The checkpoint's own, and the rows of tokens if they are asked for."""
    from star_export.graphs.export import linear_layers
    from star_export.graphs.unpack import kept_quantization

    assert checkpoint.scheme is not None
    if refused:
        raise SettingsError(
            f"{checkpoint.source} is quantised already ({checkpoint.scheme.method}, "
            f"{checkpoint.scheme.bits} bits) and stays so; leave out {option('quantize')} and "
            f"{option('quantize_vision')}, or give the original float weights"
        )
    kept = kept_quantization(checkpoint, linear_layers(spec))
    if embedding and kept is None:
        raise SettingsError(f"{option('quantize_embedding', True)} needs layers in few bits beside it")
    return replace(kept, embedding=embedding) if kept else None
