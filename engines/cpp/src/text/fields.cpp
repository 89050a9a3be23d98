#include "text/fields.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "errors.hpp"
#include "text/unsupported.hpp"
#include "text/utf8.hpp"

namespace star {

void refuse_part(const std::string& what, std::string_view expected) {
  throw Unsupported(what + " is not supported, expected " + std::string(expected));
}

std::uint32_t number_value(const Json& value, const std::string& path) {
  return static_cast<std::uint32_t>(Value(value, path).integer(0, std::numeric_limits<std::uint32_t>::max()));
}

Fields::Fields(const Json& object, std::string path) : object_(&object), path_(std::move(path)) {
  if (!object.is_object()) refuse_value(object, path_, "object");
}

std::string Fields::path(std::string_view key) const {
  return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

const Json* Fields::find(std::string_view key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

const Json& Fields::value(std::string_view key) const {
  const auto found = object_->find(key);
  if (found != object_->end()) return *found;
  const std::string prefix = path_.empty() ? "" : path_ + ": ";
  throw BundleError(prefix + "object missing required field " + std::string(key));
}

Fields Fields::object(std::string_view key) const { return Fields(value(key), path(key)); }

const Json& Fields::array(std::string_view key) const {
  const Json& found = value(key);
  if (!found.is_array()) refuse(key, "array");
  return found;
}

const std::string& Fields::text(std::string_view key) const { return Value(value(key), path(key)).text(); }

bool Fields::boolean(std::string_view key) const { return Value(value(key), path(key)).boolean(); }

bool Fields::boolean(std::string_view key, bool otherwise) const {
  return has(key) ? boolean(key) : otherwise;
}

std::uint32_t Fields::number(std::string_view key) const { return number_value(value(key), path(key)); }

char32_t Fields::letter(std::string_view key) const {
  const std::string& found = text(key);
  if (utf8::length(found) != 1) refuse(key, "one character");
  return utf8::at(found, 0).letter;
}

void Fields::require_known(std::initializer_list<std::string_view> names) const {
  for (const auto& [key, _] : object_->items()) {
    if (std::find(names.begin(), names.end(), key) == names.end()) {
      throw BundleError(path(key) + ": unknown to this version");
    }
  }
}

void Fields::refuse(std::string_view key, std::string_view expected) const {
  refuse_value(value(key), path(key), expected);
}

void Fields::refuse_choice(std::string_view key) const {
  Value(value(key), path(key)).refuse("invalid enum value '" + text(key) + "'");
}

}  // namespace star
