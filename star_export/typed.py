"""JSON from files, read into dataclasses: every value of its own type, nothing dropped in silence."""

import re
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_REASON = re.compile(r"(?P<reason>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<field>[^.\[]+)|\[(?P<item>[^\]]+)\]")


def parse(data: bytes) -> Any:
    """JSON values of a file's content.

    Raises:
        ValueError: If it is no JSON, which knows neither NaN nor infinity.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not JSON: {error}") from error


def convert(values: Any, kind: type[T]) -> T:
    """JSON values as a dataclass, whose annotations say what they may be.

    Nothing is coerced: ``"64"``, ``64.0`` and ``true`` are no integers.

    Raises:
        ValueError: With the path of the value, what was expected there and what was found.

    Example:
        >>> convert({"text": "red", "score": "1", "prefill_ms": 4.0}, Answer)
        ValueError: score: expected float, got str, found '1'
    """
    try:
        converted = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        match = _REASON.fullmatch(str(error))
        assert match is not None
        reason, path = match["reason"].replace("`", ""), match["path"] or ""
        shown = _found(values, path) if reason.startswith(("Expected", "Invalid")) else ""
        raise ValueError(f"{_named(path)}{reason[:1].lower()}{reason[1:]}{shown}") from error
    if unknown := _dropped(values, msgspec.to_builtins(converted)):
        raise ValueError(f"{_named(unknown)}unknown to this version")
    return converted


def _named(path: str) -> str:
    return f"{path.removeprefix('.')}: " if path else ""


def _found(values: Any, path: str) -> str:
    """The value at ``path`` in words; nothing when it is long, or inside a mapping, which has no path."""
    for step in _STEP.finditer(path):
        if step["item"] == "...":
            return ""
        values = values[step["field"] or int(step["item"])]
    found = repr(values)
    return "" if values is None or len(found) > 40 else f", found {found}"


def _dropped(values: Any, kept: Any, path: str = "") -> str | None:
    """Path of the first key in ``values`` that is not in ``kept``."""
    if isinstance(values, dict):
        pairs = [(f"{path}.{key}", value, key) for key, value in values.items()]
    elif isinstance(values, list | tuple):
        pairs = [(f"{path}[{index}]", value, index) for index, value in enumerate(values)]
    else:
        return None
    for name, value, key in pairs:
        if isinstance(kept, dict) and key not in kept:
            return name
        if (found := _dropped(value, kept[key], name)) is not None:
            return found
    return None
