// Host values in a bundle's element type.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "session/session.hpp"

namespace star {

// Rounds float32 values to a bundle's element type, ties to even.
HostArray to_device_dtype(std::span<const float> values, std::vector<std::int64_t> shape, DType dtype);

}  // namespace star
