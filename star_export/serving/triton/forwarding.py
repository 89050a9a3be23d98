"""Errors in the text of Triton's, for who passes requests on.

A code tells less, and Triton 2.51 loses it between two models.
"""

import json
from concurrent.futures import CancelledError

from star_export import errors
from star_export.errors import StarExportError, marked
from star_export.typed import convert, parse

#: Those that mean more than that a library failed.
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (CancelledError, *vars(errors).values())
    if isinstance(kind, type) and issubclass(kind, (CancelledError, StarExportError))
}


def packed(error: Exception) -> str:
    """An error as one text: its class and its words, with the options in them marked."""
    return json.dumps([type(error).__name__, marked(error) or repr(error)])


def unpacked(text: str) -> Exception | None:
    """The error that was packed, one of no library's if it was none of ours; None for Triton's own words."""
    try:
        name, words = convert(parse(text.encode()), tuple[str, str])
    except ValueError:
        return None
    return _KINDS.get(name, RuntimeError)(words)
