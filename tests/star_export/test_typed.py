"""JSON becomes dataclasses without coercion, and errors name the place."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from star_export.typed import convert, parse


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: Annotated[int, Meta(ge=1)]
    pair: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    ratio: float = 0.5
    kind: Literal["a", "b"] = "a"
    rows: tuple[Inner, ...] = ()
    named: dict[str, int] | None = None
    free: Any = None


def test_values_keep_their_types() -> None:
    values = {
        "inner": {"size": 2, "pair": [3, 4]},
        "ratio": 1,
        "rows": [{"size": 1}],
        "free": {"any": [{"thing": None}]},
    }
    assert convert(values, Outer) == Outer(
        inner=Inner(size=2, pair=(3, 4)), ratio=1.0, rows=(Inner(size=1),), free={"any": [{"thing": None}]}
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "expected object, got array, found []"),
        ({}, "object missing required field inner"),
        ({"inner": {"size": "2"}}, "inner.size: expected int, got str, found '2'"),
        ({"inner": {"size": True}}, "inner.size: expected int, got bool, found True"),
        ({"inner": {"size": 2.0}}, "inner.size: expected int, got float, found 2.0"),
        ({"inner": {"size": None}}, "inner.size: expected int, got null"),
        ({"inner": {"size": 0}}, "inner.size: expected int >= 1, found 0"),
        ({"inner": {"size": "x" * 38}}, f"inner.size: expected int, got str, found '{'x' * 38}'"),
        ({"inner": {"size": "x" * 39}}, "inner.size: expected int, got str"),
        ({"inner": {"size": 1, "pair": [1, "2"]}}, "inner.pair[1]: expected int, got str, found '2'"),
        ({"inner": {"size": 1}, "rows": [{"size": 1}, 5]}, "rows[1]: expected object, got int, found 5"),
        ({"inner": {"size": 1}, "named": {"a": "1"}}, "named[...]: expected int, got str"),
        ({"inner": {"size": 1}, "kind": "c"}, "kind: invalid enum value 'c', found 'c'"),
        ({"inner": {"size": 1}, "ratio": 10**400}, "ratio: number out of range"),
        ({"inner": {"size": 1}, "colour": 1}, "colour: unknown to this version"),
        ({"inner": {"size": 1, "colour": None}}, "inner.colour: unknown to this version"),
        (
            {"inner": {"size": 1}, "rows": [{"size": 1}, {"size": 1, "a": 0}]},
            "rows[1].a: unknown to this version",
        ),
    ],
)
def test_wrong_values_are_named(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        convert(values, Outer)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1} 2',
        b'"\xff"',
        b'"\\ud800"',
        b"[" * 100_000,
        b"9" * 5000,
    ],
)
def test_what_is_not_json(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is not JSON: "):
        parse(data)


def test_json() -> None:
    assert parse(b'{"a": [1, 2.5, null, true, "\\u00e9"]}') == {"a": [1, 2.5, None, True, "é"]}
