"""What was made before and may be asked for again, in bounded memory."""

from collections import OrderedDict
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class BoundedCache(Generic[Key, Value]):
    """Values by key; the least recently used go first.

    Args:
        limit: Bytes to hold.

    Attributes:
        bytes: Bytes that are held.
        hits: How often what was asked for was held.
        misses: How often it was not.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.hits, self.misses = 0, 0
        self._held: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def hold(self, key: Key, value: Value, size: int) -> None:
        """Hold a value of so many bytes, if there is room for it at all."""
        self.drop(key)
        self._held[key] = value, size
        self.bytes += size
        while self.bytes > self.limit:
            self.drop(next(iter(self._held)))

    def drop(self, key: Key) -> None:
        """Let go of a value, if it is held."""
        _, size = self._held.pop(key, (None, 0))
        self.bytes -= size
