#include "image/tiling.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "bundle/tiling.hpp"

namespace star {
namespace {

// Python's int(round(value, 7)), by the decimal digits as Python rounds: 143.99999999 is 144.
std::int64_t rounded_down(double value) {
  std::array<char, 64> digits{};
  const auto end = std::to_chars(digits.begin(), digits.end(), value, std::chars_format::fixed, 7).ptr;
  std::int64_t whole = 0;
  std::from_chars(digits.begin(), end, whole);
  return whole;
}

}  // namespace

Extent best_pinpoint(const Extent& picture, const Tiling& tiling) {
  const auto down = static_cast<double>(picture.down), across = static_cast<double>(picture.across);
  const auto merit = [&](const Extent& pinpoint) {
    const double scale =
        std::min(static_cast<double>(pinpoint.across) / across, static_cast<double>(pinpoint.down) / down);
    const auto scaled = static_cast<std::int64_t>(across * scale) * static_cast<std::int64_t>(down * scale);
    const std::int64_t kept = std::min(scaled, picture.down * picture.across);
    return std::pair(kept, kept - pinpoint.down * pinpoint.across);
  };
  Extent best{tiling.pinpoints.at(0).first, tiling.pinpoints.at(0).second};
  for (const auto& [height, width] : tiling.pinpoints) {
    if (merit(best) < merit({height, width})) best = {height, width};
  }
  return best;
}

Grid picture_grid(const Extent& picture, const Tiling& tiling, const TileShape& shape) {
  const Extent pinpoint = best_pinpoint(picture, tiling);
  const Extent tiles{pinpoint.down / shape.image_size, pinpoint.across / shape.image_size};
  const Extent whole{tiles.down * shape.grid_side(), tiles.across * shape.grid_side()};
  const auto height = static_cast<double>(picture.down), width = static_cast<double>(picture.across);
  const auto rows = static_cast<double>(whole.down), columns = static_cast<double>(whole.across);
  Extent first;
  // Half of what is padding, rounded down as by Python's //: never negative.
  if (width / height > columns / rows) {
    first.down = (whole.down - rounded_down(height * (columns / width))) / 2;
  } else {
    first.across = (whole.across - rounded_down(width * (rows / height))) / 2;
  }
  const Extent patches{whole.down - 2 * first.down, whole.across - 2 * first.across};
  return {tiles, first, patches, scaled_down(patches, tiling, shape.grid_side())};
}

}  // namespace star
