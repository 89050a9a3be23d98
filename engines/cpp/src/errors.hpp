// What can go wrong, in the kinds that Python's star_export.errors has.
#pragma once

#include <stdexcept>
#include <string>

namespace star {

enum class ErrorKind { kSettings, kBundle, kInput, kPlatform, kNonFinite, kCancelled };

// The message says what was expected, what was found and what to do, as Python's does.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

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

}  // namespace star
