// The orientation of a picture, from EXIF or XMP, in the cases that Pillow reads.
#include <cmath>
#include <cstring>

#include "image/formats.hpp"

namespace star::formats {
namespace {

constexpr std::uint32_t kOrientation = 274;

// Bytes of one value of each TIFF type, 0 for types that are skipped.
constexpr std::uint64_t kTypeBytes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};

// The TIFF structure that EXIF data is.
class Tiff {
 public:
  Tiff(Bytes bytes, bool little) : bytes_(bytes), little_(little) {}

  bool has(std::uint64_t at, std::uint64_t count) const {
    return at <= bytes_.size() && count <= bytes_.size() - at;
  }
  // `count` bytes as an unsigned number; `has` says that they are there.
  std::uint64_t number(std::uint64_t at, std::size_t count) const {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < count; ++i) {
      value = value << 8 | bytes_[static_cast<std::size_t>(at) + (little_ ? count - 1 - i : i)];
    }
    return value;
  }
  std::uint64_t size() const { return bytes_.size(); }

 private:
  Bytes bytes_;
  bool little_;
};

std::int64_t as_signed(std::uint64_t value, unsigned bits) {
  const unsigned shift = 64 - bits;
  return static_cast<std::int64_t>(value << shift) >> shift;
}

// A whole number from 2 to 8, else 1: anything else turns nothing.
int turning(double value) {
  return value >= 2 && value <= 8 && value == std::floor(value) ? static_cast<int>(value) : 1;
}

template <typename Float, typename Bits>
double as_float(std::uint64_t value) {
  const auto bits = static_cast<Bits>(value);
  Float result;
  static_assert(sizeof result == sizeof bits);
  std::memcpy(&result, &bits, sizeof result);
  return static_cast<double>(result);
}

// The first value of an entry, whatever type of number it has.
int orientation_value(const Tiff& tiff, std::uint64_t type, std::uint64_t at) {
  switch (type) {
    case 3:
      return turning(static_cast<double>(tiff.number(at, 2)));
    case 4:
    case 13:
      return turning(static_cast<double>(tiff.number(at, 4)));
    case 16:
      return turning(static_cast<double>(tiff.number(at, 8)));
    case 6:
      return turning(static_cast<double>(as_signed(tiff.number(at, 1), 8)));
    case 8:
      return turning(static_cast<double>(as_signed(tiff.number(at, 2), 16)));
    case 9:
      return turning(static_cast<double>(as_signed(tiff.number(at, 4), 32)));
    case 5:
    case 10: {
      const unsigned bits = type == 5 ? 33 : 32;  // 33: of an unsigned number, none is the sign.
      const std::int64_t top = as_signed(tiff.number(at, 4), bits);
      const std::int64_t bottom = as_signed(tiff.number(at + 4, 4), bits);
      const std::int64_t whole = bottom == 0 ? 0 : top / bottom;
      return bottom != 0 && whole * bottom == top ? turning(static_cast<double>(whole)) : 1;
    }
    case 11:
      return turning(as_float<float, std::uint32_t>(tiff.number(at, 4)));
    case 12:
      return turning(as_float<double, std::uint64_t>(tiff.number(at, 8)));
    default:
      return 1;  // Bytes and text are no number.
  }
}

// The orientation in the first directory, 0 if it has none. Entries are read until one is cut off.
int directory_orientation(const Tiff& tiff, std::uint64_t at) {
  if (!tiff.has(at, 2)) return 0;
  const std::uint64_t entries = tiff.number(at, 2);
  std::uint64_t elsewhere = 0;
  at += 2;
  for (std::uint64_t i = 0; i < entries && tiff.has(at, 12); ++i, at += 12) {
    const std::uint64_t tag = tiff.number(at, 2), type = tiff.number(at + 2, 2);
    if (type >= std::size(kTypeBytes) || kTypeBytes[type] == 0) continue;
    const std::uint64_t size = tiff.number(at + 4, 4) * kTypeBytes[type];
    std::uint64_t value = at + 8;
    if (size > 4) {
      elsewhere += size;
      if (elsewhere > tiff.size()) continue;
      value = tiff.number(at + 8, 4);
      if (!tiff.has(value, size)) return 0;
    }
    if (tag == kOrientation && size > 0) return orientation_value(tiff, type, value);
  }
  return 0;
}

// As `orientation`, of EXIF data alone; 0 if it does not say.
std::optional<int> exif_orientation(std::string_view exif) {
  constexpr std::string_view kPrefix("Exif\0\0", 6);
  for (int i = 0; i < 2 && exif.starts_with(kPrefix); ++i) exif.remove_prefix(kPrefix.size());
  if (exif.empty()) return 0;
  if (exif.size() < 8) return std::nullopt;
  const std::string_view head = exif.substr(0, 4);
  const bool little = head == std::string_view("II\x2a\0", 4) || head == std::string_view("II\0\x2a", 4);
  const bool big = head == std::string_view("MM\0\x2a", 4) || head == std::string_view("MM\x2a\0", 4);
  if (!little && !big) return std::nullopt;
  const Tiff tiff({reinterpret_cast<const std::uint8_t*>(exif.data()), exif.size()}, little);
  return directory_orientation(tiff, tiff.number(4, 4));
}

int xmp_orientation(std::string_view xmp) {
  constexpr std::string_view kTag = "tiff:Orientation";
  for (std::size_t at = xmp.find(kTag); at != std::string_view::npos; at = xmp.find(kTag, at + 1)) {
    std::string_view rest = xmp.substr(at + kTag.size());
    if (rest.starts_with("=\"")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with(">")) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return 1;
}

}  // namespace

std::optional<int> orientation(const Metadata& metadata) {
  const std::optional<int> found = metadata.exif ? exif_orientation(*metadata.exif) : 0;
  if (!found || *found != 0) return found;
  return xmp_orientation(metadata.xmp);
}

}  // namespace star::formats
