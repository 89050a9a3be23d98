"""Damage to JSON values, to bytes and to texts, decided by one random generator."""

import json
import random
import string
from copy import deepcopy
from typing import Any

#: What stands where something else is expected.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 5, 64, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5,
    1e-320, 1e300, float("nan"), float("inf"), "", "64", "a", "\0", "\ud800", "é" * 3, "x" * 5000, "../x",
    "/etc/passwd", "..\\x", "C:\\x", [], {}, [[]], [None], [1, 2, 3], [1e308] * 3, {"": 1}, {"a": {"b": {}}},
    [0] * 1000,
)  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """One of :data:`ODD`, or nested lists that are too deep for any reader."""
    if rng.random() < 0.01:
        value: Any = 1
        for _ in range(rng.choice((10, 200, 900))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return deepcopy(rng.choice(ODD))  # which the next damage may change


def damaged_json(values: Any, rng: random.Random) -> bytes:
    """JSON of a copy of ``values`` in which one to three things are wrong."""
    values = json.loads(json.dumps(values))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        values = _damage(values, rng)
    return json.dumps(values).encode()


def _damage(values: Any, rng: random.Random) -> Any:
    if not values or not isinstance(values, dict | list) or rng.random() < 0.01:
        return odd_value(rng)
    parent, key = _place(values, rng)
    match rng.randrange(6):
        case 0 | 1:
            parent[key] = odd_value(rng)
        case 2:
            parent[key] = _near(parent[key], rng)
        case 3:
            del parent[key]
        case 4 if isinstance(parent, dict):
            parent[rng.choice(("", "colour", str(key) + "s", "\ud800"))] = odd_value(rng)
        case 5 if isinstance(parent, dict):
            parent[str(key).upper()] = parent.pop(key)
        case _:
            other, name = _place(values, rng)
            parent[key] = json.loads(json.dumps(other[name]))
    return values


def _place(values: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container below ``values`` and a key of it; every depth has its share, whatever its size."""
    keys = list(values) if isinstance(values, dict) else range(len(values))
    key = rng.choice(keys)
    inner = values[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
        return _place(inner, rng)
    return values, key


def _near(value: Any, rng: random.Random) -> Any:
    """Something like ``value``: the faults that look right."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        real = float(max(-(10**300), min(value, 10**300)))
        return rng.choice((value + 1, value - 1, -value, value * 10, value * 1000, str(value), real, [value]))
    if isinstance(value, str):
        return damaged_text(value, rng)
    if isinstance(value, list):
        return rng.choice((value[:-1], value + value[-1:], value[::-1], dict(enumerate(value))))
    return [value]


def damaged_text(text: str, rng: random.Random) -> str:
    """``text`` with something put in, taken out or turned round."""
    at = rng.randint(0, len(text))
    return rng.choice(
        (
            text[:at],
            text[:at] + random_text(rng) + text[at:],
            text[::-1],
            text.upper(),
            text * 3,
            text[:at] + text[at + 1 :],
        )
    )


def random_text(rng: random.Random) -> str:
    """A few characters of any kind, lone surrogates and controls among them."""
    ranges = [(0, 0x20), (0x20, 0x7F), (0x80, 0x3000), (0x1F300, 0x1FAFF), (0x300, 0x36F)]
    if rng.random() < 0.1:
        ranges.append((0xD800, 0xE000))
    letters = [chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 8))]
    return "".join(letters) if rng.random() < 0.7 else rng.choice(string.punctuation) * rng.randint(1, 9)


def flipped_bytes(data: bytes, rng: random.Random) -> bytes:
    """``data`` with other values at a few places: formats of nested lengths stay readable."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 2, 0x41, 0x7F, rng.randrange(256)))
    return bytes(changed)


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """``data`` with flipped, missing, repeated or foreign bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        at = rng.randint(0, max(0, len(changed) - 1))
        match rng.randrange(6):
            case 0 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if changed:
                changed[at] = rng.choice((0, 0x7F, 0x80, 0xFF))
            case 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                del changed[at : at + rng.randint(1, 16)]
            case 4:
                changed[at:at] = changed[at : at + rng.randint(1, 64)]
            case _ if rng.random() < 0.2:
                del changed[at:]
    return bytes(changed)
