"""Prompts as plain text around the turns, for runtimes that have no Jinja."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from star_export.preprocessing.conversation import IMAGE, Conversation, Turn

Strip = Literal["none", "end", "both"]
STRIPPED: dict[Strip, Callable[[str], str]] = {"none": str, "end": str.rstrip, "both": str.strip}


@dataclass(frozen=True, kw_only=True)
class TurnForm:
    """What stands before and after the text of a turn.

    Attributes:
        strip: At which ends the text loses its white space, as by ``str.strip``.
    """

    prefix: str
    suffix: str
    strip: Strip = "none"

    def around(self, text: str) -> str:
        """The turn that says ``text``."""
        return f"{self.prefix}{STRIPPED[self.strip](text)}{self.suffix}"


@dataclass(frozen=True, kw_only=True)
class PromptForms:
    """A prompt without system turn: ``start``, each turn in its form, ``generation_prompt``.

    Attributes:
        start: Before the first turn.
        user: A question without a picture.
        user_with_image: A question with one, whose image token is in the prefix.
        assistant: An answer.
        generation_prompt: After the last question.
        image: What stands for a picture in that prefix, first found; as often as the question has pictures.
            None in bundles that were built for one.
    """

    start: str
    user: TurnForm
    user_with_image: TurnForm
    assistant: TurnForm
    generation_prompt: str
    image: str | None = None  # absent before format 4

    def render(self, conversation: Conversation) -> str:
        """A conversation of user and assistant, where pictures open their turn."""
        return "".join([self.start, *map(self._turn, conversation), self.generation_prompt])

    def _turn(self, turn: Turn) -> str:
        form = self.assistant if turn.role == "assistant" else self._question(turn.content.count(IMAGE))
        return form.around("".join(turn.texts))

    def _question(self, images: int) -> TurnForm:
        if images < 2 or self.image is None:
            return self.user_with_image if images else self.user
        prefix = self.user_with_image.prefix.replace(self.image, images * self.image, 1)
        return replace(self.user_with_image, prefix=prefix)
