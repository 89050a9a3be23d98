// Picture files as upright RGB, pixel for pixel as Pillow and Python's `load_image` give them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace star {

// Pictures with more pixels are refused before they are decoded.
#ifdef STAR_FUZZ
inline constexpr std::int64_t kMaxPixels = 1 << 20;  // A fuzzer's time is for what is read.
#else
inline constexpr std::int64_t kMaxPixels = 100'000'000;
#endif
// Longest allowed side over shortest: resizing a sliver would need gigabytes.
inline constexpr int kMaxAspectRatio = 200;

// RGB, row by row.
struct Picture {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;
};

// A JPEG or PNG file, turned upright by its EXIF orientation, transparent places on white. `name` is what
// errors call it: its path, or "the picture". Throws InputError if it is no such file, is damaged, or is too
// large or too thin.
Picture read_picture(std::span<const std::uint8_t> file, std::string_view name);

}  // namespace star
