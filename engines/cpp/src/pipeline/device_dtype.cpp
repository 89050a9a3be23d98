#include "pipeline/device_dtype.hpp"

#include <bit>
#include <cmath>
#include <cstring>

namespace star {
namespace {

std::uint16_t bfloat16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  // Rounding would carry some NaNs into infinity.
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

std::uint16_t float16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7c00 | 0x200 | (size >> 13 & 0x3ff));
  if (size >= 0x47800000) return static_cast<std::uint16_t>(sign | 0x7c00);
  if (size >= 0x38800000) {  // normal in both; rounding carries into the exponent, and so up to infinity
    const std::uint32_t moved = size - 0x38000000;
    return static_cast<std::uint16_t>(sign | (moved + 0xfff + (moved >> 13 & 1)) >> 13);
  }
  // Adding 0.5 leaves what a subnormal has of multiples of 2**-24 in the low bits, rounded to even.
  const float sum = std::bit_cast<float>(size) + 0.5F;
  return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(sum) - 0x3f000000));
}

}  // namespace

HostArray to_device_dtype(std::span<const float> values, std::vector<std::int64_t> shape, DType dtype) {
  HostArray array{dtype, std::move(shape), std::vector<std::byte>(values.size() * row_of(dtype).itemsize)};
  if (dtype == DType::kFloat32) {
    std::memcpy(array.data.data(), values.data(), array.data.size());
    return array;
  }
  std::byte* place = array.data.data();
  for (const float value : values) {
    const std::uint16_t bits = dtype == DType::kBfloat16 ? bfloat16_bits(value) : float16_bits(value);
    std::memcpy(place, &bits, sizeof bits);
    place += sizeof bits;
  }
  return array;
}

}  // namespace star
