// Pictures to what the vision graph takes, bit for bit as Python's star_export.preprocessing.images.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "image/image_spec.hpp"
#include "image/packing.hpp"
#include "image/picture.hpp"

namespace star {

// A picture, ready for the vision graph.
struct PreparedImage {
  std::int64_t tiles = 0;
  std::int64_t side = 0;      // Pixels along a tile's side.
  std::vector<float> pixels;  // [tiles, 3, side, side].
  Packing packing;            // How its patches become visual tokens.
};

// The pictures of one request. `tiling` says how they are cut, nothing that they are not. Throws InputError
// if one of several is too long for the square that it is padded to.
std::vector<PreparedImage> prepare(std::span<const Picture> pictures, const ImageSpec& spec,
                                   const TileShape& shape, const std::optional<Tiling>& tiling);

}  // namespace star
