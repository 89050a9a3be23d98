// The kinds of star::Error by name, and options in their messages.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "star/error.hpp"

namespace star {

struct SettingsError : Error {
  explicit SettingsError(const std::string& message) : Error(ErrorKind::kSettings, message) {}
};
struct BundleError : Error {
  explicit BundleError(const std::string& message) : Error(ErrorKind::kBundle, message) {}
};
struct InputError : Error {
  explicit InputError(const std::string& message) : Error(ErrorKind::kInput, message) {}
};
struct PlatformError : Error {
  explicit PlatformError(const std::string& message) : Error(ErrorKind::kPlatform, message) {}
};

// An option in an error's text, marked so that a command line can put its flag there: `keep`, or `keep=`
// before its value.
std::string option(std::string_view name);

// A text with its marked options as `spell` has them.
std::string spelled(std::string_view marked, const std::function<std::string(const std::string&)>& spell);

}  // namespace star
