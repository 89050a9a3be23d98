"""The cache of pictures' features."""

import numpy as np

from star_export.answer.steps import VisionOutput
from star_export.preprocessing import PreparedImage
from star_export.preprocessing.images import Packing
from star_export.serving.features import FeatureCache


def picture_of(value: float) -> PreparedImage:
    return PreparedImage(pixels=np.full((1, 3, 1, 1), value, np.float32), packing=Packing(tokens=1))


def test_features_are_held_within_a_limit() -> None:
    seen = []

    def see(image):
        seen.append(value := image.pixels.max())
        return VisionOutput(np.full(25, value), None, 1)  # 100 bytes

    cache = FeatureCache(limit=200)
    for value in (1, 2, 1, 3, 1, 2):  # 3 pushes out 2, which was used longest ago
        features = cache.get(picture_of(value), see).features
        assert set(features) == {value}
    assert seen == [1, 2, 3, 2]
    assert (cache.hits, cache.misses, cache.bytes) == (2, 4, 200)
    nothing = FeatureCache(limit=99)
    assert [set(nothing.get(picture_of(4), see).features) for _ in range(2)] == [{4}] * 2
    assert (nothing.hits, nothing.misses, nothing.bytes) == (0, 2, 0)
