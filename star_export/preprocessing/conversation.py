"""Conversations: what user and model said in turn, and where in it the pictures stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import cycle
from typing import Any, Final, Literal

from msgspec import Struct

from star_export.errors import InputError
from star_export.typed import convert

Role = Literal["system", "user", "assistant"]


class Placeholder(Enum):
    """What stands among the texts of a turn."""

    IMAGE = "image"


#: The place of a picture.
IMAGE: Final = Placeholder.IMAGE


@dataclass(frozen=True)
class Turn:
    """What one side said.

    Attributes:
        role: Who said it; ``system`` says how to answer.
        content: Texts, and :data:`IMAGE` where a picture stands.
    """

    role: Role
    content: tuple[str | Placeholder, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Its texts alone."""
        return tuple(part for part in self.content if isinstance(part, str))

    @property
    def parts(self) -> list[dict[str, str]]:
        """Its parts as messages have them."""
        return [
            {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in self.content
        ]

    def joined(self, image_token: str) -> str:
        """All of it as one text, pictures as LLaVA-1.5 writes them."""
        return "".join(part if isinstance(part, str) else f"{image_token}\n" for part in self.content)


Conversation = tuple[Turn, ...]
#: A question, or turns: messages as transformers' and OpenAI's chats have them, or :class:`Turn`.
Prompt = str | Sequence[Turn | Mapping[str, Any]]


class _Text(Struct, tag_field="type", tag="text"):
    text: str


class _Image(Struct, tag_field="type", tag="image"):
    pass


class _Message(Struct):
    role: Role
    content: str | list[_Text | _Image]


def read_conversation(prompt: Prompt, image_token: str, *, images: int = 1) -> Conversation:
    """The turns of a prompt about some pictures.

    Where no place of a picture is given, by a part or by the image token in a text, all of them
    open the user's first turn.

    Raises:
        InputError: If a turn cannot be read, a text cannot be used, the turns are out of order, or there
            are other than one place for each picture.
    """
    turns = _turns(prompt)
    _check_order([turn.role for turn in turns])
    for turn in turns:
        check_unicode("".join(turn.texts))
    if not "".join(turns[-1].texts).strip():
        raise InputError("the prompt is empty; ask something about the picture")
    places = sum(turn.joined(image_token).count(image_token) for turn in turns)
    if not places:
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        turns[first] = replace(turns[first], content=(*[IMAGE] * images, *turns[first].content))
    elif places != images:
        raise InputError(
            f"the conversation has {places} places of pictures, expected {images}, one for each picture; "
            'put {"type": "image"} where each stands, or nowhere, so that all open the first question'
        )
    return tuple(turns)


def opening_turns(conversation: Conversation, image_token: str) -> Conversation:
    """The turns of a conversation up to the question that brought its last picture."""
    last = max(n for n, turn in enumerate(conversation) if image_token in turn.joined(image_token))
    while conversation[last].role != "user":
        last += 1
    return conversation[: last + 1]


def check_unicode(text: str) -> None:
    """Refuse what no tokenizer can encode.

    Raises:
        InputError: If it holds half of a surrogate pair.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError("the prompt is not valid Unicode: it holds half of a surrogate pair; leave it out")


def _turns(prompt: Prompt) -> list[Turn]:
    if isinstance(prompt, str):
        return [Turn("user", (prompt,))]
    if not isinstance(prompt, list | tuple):
        raise InputError(f"the prompt must be a text or a list of turns, got {type(prompt).__name__}")
    return [_turn(given, number) for number, given in enumerate(prompt, 1)]


def _turn(given: Turn | Mapping[str, Any], number: int) -> Turn:
    if isinstance(given, Turn):
        return given
    try:
        message = convert(given, _Message)
    except ValueError as error:
        raise InputError(
            f"turn {number} of the conversation cannot be read: {error}; a turn has a role and a content, "
            'which is a text or a list of {"type": "text", "text": ...} and {"type": "image"}; '
            "pictures are given beside the conversation, videos are not supported"
        ) from error
    parts = [_Text(message.content)] if isinstance(message.content, str) else message.content
    return Turn(message.role, tuple(part.text if isinstance(part, _Text) else IMAGE for part in parts))


def _check_order(roles: Sequence[str]) -> None:
    """Refuse what is not the system's turn, or none, and then user and assistant by turns."""
    opening = roles[:1] == ["system"]
    for number, (role, expected) in enumerate(zip(roles[opening:], cycle(("user", "assistant"))), 1):
        if role != expected:
            raise InputError(
                f"turn {number + opening} of the conversation is the {role}'s, expected the {expected}'s; "
                "the system's may come first, then user and assistant take turns"
            )
    if roles[-1:] != ["user"]:
        raise InputError("the conversation must end with the user's turn, which the model answers")
