"""Features of pictures that were seen before."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from star_export.answer.steps import VisionOutput
from star_export.preprocessing import PreparedImage


class FeatureCache:
    """The vision graph's output by picture; the least recently used goes first.

    Args:
        limit: Bytes of features to hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.hits, self.misses = 0, 0
        self._held: OrderedDict[bytes, VisionOutput] = OrderedDict()

    def get(self, image: PreparedImage, see: Callable[[PreparedImage], VisionOutput]) -> VisionOutput:
        """The features of a picture: held, or made by ``see``, on the host."""
        if image.key in self._held:
            self.hits += 1
            self._held.move_to_end(image.key)
            return self._held[image.key]
        self.misses += 1
        vision = self._held[image.key] = see(image)
        self.bytes += _size(vision)
        while self.bytes > self.limit:
            _, old = self._held.popitem(last=False)
            self.bytes -= _size(old)
        return vision


def _size(vision: VisionOutput) -> int:
    assert isinstance(vision.features, np.ndarray)
    return vision.features.nbytes
