"""An answer while its tokens come: its text, and when it is done."""

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

from star_export.answer.logprobs import Ranking, TokenLogprob, spell
from star_export.errors import SettingsError, option

MAX_STOPS, MAX_STOP_LENGTH = 16, 256

#: Decoded again with every new token: what a decoder does to text depends on the few tokens before it.
_CONTEXT = 4


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """Stop strings as a tuple.

    Raises:
        SettingsError: If there are too many, or one is empty or too long.
    """
    if len(stop) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_LENGTH for text in stop):
        raise SettingsError(
            f"{option('stop')} takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters, "
            f"got {list(stop)!r}"
        )
    return tuple(stop)


class TextStream:
    """The text of tokens as they come, in pieces that add up to the text of all of them at once.

    A decoder may change the end of a text when more follows: a character of which bytes are missing,
    and every character of a run of byte tokens (``<0xE7>``), which is valid or not as a whole. Such an
    end is held back. All before it is final, so that a window over the last tokens is enough.

    Args:
        tokenizer: The model's tokenizer; its special tokens have no text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._window: list[int] = []
        self._given = 0  # characters of the window's text that were handed out

    def push(self, token: int) -> str:
        """Append a token; the text that is final now and was not before, often empty."""
        name = self._tokenizer.id_to_token(token)
        if name is None or token in self._special:
            return ""
        self._window.append(token)
        if name.startswith("<0x") and name.endswith(">"):
            return ""
        text = self._tokenizer.decode(self._window)
        open_end = text.endswith("\ufffd")  # may become a character with the next token
        piece = text[self._given : len(text) - open_end]
        self._window = self._window[-_CONTEXT:]
        self._given = len(self._tokenizer.decode(self._window)) - open_end
        return piece

    def finish(self) -> str:
        """The rest of the text, when no more tokens come."""
        return self._tokenizer.decode(self._window)[self._given :]


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
        finish_reason: ``stop`` after an end token, a stop string or a schema's last token, ``length`` at the
            limit, None before.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: Collection[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> None:
        self._stop, self._eos, self._limit = stop, eos_token_ids, max_new_tokens
        self._tokenizer, self._stream = tokenizer, TextStream(tokenizer)
        self._stopped = False  # by a stop string
        self._given = 0  # characters of the text that were handed out
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None

    def push(self, token: int, *, last: bool = False) -> str:
        """Append a token; the text that is certain now and was not before, often empty.

        Args:
            token: The id.
            last: Whether nothing may follow it, as of the last token of a schema's JSON.
        """
        self.token_ids.append(token)
        self.text += self._stream.push(token)
        if self._cut() or last or token in self._eos:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._limit:
            self.finish_reason = "length"
        return self._give(len(self.text) - self._undecided())

    def finish(self) -> str:
        """The rest of the text: what was held back, a character that never became complete."""
        if not self._stopped:
            self.text += self._stream.finish()
            self._cut()
        return self._give(len(self.text))

    def logprobs(self, rankings: Sequence[Ranking] | None) -> tuple[TokenLogprob, ...] | None:
        """Rankings of some tokens with their texts; None for None."""
        return None if rankings is None else tuple(spell(one, self._tokenizer) for one in rankings)

    def _cut(self) -> bool:
        """End the text at the stop string that is complete first; none begins in what was handed out."""
        found = [
            (at + len(stop), at) for stop in self._stop if (at := self.text.find(stop, self._given)) >= 0
        ]
        if found:
            self.text, self._stopped = self.text[: min(found)[1]], True
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
