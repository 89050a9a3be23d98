"""An answer while its tokens come: its text, and when it is done."""

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from star_export.errors import SettingsError

MAX_STOPS, MAX_STOP_LENGTH = 16, 256


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """Stop strings as a tuple.

    Raises:
        SettingsError: If there are too many, or one is empty or too long.
    """
    if len(stop) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_LENGTH for text in stop):
        raise SettingsError(
            f"--stop takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters, "
            f"got {list(stop)!r}"
        )
    return tuple(stop)


class Transcript:
    """Token ids in, pieces of text out.

    A stop string, and all that follows it, is no part of the text: what may become one is held
    back until it is known not to.

    Args:
        tokenizer: The model's tokenizer.
        eos_token_ids: Tokens that end the answer.
        max_new_tokens: Tokens that it has at most.
        stop: Strings that end it.

    Attributes:
        token_ids: All tokens so far.
        text: All text so far; after :meth:`finish`, the answer.
        finish_reason: ``stop`` after an end token or a stop string, ``length`` at the limit, None before.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: Collection[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._eos, self._limit = eos_token_ids, max_new_tokens
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stopped = False  # by a stop string
        self._given = 0  # characters of the text that were handed out
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None

    def push(self, token: int) -> str:
        """Append a token; the text that is certain now and was not before, often empty."""
        self.token_ids.append(token)
        self.text += self._stream.step(self._tokenizer, token) or ""
        if self._cut() or token in self._eos:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._limit:
            self.finish_reason = "length"
        return self._give(len(self.text) - self._undecided())

    def finish(self) -> str:
        """The rest of the text: what was held back, a character that never became complete."""
        whole = self._tokenizer.decode(self.token_ids)
        if whole.startswith(self.text) and not self._stopped:
            self.text = whole
            self._cut()
        return self._give(len(self.text))

    def _cut(self) -> bool:
        """End the text at the first stop string, if there is one; none begins in what was handed out."""
        found = [at for stop in self._stop if (at := self.text.find(stop, self._given)) >= 0]
        if found:
            self.text, self._stopped = self.text[: min(found)], True
        return self._stopped

    def _undecided(self) -> int:
        """Characters at the end that may begin a stop string."""
        if self._stopped:
            return 0
        tails = (n for stop in self._stop for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        return max(tails, default=0)

    def _give(self, end: int) -> str:
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece
