// Pictures of any size as tiles ("anyres"): which grid a picture takes, as Python's star_export.specs.tiling.
#pragma once

#include <cstdint>

#include "bundle/spec.hpp"

namespace star {

// Down and across, in pixels, tiles or patches.
struct Extent {
  std::int64_t down = 0;
  std::int64_t across = 0;
  bool operator==(const Extent&) const = default;
};

// The vision tower as far as pictures are concerned.
struct TileShape {
  std::int64_t image_size = 0;   // Pixels along a tile's side.
  std::int64_t patch_size = 0;   // Pixels along a patch's side.
  std::int64_t tile_tokens = 0;  // Visual tokens of a tile, before any is pruned.
  std::int64_t grid_side() const { return image_size / patch_size; }
};

// The tiles of one picture behind its first, and what is left of their patches.
struct Grid {
  Extent tiles;
  Extent first;    // Row and column of the first patch that does not show padding.
  Extent patches;  // That are left from there on.
  Extent shape;    // The same after scaling down: visual tokens without newlines.
  // One newline for each row included.
  std::int64_t tokens() const { return shape.down * (shape.across + 1); }
  bool operator==(const Grid&) const = default;
};

// The pin point that keeps most pixels of a picture, then wastes least; the first of equals. There is one at
// least.
Extent best_pinpoint(const Extent& picture, const Tiling& tiling);

Grid picture_grid(const Extent& picture, const Tiling& tiling, const TileShape& shape);

}  // namespace star
