"""Messages of a conversation, as clients send them and as the prompt takes them."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

from msgspec import Struct

from star_export.serving.http.refusal import ApiError, invalid

#: Messages of a conversation, at most.
MAX_MESSAGES = 256

#: Fields of an assistant's message that are not served; null and an empty list ask for nothing.
UNSERVED = ("audio", "function_call", "refusal", "tool_calls")

_OPENING = ("system", "developer")


class ImageURL(Struct):
    """Where a picture is; it is looked at as the model does, whatever ``detail`` says."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Struct, tag_field="type", tag="image_url"):
    """A picture in a message; older clients give the address alone."""

    image_url: ImageURL | str

    @property
    def url(self) -> str:
        """Where the picture is."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class TextPart(Struct, tag_field="type", tag="text"):
    """A text in a message."""

    text: str


class Message(Struct):
    """What one side said; the prompt has no place for ``name``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ImagePart]
    name: str | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """Texts and pictures in their order."""
        return [TextPart(self.content)] if isinstance(self.content, str) else self.content


def tidy(messages: Any) -> None:
    """Drop what clients send along and means nothing, before messages are read.

    These are nulls, empty lists, ``parsed``, which OpenAI's client made of an answer itself, and
    ``cache_control``, by which LiteLLM's users say what to cache. An assistant's turn may lack its content.

    Raises:
        ApiError: If a message has a field of the API that is not served.
    """
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        for name in [name for name, value in message.items() if value in (None, []) and name != "content"]:
            del message[name]
        message.pop("parsed", None)
        for name in UNSERVED:
            if name in message:
                where = f"messages[{number}].{name}"
                text = f"{where} is not served here; leave it out"
                raise ApiError(400, text, param=where, code="unsupported_parameter")
        if message.get("role") == "assistant" and message.get("content") is None:
            message["content"] = ""
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            if isinstance(part, dict):
                part.pop("cache_control", None)
                for name in [name for name, value in part.items() if value is None]:
                    del part[name]


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what is of the right type and cannot be answered.

    Raises:
        ApiError: If there are too many, or names would have to tell speakers of one role apart.
    """
    if len(messages) > MAX_MESSAGES:
        raise invalid(
            f"messages may be {MAX_MESSAGES} at most, got {len(messages)}; leave out the oldest", "messages"
        )
    names: dict[str, str] = {}
    for number, message in enumerate(messages):
        if message.name and names.setdefault(message.role, message.name) != message.name:
            raise invalid(
                f"the prompt has no place for names, which tell {names[message.role]!r} and "
                f"{message.name!r} apart; write them into the texts",
                f"messages[{number}].name",
            )


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the prompt takes them: pictures lie beside it, and what comes first is one system turn."""
    opening = list(takewhile(lambda message: message.role in _OPENING, messages))
    if len(opening) > 1:
        told: list[TextPart | ImagePart] = [*opening[0].parts]
        for message in opening[1:]:
            told += [TextPart("\n\n"), *message.parts]
        messages = [Message("system", told), *messages[len(opening) :]]
    return list(map(_turn, messages))


def _turn(message: Message) -> dict[str, Any]:
    role = "system" if message.role in _OPENING else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": message.content}
    parts = [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
        for part in message.content
    ]
    return {"role": role, "content": parts}
