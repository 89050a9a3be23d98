// What a picture gives to the vision graph: plain arrays.
#pragma once

#include <cstdint>
#include <vector>

namespace star {

// A picture, ready for the vision graph.
struct ImageInputs {
  std::vector<float> pixels;  // [tiles, 3, H, W]
  std::int64_t tiles = 1;
  std::int64_t tokens = 0;    // visual tokens, before any is pruned
  std::int64_t newlines = 0;  // how many of them end a row
  // Of a family that cuts pictures: [tokens], or [tokens, 4] and its weights where a grid may be scaled down.
  std::vector<std::int64_t> packed_index;
  std::vector<float> packed_weights;
};

}  // namespace star
