// What can go wrong, in the kinds that Python's star_export.errors has.
#pragma once

#include <stdexcept>
#include <string>

#include "star/export.h"

namespace star {

enum class ErrorKind { kSettings, kBundle, kInput, kPlatform, kNonFinite, kCancelled };

// The message says what was expected, what was found and what to do, as Python's does.
class STAR_API Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& marked);
  ErrorKind kind() const noexcept { return kind_; }
  // The message with the names of options between U+FDD0 and U+FDD1, for front ends that have names of their
  // own.
  const std::string& marked() const noexcept { return marked_; }

 private:
  ErrorKind kind_;
  std::string marked_;
};

}  // namespace star
