// Pictures of another size, pixel for pixel as Pillow's `Image.resize` makes them.
#pragma once

#include "image/picture.hpp"

namespace star {

// Pillow's numbers of its filters.
enum class Resampling { kNearest = 0, kLanczos = 1, kBilinear = 2, kBicubic = 3, kBox = 4, kHamming = 5 };

// `width` and `height` are positive.
Picture resample(const Picture& picture, int width, int height, Resampling resampling);

}  // namespace star
