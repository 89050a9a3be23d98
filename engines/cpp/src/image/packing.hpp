// How the patches of a picture's tiles become visual tokens, as Python's star_export.preprocessing.packing.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "bundle/contract.hpp"
#include "image/tiling.hpp"

namespace star {

// Stands for a newline among the numbers of patches.
inline constexpr std::int64_t kNewline = -1;

// The visual tokens of one picture: its first tile's, then those of its grid, row by row.
struct Packing {
  std::int64_t tokens = 0;    // Before any is pruned.
  std::int64_t newlines = 0;  // Of them, those that end a row.
  std::optional<Grid> grid;   // Of the other tiles; none if the picture is not cut.
  bool operator==(const Packing&) const = default;
};

// The inputs packed_index [tokens, 4] and packed_weights [tokens, 4] of the vision graph.
struct PackedTaps {
  std::vector<std::int64_t> index;
  std::vector<float> weights;
};
PackedTaps packed_taps(const Packing& packing, const TileShape& shape);

// The input packed_index [tokens] of a vision graph that never scales a grid down.
std::vector<std::int64_t> packed_index(const Packing& packing, const TileShape& shape);

}  // namespace star
