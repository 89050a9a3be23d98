#pragma once

#include "errors.hpp"

namespace star {

// A part of a tokenizer that Python's runtime has and this one has not.
struct Unsupported : BundleError {
  using BundleError::BundleError;
};

}  // namespace star
