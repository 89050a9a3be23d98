// The decoder: tokens back to text.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bundle/json.hpp"

namespace star {

using Decoder = std::function<void(std::vector<std::string>&)>;

// Raises BundleError for one that is damaged or not supported.
Decoder read_decoder(const Value& value, int depth = 0);

}  // namespace star
