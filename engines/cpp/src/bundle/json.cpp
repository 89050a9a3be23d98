#include "bundle/json.hpp"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "errors.hpp"
#include "memory.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

constexpr std::size_t kLongestShown = 40;
// As deep as Python's reader goes, about; what walks through values calls itself.
constexpr int kDeepest = 500;

std::string named(const std::string& path) { return path.empty() ? "" : path + ": "; }

// The value in words; nothing when it is long.
std::string found(const Json& value) {
  if (value.is_null()) return "";
  const std::string text = repr(value);
  return utf8::length(text) > kLongestShown ? "" : ", found " + text;
}

std::string written(const Json& value, int depth) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return utf8::repr(value.get_ref<const std::string&>());
  if (!value.is_structured()) return value.dump();
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

bool is_deep(std::string_view text) {
  int depth = 0;
  bool is_string = false;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '"') is_string = !is_string;
    if (is_string && c == '\\') ++at;
    if (is_string) continue;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (depth > kDeepest) return true;
  }
  return false;
}

std::string spelled(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

}  // namespace

std::string read_file(const std::filesystem::path& path, std::size_t most) {
  std::error_code failure;
  // To open a pipe would wait for who writes into it.
  const bool is_file = std::filesystem::is_regular_file(path, failure);
  const auto size = is_file ? std::filesystem::file_size(path, failure) : 0;
  std::ifstream file(is_file ? path : std::filesystem::path(), std::ios::binary);
  if (!file || failure) throw BundleError(path.string() + " cannot be read; copy or build the bundle again");
  if (size > most) {
    throw BundleError(path.string() + " has " + std::to_string(size) + " bytes, expected at most " +
                      std::to_string(most) + "; build the bundle again");
  }
  std::string content(static_cast<std::size_t>(size), '\0');
  file.read(content.data(), static_cast<std::streamsize>(size));
  content.resize(static_cast<std::size_t>(std::max<std::streamsize>(0, file.gcount())));
  return content;
}

Json parse_json(std::string_view text) {
  if (is_deep(text)) throw BundleError("it is not JSON: lists are too deep inside of each other");
  // The parser would take it for the end, and say nothing of what comes behind.
  if (text.find('\0') != text.npos) throw BundleError("it is not JSON: it has a NUL");
  try {
    return within_memory<BundleError>("it", "free some", [text] { return Json::parse(text); });
  } catch (const Json::exception& error) {
    throw BundleError("it is not JSON: " + utf8::lossy(error.what()));
  }
}

std::string_view json_kind(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "bool";
    case Json::value_t::string:
      return "str";
    case Json::value_t::number_float:
      return "float";
    case Json::value_t::array:
      return "array";
    case Json::value_t::object:
      return "object";
    default:
      return "int";
  }
}

std::string repr(const Json& value) { return written(value, 0); }

void Value::refuse(const std::string& expected) const {
  throw BundleError(named(path_) + expected + found(*json_));
}

void Value::refuse_kind(std::string_view expected) const {
  throw BundleError(named(path_) + "expected " + std::string(expected) + ", got " +
                    std::string(json_kind(*json_)) + found(*json_));
}

void Value::require(bool is_right, std::string_view kind) const {
  if (!is_right) refuse_kind(kind);
}

std::int64_t Value::integer(std::int64_t least, std::int64_t most) const {
  require(json_->is_number_integer(), "int");
  constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  const bool is_huge = json_->is_number_unsigned() && json_->get<std::uint64_t>() > kLargest;
  if (is_huge || json_->get<std::int64_t>() > most) refuse("expected int <= " + std::to_string(most));
  const auto value = json_->get<std::int64_t>();
  if (value < least) refuse("expected int >= " + std::to_string(least));
  return value;
}

std::uint32_t Value::token_id() const {
  return static_cast<std::uint32_t>(integer(0, std::numeric_limits<std::uint32_t>::max()));
}

double Value::number(double above, double below) const {
  require(json_->is_number(), "float");
  const auto value = json_->get<double>();
  if (!(value > above)) refuse("expected float > " + spelled(above));
  if (!(value < below)) refuse("expected float < " + spelled(below));
  return value;
}

bool Value::boolean() const {
  require(json_->is_boolean(), "bool");
  return json_->get<bool>();
}

const std::string& Value::text() const {
  require(json_->is_string(), "str");
  return json_->get_ref<const std::string&>();
}

std::vector<Value> Value::items() const {
  require(json_->is_array(), "array");
  std::vector<Value> items;
  items.reserve(json_->size());
  for (const Json& item : *json_) items.emplace_back(item, path_ + "[" + std::to_string(items.size()) + "]");
  return items;
}

std::vector<std::pair<std::string, Value>> Value::members() const {
  require(json_->is_object(), "object");
  std::vector<std::pair<std::string, Value>> members;
  const std::string prefix = path_.empty() ? "" : path_ + ".";
  for (const auto& [key, value] : json_->items()) members.emplace_back(key, Value(value, prefix + key));
  return members;
}

Object::Object(const Value& value) : value_(value) {
  if (!value.json().is_object()) value.refuse_kind("object");
}

Value Object::get(const std::string& key) const {
  if (auto value = find(key)) return *value;
  throw BundleError(named(value_.path()) + "object missing required field " + key);
}

std::optional<Value> Object::find(const std::string& key) const {
  asked_.push_back(key);
  const auto member = value_.json().find(key);
  if (member == value_.json().end()) return std::nullopt;
  return Value(*member, value_.path().empty() ? key : value_.path() + "." + key);
}

std::optional<Value> Object::given(const std::string& key) const {
  auto value = find(key);
  return value && value->is_null() ? std::nullopt : value;
}

bool Object::boolean(const std::string& key, bool otherwise) const {
  const auto value = given(key);
  return value ? value->boolean() : otherwise;
}

void Object::done() const {
  for (const auto& [key, value] : value_.members()) {
    if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) {
      throw BundleError(value.path() + ": unknown to this version");
    }
  }
}

std::string shortened(const std::string& text) {
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

}  // namespace star
