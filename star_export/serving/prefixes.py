"""KV caches of conversations that were answered, for the questions that follow."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from star_export.answer.request import Request
from star_export.contract import DECODE, capacity_symbols
from star_export.engines.session import Caches, HostArray, Int64, Session
from star_export.serving.bounded import BoundedCache
from star_export.serving.ticket import Ticket


@dataclass(frozen=True)
class Prefix:
    """A sequence in host memory: an opening prompt, with what was kept of its pictures, and what followed.

    Attributes:
        caches: By past name ``[1, Hkv, tokens, D]``.
        appended: Tokens behind the opening prompt.
        lengths: int64 ``[groups]``, tokens in each group's caches, ``appended`` among them.
        kept: Visual tokens that each stage kept, as :attr:`Ticket.kept`.
    """

    caches: dict[str, HostArray]
    appended: tuple[int, ...]
    lengths: Int64
    kept: tuple[tuple[int, ...], ...]

    def fill(self, caches: Caches, appended: int) -> Int64:
        """Put it into caches, with so many of the appended tokens; gives the tokens in each group's."""
        rest = len(self.appended) - appended  # which shorter caches have no room for
        for name, values in self.caches.items():
            caches.fill(name, values[:, :, : values.shape[2] - rest])
        return self.lengths - rest


class PrefixCache(BoundedCache[tuple[Hashable, tuple[int, ...]], Prefix]):
    """Sequences by their opening prompts, pictures and budgets; of those that agree, the longest is found.

    Args:
        limit: Bytes of KV caches to hold.
        session: Whose caches they are.
    """

    def __init__(self, limit: int, session: Session) -> None:
        super().__init__(limit)
        self._spec = session.spec
        self._tensors = session.contract[DECODE].caches()
        self._symbols = capacity_symbols(session.spec)

    def find(self, request: Request) -> tuple[Prefix, int] | None:
        """What a request that appends tokens to its opening can go on from, and how many of these it holds.

        One token at least is left to be appended: it gives the logits.
        """
        if not request.appended:
            return None
        opening, best = _opening(request), None
        for key, (prefix, _) in self._held.items():
            agree = _agreeing(prefix.appended, request.appended[:-1])
            if key[0] == opening and (best is None or agree > best[2]):
                best = key, prefix, agree
        if best is None:
            self.misses += 1
            return None
        self.hits += 1
        self._held.move_to_end(best[0])
        return best[1:]

    def keep(self, ticket: Ticket, answer: Sequence[int], caches: Caches) -> None:
        """Copy the caches of a sequence that is done, if there is room for it.

        Args:
            ticket: Its request.
            answer: Tokens of the answer that the caches hold.
            caches: Those of the sequence.
        """
        request, lengths = ticket.request, ticket.lengths
        if self._spec.sequence_bytes(lengths.tolist()) > self.limit:
            return
        opening, appended = _opening(request), (*request.appended, *answer)
        tokens: dict[int | str, int] = dict(zip(self._symbols, lengths.tolist(), strict=True))
        copies = {}
        for name, tensor in self._tensors.items():
            size = tensor.shape[2]  # of old bundles a number: all of it is copied
            copies[name] = np.ascontiguousarray(caches.numpy(name)[:, :, : tokens.get(size)])
        for key in [key for key in self._held if key[0] == opening and key[1] == appended[: len(key[1])]]:
            self.drop(key)  # it is the beginning of this one
        total = sum(copy.nbytes for copy in copies.values())
        self.hold((opening, appended), Prefix(copies, appended, lengths, ticket.kept), total)


def _opening(request: Request) -> Hashable:
    """What decides what an opening prompt leaves in the caches."""
    pictures = tuple(image.key for image in request.images)
    return pictures, request.keep, request.tokens.input_ids.tobytes()


def _agreeing(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens with which both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))
