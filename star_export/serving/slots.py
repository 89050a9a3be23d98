"""Rows of the KV caches of sequences that are decoded together."""

from collections.abc import Collection, Iterable, Sequence

from star_export.engines.session import Caches, Session, resizable_capacities
from star_export.errors import SettingsError, option

#: Caches that are so many times as long as they need to be are made anew.
WASTE = 2


class Slots:
    """KV caches for the sequences that run: as many rows as fit into some bytes, and views of the first.

    All rows have the capacities that the longest of these sequences needs. Where a session's caches are
    resizable, they are made anew, with what is in them, when a longer sequence comes, when one more fits
    into shorter rows, and when much shorter ones would do. Else they have the bundle's capacities.

    Batches come in powers of two: every size has a binding, on TensorRT a CUDA graph, of its own.

    Args:
        session: The graphs that use them.
        kv_bytes: Memory for all rows; while they are made anew, one tensor of them is there twice.
        most: Rows, at most; never more than the session can decode at once.

    Attributes:
        capacities: Tokens of each layer group that a row has room for.
        count: Rows.

    Raises:
        SettingsError: If the longest sequence of the bundle does not fit.
    """

    def __init__(self, session: Session, *, kv_bytes: int, most: int) -> None:
        self._session, self._spec = session, session.spec
        if kv_bytes < (size := self._spec.slot_bytes):
            raise SettingsError(
                f"the KV caches of one sequence take up to {size} bytes, {kv_bytes} are allowed; "
                "allow more, or build the bundle with a smaller "
                f"{option('max_text_tokens')} or {option('max_new_tokens')}"
            )
        self._kv_bytes, self._most = kv_bytes, min(most, session.max_batch or most)
        self.capacities = resizable_capacities(session, [1] * len(self._spec.groups))
        self.count = self.fitting(self.capacities)
        self._caches = session.allocate_caches(self.count, self.capacities)
        self._look()

    def fitting(self, capacities: Sequence[int]) -> int:
        """Rows of some capacities that there may be."""
        return min(self._most, self._kv_bytes // self._spec.sequence_bytes(capacities))

    def have_room(self, needed: Collection[Sequence[int]]) -> bool:
        """Whether sequences that need so many tokens of each group could run together."""
        return len(needed) <= self.fitting(self._least(needed))

    def wanted(self, needed: Collection[Sequence[int]]) -> tuple[int, ...]:
        """The capacities for such sequences: those that there are, if they will do."""
        least = self._least(needed)
        enough = all(has >= needs for has, needs in zip(self.capacities, least, strict=True))
        waste = self._spec.sequence_bytes(self.capacities) >= WASTE * self._spec.sequence_bytes(least)
        return self.capacities if enough and len(needed) <= self.count and not waste else least

    def resize(self, capacities: tuple[int, ...], rows: Sequence[int] = ()) -> None:
        """Make caches of other capacities; sequences in ``rows`` move to the first, all others are gone."""
        self.capacities = (0,) * len(capacities)  # should this fail, nothing is in them, and nothing fits
        self.count = self.fitting(capacities)
        self._session.resize_caches(self._caches, self.count, capacities, rows=rows)
        self.capacities = capacities
        self._look()

    def lowest_free(self, taken: Collection[int]) -> int:
        """The first free slot, of which there must be one: batches stay small."""
        return next(slot for slot in range(self.count) if slot not in taken)

    def row(self, slot: int) -> Caches:
        """The caches of one slot."""
        return self._each[slot]

    def spoil(self, slot: int) -> None:
        """Remember that there may be NaNs in a slot; -1, which is none, changes nothing."""
        self._spoiled.add(slot)

    def clean(self, slot: int) -> Caches:
        """The caches of one slot, fit to be filled."""
        if slot in self._spoiled:
            self._each[slot].zero()
            self._spoiled.remove(slot)
        return self._each[slot]

    def batch(self, wanted: int) -> tuple[Caches, int]:
        """Caches of at least the first ``wanted`` slots, and how many these are."""
        rows = next(rows for rows in self._batches if rows >= wanted)
        return self._batches[rows], rows

    def batches(self) -> Iterable[tuple[Caches, int]]:
        """Every batch that :meth:`batch` may give."""
        return ((caches, rows) for rows, caches in self._batches.items())

    def _least(self, needed: Collection[Sequence[int]]) -> tuple[int, ...]:
        return resizable_capacities(self._session, [max(group) for group in zip(*needed, strict=True)])

    def _look(self) -> None:
        """Make the views of rows that were just allocated."""
        sizes = [1 << power for power in range((self.count - 1).bit_length())] + [self.count]
        self._each = [self._caches.rows(slot, slot + 1) for slot in range(self.count)]
        self._batches = {rows: self._caches.rows(0, rows) for rows in sizes}
        self._spoiled: set[int] = set()
