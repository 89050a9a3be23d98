#include "text/fields.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "errors.hpp"
#include "text/unsupported.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

constexpr std::size_t kLongestShown = 40;

std::string written(const nlohmann::json& value, int depth);

std::string inner(const nlohmann::json& value, int depth) {
  if (depth > static_cast<int>(kLongestShown) / 2) return "...";  // too long to be shown
  std::string items;
  for (const auto& [key, item] : value.items()) {
    if (items.size() > 2 * kLongestShown) break;
    items += items.empty() ? "" : ", ";
    if (value.is_object()) items += utf8::repr(key) + ": ";
    items += written(item, depth + 1);
  }
  return value.is_object() ? "{" + items + "}" : "[" + items + "]";
}

std::string written(const nlohmann::json& value, int depth) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return utf8::repr(value.get_ref<const std::string&>());
  return value.is_structured() ? inner(value, depth) : value.dump();
}

}  // namespace

std::string_view json_kind(const nlohmann::json& value) {
  switch (value.type()) {
    case nlohmann::json::value_t::null:
      return "null";
    case nlohmann::json::value_t::boolean:
      return "bool";
    case nlohmann::json::value_t::string:
      return "str";
    case nlohmann::json::value_t::number_float:
      return "float";
    case nlohmann::json::value_t::array:
      return "array";
    case nlohmann::json::value_t::object:
      return "object";
    default:
      return "int";
  }
}

void refuse_part(const std::string& what, std::string_view expected) {
  throw Unsupported(what + " is not supported, expected " + std::string(expected));
}

std::string repr(const nlohmann::json& value) { return written(value, 0); }

void refuse_value(const nlohmann::json& value, const std::string& path, std::string_view expected) {
  const std::string found = value.is_null() ? "" : repr(value);
  const bool shown = !found.empty() && utf8::length(found) <= kLongestShown;
  throw BundleError(path + ": expected " + std::string(expected) + ", got " + std::string(json_kind(value)) +
                    (shown ? ", found " + found : ""));
}

const std::string& text_value(const nlohmann::json& value, const std::string& path) {
  if (!value.is_string()) refuse_value(value, path, "str");
  return value.get_ref<const std::string&>();
}

std::uint32_t number_value(const nlohmann::json& value, const std::string& path) {
  if (!value.is_number_integer()) refuse_value(value, path, "int");
  const auto refuse = [&](std::string_view bound) {
    throw BundleError(path + ": expected int " + std::string(bound) + ", found " + repr(value));
  };
  if (!value.is_number_unsigned()) refuse(">= 0");
  const auto number = value.get<std::uint64_t>();
  if (number > std::numeric_limits<std::uint32_t>::max()) refuse("<= 4294967295");
  return static_cast<std::uint32_t>(number);
}

Fields::Fields(const Json& object, std::string path) : object_(&object), path_(std::move(path)) {
  if (!object.is_object()) refuse_value(object, path_, "object");
}

std::string Fields::path(std::string_view key) const {
  return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

const Fields::Json* Fields::find(std::string_view key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

const Fields::Json& Fields::value(std::string_view key) const {
  const auto found = object_->find(key);
  if (found != object_->end()) return *found;
  const std::string prefix = path_.empty() ? "" : path_ + ": ";
  throw BundleError(prefix + "object missing required field " + std::string(key));
}

Fields Fields::object(std::string_view key) const { return Fields(value(key), path(key)); }

const Fields::Json& Fields::array(std::string_view key) const {
  const Json& found = value(key);
  if (!found.is_array()) refuse(key, "array");
  return found;
}

const std::string& Fields::text(std::string_view key) const { return text_value(value(key), path(key)); }

bool Fields::boolean(std::string_view key) const {
  const Json& found = value(key);
  if (!found.is_boolean()) refuse(key, "bool");
  return found.get<bool>();
}

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
  const std::string found = repr(value(key));
  throw BundleError(path(key) + ": invalid enum value '" + text(key) + "'" +
                    (utf8::length(found) <= kLongestShown ? ", found " + found : ""));
}

}  // namespace star
