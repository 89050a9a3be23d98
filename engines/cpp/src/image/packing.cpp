#include "image/packing.hpp"

#include <algorithm>

namespace star {
namespace {

// Of a place along a side: the two nearest patches, and the second's weight.
struct Sample {
  std::int64_t low;
  std::int64_t high;
  float share;
};

std::vector<Sample> samples(std::int64_t size, std::int64_t wanted) {
  std::vector<Sample> found(static_cast<std::size_t>(wanted));
  const float scale = static_cast<float>(size) / static_cast<float>(wanted);
  for (std::int64_t i = 0; i < wanted; ++i) {
    Sample& sample = found[static_cast<std::size_t>(i)];
    if (size == wanted) {
      sample = {i, i, 0.0F};
      continue;
    }
    // Rounded once, as by the fused multiply-add in torch's kernels.
    const auto centre = static_cast<float>(static_cast<double>(scale) * (static_cast<double>(i) + 0.5) - 0.5);
    const auto low = static_cast<std::int64_t>(centre);
    const double share = static_cast<double>(centre) - static_cast<double>(low);
    sample = {low, std::min(low + 1, size - 1), static_cast<float>(share)};
  }
  return found;
}

void append(PackedTaps& taps, const std::array<std::int64_t, kTaps>& index,
            const std::array<float, kTaps>& weights) {
  taps.index.insert(taps.index.end(), index.begin(), index.end());
  taps.weights.insert(taps.weights.end(), weights.begin(), weights.end());
}

// A token that is one patch.
void append(PackedTaps& taps, std::int64_t patch) {
  append(taps, {patch, patch, patch, patch}, {1.0F, 0.0F, 0.0F, 0.0F});
}

void append_grid(PackedTaps& taps, const Grid& grid, const TileShape& shape) {
  const std::int64_t side = shape.grid_side();
  // Number of the patch in a row and a column of the grid without its padding.
  const auto patch = [&](std::int64_t row, std::int64_t column) {
    row += grid.first.down;
    column += grid.first.across;
    const std::int64_t tile = 1 + row / side * grid.tiles.across + column / side;
    return tile * shape.tile_tokens + row % side * side + column % side;
  };
  const std::vector<Sample> columns = samples(grid.patches.across, grid.shape.across);
  for (const Sample& row : samples(grid.patches.down, grid.shape.down)) {
    for (const Sample& column : columns) {
      const float above = 1.0F - row.share, left = 1.0F - column.share;
      append(taps,
             {patch(row.low, column.low), patch(row.low, column.high), patch(row.high, column.low),
              patch(row.high, column.high)},
             {above * left, above * column.share, row.share * left, row.share * column.share});
    }
    append(taps, kNewline);
  }
}

}  // namespace

PackedTaps packed_taps(const Packing& packing, const TileShape& shape) {
  PackedTaps taps;
  for (std::int64_t patch = 0; patch < shape.tile_tokens; ++patch) append(taps, patch);
  if (packing.grid) {
    append_grid(taps, *packing.grid, shape);
  } else {
    for (std::int64_t i = 0; i < packing.newlines; ++i) append(taps, kNewline);
  }
  return taps;
}

std::vector<std::int64_t> packed_index(const Packing& packing, const TileShape& shape) {
  const PackedTaps taps = packed_taps(packing, shape);
  std::vector<std::int64_t> index;
  for (std::size_t i = 0; i < taps.index.size(); i += kTaps) index.push_back(taps.index[i]);
  return index;
}

}  // namespace star
