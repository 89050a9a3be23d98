"""Features of pictures that were seen before."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from star_export.answer.steps import VisionOutput


class FeatureCache:
    """The vision graph's output by picture; the least recently used goes first.

    Args:
        limit: Bytes of features to hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.hits, self.misses = 0, 0
        self._held: OrderedDict[Hashable, VisionOutput] = OrderedDict()

    def get(self, key: Hashable, see: Callable[[], VisionOutput]) -> VisionOutput:
        """The features of what ``key`` stands for: held, or made by ``see``, on the host."""
        if key in self._held:
            self.hits += 1
            self._held.move_to_end(key)
            return self._held[key]
        self.misses += 1
        vision = self._held[key] = see()
        self.bytes += _size(vision)
        while self.bytes > self.limit:
            _, old = self._held.popitem(last=False)
            self.bytes -= _size(old)
        return vision


def _size(vision: VisionOutput) -> int:
    assert isinstance(vision.features, np.ndarray)
    return vision.features.nbytes
