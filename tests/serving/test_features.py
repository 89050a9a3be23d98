"""The cache of pictures' features."""

import numpy as np

from star_export.answer.steps import VisionOutput
from star_export.serving.features import FeatureCache


def test_features_are_held_within_a_limit() -> None:
    seen = []

    def see(pixels):
        seen.append(float(pixels[0]))
        return VisionOutput(np.full(25, pixels[0]), None, 1)  # 100 bytes

    cache = FeatureCache(limit=200)
    for value in (1, 2, 1, 3, 1, 2):  # 3 pushes out 2, which was used longest ago
        features = cache.get(np.array([value], np.float32), see).features
        assert set(features) == {value}
    assert seen == [1, 2, 3, 2]
    assert (cache.hits, cache.misses, cache.bytes) == (2, 4, 200)
    nothing = FeatureCache(limit=99)
    assert [set(nothing.get(np.array([4], np.float32), see).features) for _ in range(2)] == [{4}] * 2
    assert (nothing.hits, nothing.misses, nothing.bytes) == (0, 2, 0)


def test_features_are_found_by_every_pixel() -> None:
    pixels = np.zeros((1, 3, 4, 4), np.float32)
    cache, seen = FeatureCache(limit=1 << 20), []

    def see(pixels):
        seen.append(pixels)
        return VisionOutput(np.zeros(1, np.float32), None, 1)

    for place in ((0, 0, 0, 0), (0, 2, 3, 3), (0, 1, 2, 1)):
        other = pixels.copy()
        other[place] = 1e-7
        cache.get(other, see)
        cache.get(other.copy(), see)
    assert (len(seen), cache.hits) == (3, 3)
