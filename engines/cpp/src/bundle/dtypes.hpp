// Element types of tensors, by Python's names.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>

namespace star {

enum class DType { kFloat32, kFloat16, kBfloat16, kInt64, kInt8, kUint8 };

struct DTypeRow {
  DType dtype;
  std::string_view name;
  std::size_t itemsize;
};

inline constexpr std::array<DTypeRow, 6> kDTypes{{{DType::kFloat32, "float32", 4},
                                                  {DType::kFloat16, "float16", 2},
                                                  {DType::kBfloat16, "bfloat16", 2},
                                                  {DType::kInt64, "int64", 8},
                                                  {DType::kInt8, "int8", 1},
                                                  {DType::kUint8, "uint8", 1}}};

constexpr const DTypeRow& row_of(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)]; }

// Bytes of a tensor, or nothing where no memory has so many.
constexpr std::optional<std::size_t> bytes_of(std::size_t itemsize, std::span<const std::int64_t> shape) {
  std::size_t bytes = itemsize;
  for (const std::int64_t size : shape) {
    const auto count = static_cast<std::size_t>(size);
    if (count != 0 && bytes > std::numeric_limits<std::size_t>::max() / count) return std::nullopt;
    bytes *= count;
  }
  return bytes;
}

constexpr std::optional<DType> dtype_named(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace star
