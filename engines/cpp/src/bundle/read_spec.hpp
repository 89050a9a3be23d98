// The spec of a manifest, read.
#pragma once

#include "bundle/json.hpp"
#include "bundle/spec.hpp"

namespace star {

// Throws BundleError with the path of what is not as expected.
ExportSpec read_spec(const Value& value);

}  // namespace star
