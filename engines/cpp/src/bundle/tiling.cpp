#include "bundle/tiling.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

namespace star {
namespace {

// A grid is scaled down when its sides are longer than allowed by more than this (OneVision).
constexpr double kTolerated = 1.1;

// Python's `a // b`, exact where a quotient that is rounded to a whole number would be one too many.
std::int64_t whole_quotient(std::int64_t value, double divisor) {
  const auto dividend = static_cast<double>(value);
  return static_cast<std::int64_t>(std::round((dividend - std::fmod(dividend, divisor)) / divisor));
}

}  // namespace

Extent scaled_down(const Extent& patches, const Tiling& tiling, std::int64_t side) {
  if (!tiling.max_grid) return patches;
  const auto area = static_cast<double>(patches.down * patches.across);
  const double ratio = std::sqrt(area / static_cast<double>(*tiling.max_grid * side * side));
  if (!(ratio > kTolerated)) return patches;
  return {whole_quotient(patches.down, ratio), whole_quotient(patches.across, ratio)};
}

void every_picture(const ModelSpec& model, std::int64_t max_tiles,
                   const std::function<void(std::int64_t, std::int64_t)>& visit) {
  const std::int64_t whole = model.vision.tile_tokens();
  if (!model.tiling) return visit(whole, 0);
  const std::int64_t tile = model.vision.image_size, side = model.vision.grid_side();
  for (const auto& [height, width] : model.tiling->pinpoints) {
    const Extent tiles{height / tile, width / tile}, all{tiles.down * side, tiles.across * side};
    if (tiles.down * tiles.across >= max_tiles) continue;
    const auto visit_grid = [&](const Extent& patches) {
      const Extent shape = scaled_down(patches, *model.tiling, side);
      visit(whole + shape.down * (shape.across + 1), shape.down);
    };
    for (std::int64_t top = 0; top <= all.down / 2; ++top) visit_grid({all.down - 2 * top, all.across});
    for (std::int64_t left = 1; left <= all.across / 2; ++left) {
      visit_grid({all.down, all.across - 2 * left});
    }
  }
}

std::int64_t largest_request(const ModelSpec& model, const ImageLimits& limits, const PictureCount& count) {
  const std::int64_t most = limits.max_image_tokens;
  std::optional<std::int64_t> largest;
  every_picture(model, limits.max_tiles, [&](std::int64_t tokens, std::int64_t newlines) {
    if (tokens > most) return;
    const std::int64_t found = count(tokens, newlines);
    largest = largest ? std::max(*largest, found) : found;
  });
  const std::int64_t one = largest.value_or(1);
  if (!model.tiling || !model.tiling->several_whole) return std::min(limits.max_images * one, most);
  if (limits.max_images <= 1) return one;
  // A picture that is not cut, in a family that cuts: a newline ends it.
  const std::int64_t squared = count(model.vision.tile_tokens() + 1, 1);
  return std::max(one, std::min(limits.max_images * squared, most));
}

}  // namespace star
