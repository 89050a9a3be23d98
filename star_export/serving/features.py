"""Features of pictures that were seen before."""

from collections.abc import Callable, Hashable

import numpy as np

from star_export.answer.steps import VisionOutput
from star_export.serving.bounded import BoundedCache


class FeatureCache(BoundedCache[Hashable, VisionOutput]):
    """The vision graph's output by picture."""

    def get(self, key: Hashable, see: Callable[[], VisionOutput]) -> VisionOutput:
        """The features of what ``key`` stands for: held, or made by ``see``, on the host."""
        if key in self._held:
            self.hits += 1
            self._held.move_to_end(key)
            return self._held[key][0]
        self.misses += 1
        vision = see()
        assert isinstance(vision.features, np.ndarray)
        self.hold(key, vision, vision.features.nbytes)
        return vision
