// The post-processor: tokens around those of a text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle/json.hpp"

namespace star {

// What a template has, in order: the text's tokens in the place of nothing.
using PostProcessor = std::vector<std::optional<std::uint32_t>>;

// Raises BundleError for one that is damaged or not supported.
PostProcessor read_post_processor(const Value& value);

}  // namespace star
