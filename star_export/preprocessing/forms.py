"""Prompts as plain text around the turns, for runtimes that have no Jinja."""

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    start: str
    user: TurnForm
    user_with_image: TurnForm
    assistant: TurnForm
    generation_prompt: str

    def render(self, conversation: Conversation) -> str:
        """A conversation of user and assistant, where a picture opens its turn."""
        return "".join([self.start, *map(self._turn, conversation), self.generation_prompt])

    def _turn(self, turn: Turn) -> str:
        question = self.user_with_image if IMAGE in turn.content else self.user
        form = self.assistant if turn.role == "assistant" else question
        return form.around("".join(turn.texts))
