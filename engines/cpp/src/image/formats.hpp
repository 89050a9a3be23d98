// What the readers of picture files share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "image/picture.hpp"

namespace star::formats {

using Bytes = std::span<const std::uint8_t>;

// What a file says about its orientation.
struct Metadata {
  std::optional<std::string> exif;
  std::string xmp;
};

struct Decoded {
  Picture picture;
  Metadata metadata;
  // JPEG: whether the header says its resolution. Pillow looks at EXIF early if not, and then forgives what
  // it cannot read.
  bool forgives_exif = false;
};

bool is_png(Bytes file);
bool is_jpeg(Bytes file);
Decoded read_png(Bytes file, std::string_view name);
Decoded read_jpeg(Bytes file, std::string_view name);

// The EXIF orientation, 1 if there is none; nothing if EXIF data is unreadable.
std::optional<int> orientation(const Metadata& metadata);

// Refuses pictures that are too large or too thin, before they are decoded.
void check_size(std::int64_t width, std::int64_t height, std::string_view name);

[[noreturn]] void cannot_decode(std::string_view name, std::string_view reason);

inline std::string_view text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline std::uint32_t big16(Bytes bytes, std::size_t at) {
  return std::uint32_t{bytes[at]} << 8 | bytes[at + 1];
}

inline std::uint32_t big32(Bytes bytes, std::size_t at) {
  return big16(bytes, at) << 16 | big16(bytes, at + 2);
}

}  // namespace star::formats
