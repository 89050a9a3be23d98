// The decoder: tokens back to text.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace star {

using Decoder = std::function<void(std::vector<std::string>&)>;

// Raises BundleError for one that is damaged or not supported.
Decoder read_decoder(const nlohmann::json& value, const std::string& path, int depth = 0);

}  // namespace star
