"""The cache of pictures' features."""

from functools import partial

import numpy as np

from star_export.answer.steps import VisionOutput
from star_export.serving.features import FeatureCache


def test_features_are_held_within_a_limit() -> None:
    seen: list[int] = []

    def see(value: int) -> VisionOutput:
        seen.append(value)
        return VisionOutput(np.full(25, value, np.float32), None, 1)  # 100 bytes

    cache = FeatureCache(limit=200)
    for value in (1, 2, 1, 3, 1, 2):  # 3 pushes out 2, which was used longest ago
        features = cache.get(value, partial(see, value)).features
        assert set(features) == {value}
    assert seen == [1, 2, 3, 2]
    assert (cache.hits, cache.misses, cache.bytes) == (2, 4, 200)
    nothing = FeatureCache(limit=99)
    assert [set(nothing.get(4, partial(see, 4)).features) for _ in range(2)] == [{4}] * 2
    assert (nothing.hits, nothing.misses, nothing.bytes) == (0, 2, 0)
