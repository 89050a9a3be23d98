#include "bundle/tiling.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

namespace star {
namespace {

// A grid is scaled down when its sides are longer than allowed by more than this (OneVision).
constexpr double kTolerated = 1.1;

struct Sides {
  std::int64_t rows, columns;
};

// Python's `a // b`, which is not the floor of the rounded quotient.
std::int64_t floor_divided(std::int64_t number, double divisor) {
  const auto value = static_cast<double>(number);
  const double quotient = (value - std::fmod(value, divisor)) / divisor;
  const double whole = std::floor(quotient);
  return static_cast<std::int64_t>(quotient - whole > 0.5 ? whole + 1.0 : whole);
}

// Rows and columns of visual tokens of a grid that shows so many patches.
Sides scaled_down(Sides patches, const Tiling& tiling, std::int64_t side) {
  if (!tiling.max_grid) return patches;
  const auto area = static_cast<double>(patches.rows * patches.columns);
  const double ratio = std::sqrt(area / static_cast<double>(*tiling.max_grid * side * side));
  if (!(ratio > kTolerated)) return patches;
  return {floor_divided(patches.rows, ratio), floor_divided(patches.columns, ratio)};
}

}  // namespace

void every_picture(const ModelSpec& model, std::int64_t max_tiles,
                   const std::function<void(std::int64_t, std::int64_t)>& visit) {
  const std::int64_t whole = model.vision.tile_tokens();
  if (!model.tiling) return visit(whole, 0);
  const std::int64_t tile = model.vision.image_size, side = model.vision.grid_side();
  for (const auto& [height, width] : model.tiling->pinpoints) {
    const Sides tiles{height / tile, width / tile}, all{tiles.rows * side, tiles.columns * side};
    if (tiles.rows * tiles.columns >= max_tiles) continue;
    const auto visit_grid = [&](Sides patches) {
      const Sides shape = scaled_down(patches, *model.tiling, side);
      visit(whole + shape.rows * (shape.columns + 1), shape.rows);
    };
    for (std::int64_t top = 0; top <= all.rows / 2; ++top) visit_grid({all.rows - 2 * top, all.columns});
    for (std::int64_t left = 1; left <= all.columns / 2; ++left) {
      visit_grid({all.rows, all.columns - 2 * left});
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
