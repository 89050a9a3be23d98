#include "image/picture.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "errors.hpp"
#include "image/formats.hpp"
#include "memory.hpp"

namespace star {
namespace formats {
namespace {

// Pillow's limit against decompression bombs.
constexpr std::int64_t kBombPixels = 178'956'970;

std::string sides(std::int64_t width, std::int64_t height) {
  return std::to_string(width) + "x" + std::to_string(height);
}

}  // namespace

void cannot_decode(std::string_view name, std::string_view reason) {
  throw InputError(std::string(name) + " cannot be decoded: " + std::string(reason) +
                   "; give another picture");
}

void check_size(std::int64_t width, std::int64_t height, std::string_view name) {
  const std::string picture(name);
  if (std::min(width, height) < 1) {
    throw InputError(picture + " is " + sides(width, height) +
                     ", expected 1x1 pixels at least; give another picture");
  }
  const std::int64_t limit = kMaxPixels;
  // Divided, as the product of two 32-bit sides may be too large.
  if (width > kBombPixels / height) {
    throw InputError(picture + " has too many pixels; the limit is " + std::to_string(limit));
  }
  if (width * height > limit) {
    throw InputError(picture + " is " + sides(width, height) + ", over the limit of " +
                     std::to_string(limit) + " pixels; scale it down");
  }
  if (std::max(width, height) > kMaxAspectRatio * std::min(width, height)) {
    throw InputError(picture + " is " + sides(width, height) + "; sides may differ by " +
                     std::to_string(kMaxAspectRatio) + "x at most");
  }
}

}  // namespace formats

namespace {

struct Turn {
  bool transposed;  // Columns become rows, before the mirroring.
  bool mirrored_across;
  bool mirrored_down;
};

// By EXIF orientation, from 1 on.
constexpr Turn kTurns[] = {
    {false, false, false}, {false, true, false}, {false, true, true}, {false, false, true},
    {true, false, false},  {true, true, false},  {true, true, true},  {true, false, true},
};

Picture upright(Picture picture, int orientation) {
  if (orientation < 2 || orientation > 8) return picture;
  const Turn turn = kTurns[orientation - 1];
  const auto width = static_cast<std::size_t>(turn.transposed ? picture.height : picture.width);
  const auto height = static_cast<std::size_t>(turn.transposed ? picture.width : picture.height);
  const auto source_width = static_cast<std::size_t>(picture.width);
  Picture turned{static_cast<int>(width), static_cast<int>(height), {}};
  turned.rgb.resize(picture.rgb.size());
  for (std::size_t y = 0; y < height; ++y) {
    const std::size_t from_y = turn.mirrored_down ? height - 1 - y : y;
    for (std::size_t x = 0; x < width; ++x) {
      const std::size_t from_x = turn.mirrored_across ? width - 1 - x : x;
      const std::size_t from =
          turn.transposed ? from_x * source_width + from_y : from_y * source_width + from_x;
      std::memcpy(&turned.rgb[(y * width + x) * 3], &picture.rgb[from * 3], 3);
    }
  }
  return turned;
}

Picture read(std::span<const std::uint8_t> file, std::string_view name) {
  const bool png = formats::is_png(file);
  if (!png && !formats::is_jpeg(file)) {
    throw InputError(
        std::string(name) +
        " is not a picture that can be read here: expected JPEG or PNG; convert it to one of them");
  }
  formats::Decoded decoded = png ? formats::read_png(file, name) : formats::read_jpeg(file, name);
  const std::optional<int> orientation = formats::orientation(decoded.metadata);
  if (!orientation && !decoded.forgives_exif) formats::cannot_decode(name, "its EXIF data is unreadable");
  return upright(std::move(decoded.picture), orientation.value_or(1));
}

}  // namespace

Picture read_picture(std::span<const std::uint8_t> file, std::string_view name) {
  return within_memory<InputError>(name, "scale it down", [&] { return read(file, name); });
}

}  // namespace star
