#pragma once

#include <string>
#include <string_view>

#include "errors.hpp"

namespace star {

// A part of a tokenizer that Python's runtime has and this one has not.
struct Unsupported : BundleError {
  using BundleError::BundleError;
};

[[noreturn]] inline void refuse_part(const std::string& what, std::string_view expected) {
  throw Unsupported(what + " is not supported, expected " + std::string(expected));
}

}  // namespace star
