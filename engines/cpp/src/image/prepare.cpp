#include "image/prepare.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "errors.hpp"
#include "memory.hpp"

namespace star {
namespace {

using Size = std::size_t;

constexpr Size kChannels = 3;
// Pixels of a picture that is resized before a part of it is cut out: gigabytes.
constexpr int kMostResized = 1 << 30;

Size offset(const Picture& picture, Size y, Size x) {
  return (y * static_cast<Size>(picture.width) + x) * kChannels;
}

// `picture` in a canvas of one colour, with its upper left corner at `top` and `left`.
Picture placed(const Picture& picture, int width, int height, int top, int left,
               const std::array<std::uint8_t, kChannels>& colour) {
  Picture canvas{width, height, {}};
  canvas.rgb.resize(static_cast<Size>(width) * static_cast<Size>(height) * kChannels);
  for (Size i = 0; i < canvas.rgb.size(); i += kChannels)
    std::copy(colour.begin(), colour.end(), &canvas.rgb[i]);
  for (Size y = 0; y < static_cast<Size>(picture.height); ++y) {
    std::memcpy(&canvas.rgb[offset(canvas, y + static_cast<Size>(top), static_cast<Size>(left))],
                &picture.rgb[offset(picture, y, 0)], static_cast<Size>(picture.width) * kChannels);
  }
  return canvas;
}

Picture part(const Picture& picture, Size top, Size left, int width, int height) {
  Picture cut{width, height, {}};
  cut.rgb.reserve(static_cast<Size>(width) * static_cast<Size>(height) * kChannels);
  for (Size y = 0; y < static_cast<Size>(height); ++y) {
    const std::uint8_t* row = &picture.rgb[offset(picture, top + y, left)];
    cut.rgb.insert(cut.rgb.end(), row, row + static_cast<Size>(width) * kChannels);
  }
  return cut;
}

Picture resized(const Picture& picture, const ImageSpec& spec) {
  if (spec.resize_to) {
    return resample(picture, static_cast<int>(spec.resize_to->across), static_cast<int>(spec.resize_to->down),
                    spec.resample);
  }
  if (!spec.shortest_edge) return picture;
  const int shorter = std::min(picture.width, picture.height),
            longer = std::max(picture.width, picture.height);
  const auto edge = static_cast<int>(*spec.shortest_edge);
  // As in Python, a quotient of whole numbers in double, cut off. An int holds it: kMaxAspectRatio.
  const auto scaled = static_cast<int>(static_cast<double>(*spec.shortest_edge * longer) / shorter);
  if (scaled > kMostResized / edge) {
    throw InputError("a picture is " + std::to_string(picture.width) + "x" + std::to_string(picture.height) +
                     ", too long to have a shorter side of " + std::to_string(edge) + " pixels; cut it");
  }
  return picture.width <= picture.height ? resample(picture, edge, scaled, spec.resample)
                                         : resample(picture, scaled, edge, spec.resample);
}

// What a model sees of a picture, not yet normalised.
Picture visible(const Picture& picture, const ImageSpec& spec) {
  Picture seen = resized(picture, spec);
  if (!spec.crop) return seen;
  const auto height = static_cast<int>(spec.crop->down), width = static_cast<int>(spec.crop->across);
  return part(seen, static_cast<Size>((seen.height - height) / 2),
              static_cast<Size>((seen.width - width) / 2), width, height);
}

// The value of every 8-bit level in every channel: to look up is faster than to compute each pixel.
std::array<std::array<float, 256>, kChannels> normalised_levels(const ImageSpec& spec) {
  std::array<std::array<float, 256>, kChannels> levels{};
  for (Size channel = 0; channel < kChannels; ++channel) {
    const auto mean = static_cast<float>(spec.mean[channel]), std = static_cast<float>(spec.std[channel]);
    for (Size level = 0; level < 256; ++level) {
      // float64 and back, like transformers: rescaling in float32 would differ in the last bit.
      const auto scaled = static_cast<float>(static_cast<double>(level) * spec.rescale_factor);
      levels[channel][level] = (scaled - mean) / std;
    }
  }
  return levels;
}

void append_tile(PreparedImage& image, const Picture& tile,
                 const std::array<std::array<float, 256>, kChannels>& levels) {
  for (Size channel = 0; channel < kChannels; ++channel) {
    for (Size i = channel; i < tile.rgb.size(); i += kChannels) {
      image.pixels.push_back(levels[channel][tile.rgb[i]]);
    }
  }
  ++image.tiles;
}

// A picture as one tile.
PreparedImage whole(const Picture& tile, const ImageSpec& spec, const TileShape& shape,
                    std::int64_t newlines) {
  PreparedImage image;
  image.side = shape.image_size;
  image.packing = {shape.tile_tokens + newlines, newlines, std::nullopt};
  append_tile(image, tile, normalised_levels(spec));
  return image;
}

// The picture in the middle of a square of the mean colour.
Picture square(const Picture& picture, const ImageSpec& spec) {
  const int side = std::max(picture.width, picture.height);
  if (std::int64_t{side} * side > kMaxPixels) {
    throw InputError("one of the pictures is " + std::to_string(picture.width) + "x" +
                     std::to_string(picture.height) + "; several are padded to squares, which may have " +
                     std::to_string(std::int64_t{kMaxPixels}) + " pixels; scale it down");
  }
  std::array<std::uint8_t, kChannels> colour{};
  for (Size i = 0; i < kChannels; ++i) {
    // Pillow takes colours beyond 8 bits for the nearest.
    colour[i] = static_cast<std::uint8_t>(std::clamp(std::trunc(spec.mean[i] * 255), 0.0, 255.0));
  }
  return placed(picture, side, side, (side - picture.height) / 2, (side - picture.width) / 2, colour);
}

// The picture, as large as fits in `size`, in the middle of black.
Picture padded(const Picture& picture, const Extent& size, const ImageSpec& spec) {
  const double down = static_cast<double>(size.down) / picture.height;
  const double across = static_cast<double>(size.across) / picture.width;
  auto height = static_cast<int>(size.down), width = static_cast<int>(size.across);
  const int canvas_height = height, canvas_width = width;
  if (across < down) {
    height = static_cast<int>(std::min(std::ceil(picture.height * across), static_cast<double>(size.down)));
  } else {
    width = static_cast<int>(std::min(std::ceil(picture.width * down), static_cast<double>(size.across)));
  }
  return placed(resample(picture, width, height, spec.resample), canvas_width, canvas_height,
                (canvas_height - height) / 2, (canvas_width - width) / 2, {0, 0, 0});
}

// A picture as a tile of all of it, then those that it is cut into, row by row.
PreparedImage cut(const Picture& picture, const ImageSpec& spec, const TileShape& shape,
                  const Tiling& tiling) {
  const Grid grid = picture_grid({picture.height, picture.width}, tiling, shape);
  const std::int64_t side = shape.image_size;
  const Picture canvas = padded(picture, {grid.tiles.down * side, grid.tiles.across * side}, spec);
  PreparedImage image;
  image.side = side;
  image.packing = {shape.tile_tokens + grid.tokens(), grid.shape.down, grid};
  const auto levels = normalised_levels(spec);
  append_tile(image, visible(picture, spec), levels);
  for (std::int64_t row = 0; row < grid.tiles.down; ++row) {
    for (std::int64_t column = 0; column < grid.tiles.across; ++column) {
      const auto top = static_cast<Size>(row * side), left = static_cast<Size>(column * side);
      append_tile(image, part(canvas, top, left, static_cast<int>(side), static_cast<int>(side)), levels);
    }
  }
  return image;
}

std::vector<PreparedImage> prepare_all(std::span<const Picture> pictures, const ImageSpec& spec,
                                       const TileShape& shape, const std::optional<Tiling>& tiling) {
  std::vector<PreparedImage> images;
  for (const Picture& picture : pictures) {
    if (!tiling) {
      images.push_back(whole(visible(picture, spec), spec, shape, 0));
    } else if (tiling->several_whole && pictures.size() > 1) {
      images.push_back(whole(visible(square(picture, spec), spec), spec, shape, 1));
    } else {
      images.push_back(cut(picture, spec, shape, *tiling));
    }
  }
  return images;
}

}  // namespace

std::vector<PreparedImage> prepare(std::span<const Picture> pictures, const ImageSpec& spec,
                                   const TileShape& shape, const std::optional<Tiling>& tiling) {
  return within_memory<InputError>("a picture", "scale it down",
                                   [&] { return prepare_all(pictures, spec, shape, tiling); });
}

}  // namespace star
