"""Features of pictures that were seen before."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from star_export.answer.steps import VisionOutput

Pixels = npt.NDArray[np.float32]


class FeatureCache:
    """The vision graph's output by picture; the least recently used goes first.

    Args:
        limit: Bytes of features to hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.hits, self.misses = 0, 0
        self._held: OrderedDict[bytes, VisionOutput] = OrderedDict()

    def get(self, pixels: Pixels, see: Callable[[Pixels], VisionOutput]) -> VisionOutput:
        """The features of ``pixels [1, 3, H, W]``: held, or made by ``see``, on the host."""
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key in self._held:
            self.hits += 1
            self._held.move_to_end(key)
            return self._held[key]
        self.misses += 1
        vision = see(pixels)
        self._held[key] = vision
        self.bytes += _size(vision)
        while self.bytes > self.limit:
            _, old = self._held.popitem(last=False)
            self.bytes -= _size(old)
        return vision


def _size(vision: VisionOutput) -> int:
    assert isinstance(vision.features, np.ndarray)
    return vision.features.nbytes
