"""Refusals of what a config asks for and this package does not have."""

from collections.abc import Iterable

from star_export.errors import CheckpointError

#: Hugging Face's names of the activations in `star_export.graphs.layers`.
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu")


def require_supported(what: str, found: object, supported: Iterable[object]) -> None:
    """Refuse a value that is not in ``supported``.

    Raises:
        CheckpointError: With what was found and all that is supported.
    """
    supported = tuple(supported)
    if found not in supported:
        names = ", ".join(map(str, supported))
        raise CheckpointError(f"{what} {found!r} is not supported; supported: {names}")
