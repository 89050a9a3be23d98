"""How likely the model found each token, as OpenAI's API tells it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, pre_tokenizers

MAX_TOP_LOGPROBS = 20

#: Stands for a probability of 0, whose logarithm JSON cannot hold.
_NEVER = -9999.0


@dataclass(frozen=True)
class TopLogprob:
    """One of the most likely tokens of a step.

    Attributes:
        token: Its text; bytes that are no whole character are U+FFFD.
        logprob: Natural logarithm of its probability; -9999 for none.
        bytes: Its bytes, which those of the tokens around it may make a character.
    """

    token: str
    logprob: float
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token; its fields and their JSON are those of OpenAI's API.

    Probabilities are the model's own: before temperature, ``top_p`` and schema.

    Attributes:
        token: See :class:`TopLogprob`, as for the next two.
        logprob: Of this token, which need not be among the most likely.
        bytes: Of this token.
        top_logprobs: The most likely tokens of the step, as many as were asked for, best first.
    """

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[TopLogprob, ...]


@dataclass(frozen=True)
class Ranking:
    """A token's logprob and the most likely tokens of its step, in numbers.

    Attributes:
        token: The id that was chosen.
        logprob: Its own.
        top: Ids, best first; ties go to the lower id.
        top_logprobs: Theirs.
    """

    token: int
    logprob: float
    top: tuple[int, ...]
    top_logprobs: tuple[float, ...]


def rank(logits: npt.NDArray[np.float32], token: int, count: int) -> Ranking:
    """Logprobs of the chosen token and of the ``count`` most likely ones.

    Args:
        logits: float32 ``[vocab]``, of which the largest is finite.
        token: What was chosen.
        count: From 0 to :data:`MAX_TOP_LOGPROBS`.
    """
    largest = np.float64(logits.max())
    total = largest + np.log(np.exp(logits - largest).sum(dtype=np.float64))
    top = np.zeros(0, np.int64)
    if count := min(count, logits.size):
        candidates = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
        top = candidates[np.argsort(-logits[candidates], kind="stable")][:count]
    logprobs = np.maximum(logits[[token, *top]].astype(np.float64) - total, _NEVER).tolist()
    return Ranking(token, logprobs[0], tuple(top.tolist()), tuple(logprobs[1:]))


def spell(ranking: Ranking, tokenizer: Tokenizer) -> TokenLogprob:
    """A ranking with the texts of its tokens."""
    top = zip(ranking.top, ranking.top_logprobs, strict=True)
    alternatives = tuple(TopLogprob(*_entry(tokenizer, token, logprob)) for token, logprob in top)
    return TokenLogprob(*_entry(tokenizer, ranking.token, ranking.logprob), alternatives)


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> tuple[str, float, tuple[int, ...]]:
    data = token_bytes(tokenizer, token)
    return data.decode(errors="replace"), logprob, tuple(data)


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token adds to a text, special tokens by their names; nothing for an id without a token.

    Its decoder says, for all but what is no whole character: byte-level names and ``<0xE7>``.
    """
    name = tokenizer.id_to_token(token)
    if name is None:
        return b""
    # Behind another token: some decoders drop the space before a text.
    text: str = tokenizer.decoder.decode(["a", name])[1:]
    if "\ufffd" not in text:
        return text.encode()
    if name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:-1], 16)])
    return bytes(_BYTES[letter] for letter in name) if set(name) <= _BYTES.keys() else text.encode()


def _byte_letters() -> dict[str, int]:
    """Byte by the letter that stands for it in byte-level names: itself, or else one from U+0100 on."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    hidden = [byte for byte in range(256) if chr(byte) not in alphabet]
    return {chr(byte): byte for byte in range(256) if byte not in hidden} | {
        chr(0x100 + place): byte for place, byte in enumerate(hidden)
    }


_BYTES = _byte_letters()
