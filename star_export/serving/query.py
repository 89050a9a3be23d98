"""What a client asks, in plain values."""

import base64
import binascii
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from star_export.errors import InputError
from star_export.specs import Keep
from star_export.typed import convert


@dataclass(frozen=True, kw_only=True)
class Query:
    """A request as it was sent, of the right types, before a bundle was asked whether it can answer it.

    Attributes:
        image: An encoded picture, or its base64 or a data URL as ASCII; or several.
        prompt: The question, a whole prompt that contains ``<image>``, or a conversation: messages that end
            with the question.
        keep: Visual tokens of all pictures after the last stage, or a budget for each stage; the bundle's own
            by default.
        max_new_tokens: Tokens to generate at most; what the caches hold by default.
        temperature: 0 is greedy.
        top_p: Sample from the smallest set of tokens that has this probability.
        seed: Makes sampling repeatable.
        stop: Strings that end the answer and are no part of it.
        reprune: Let the last question of a conversation choose which visual tokens stay. Else the question
            that brought the last picture does, and what was kept of an earlier answer is gone on from.
        schema: A JSON schema, as JSON or as values of it, that the answer follows.
        top_logprobs: How many of the most likely tokens to tell at every step, with the logprob of the
            chosen one; None for neither.
        timeout_s: Seconds that it may take; at most what the service allows, which is the default.
    """

    image: bytes | tuple[bytes, ...]
    prompt: str | tuple[dict[str, Any], ...]
    keep: Keep | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    reprune: bool = True
    schema: str | dict[str, Any] | None = None
    top_logprobs: int | None = None
    timeout_s: float | None = None

    @property
    def images(self) -> tuple[bytes, ...]:
        """The pictures, in the order of their places in the prompt."""
        return self.image if isinstance(self.image, tuple) else (self.image,)

    def timeout(self, most: float) -> float:
        """Seconds that it may take, at most this many.

        Raises:
            InputError: If it asks for none.
        """
        if self.timeout_s is None:
            return most
        if not self.timeout_s > 0:  # NaN too
            raise InputError(f"timeout_s must be above 0, got {self.timeout_s:g}")
        return min(self.timeout_s, most)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Query":
        """From values by name.

        Raises:
            InputError: If one is unknown, missing or of another type.
        """
        check_names(values, [field.name for field in fields(cls)])
        for field in fields(cls):
            if field.default is MISSING and field.name not in values:
                raise InputError(f"{field.name} is missing; every request needs it")
        try:
            return convert(dict(values), cls)
        except ValueError as error:
            raise InputError(str(error)) from error


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse fields that nobody would read.

    Raises:
        InputError: With the field and what it may have been meant to be.
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"unknown field {name}; {meant}")


def image_bytes(data: bytes) -> bytes:
    """A picture as it was sent: encoded bytes, base64 of either alphabet or a data URL.

    Base64 may have line ends and lack its padding. It is ASCII, as plain PNM is and no other picture.

    Raises:
        InputError: If it is text, but not base64.
    """
    if not data.isascii() or data[:3].rstrip() in (b"P1", b"P2", b"P3"):
        return data
    head, comma, text = data.partition(b",") if data.startswith(b"data:") else (b";base64", b",", data)
    compact = b"".join(text.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        if compact and comma and head.endswith(b";base64"):
            return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
    except binascii.Error:
        pass
    raise InputError(
        f"image must be an encoded picture, base64 or a data URL of base64, got text: {data[:20].decode()!r}"
    )
