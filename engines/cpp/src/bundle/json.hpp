// JSON from files, every value of its own type: nothing is coerced, nothing unknown is dropped in silence.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace star {

using Json = nlohmann::json;

// The content of a file, or BundleError where it cannot be read or is larger than `most` bytes.
std::string read_file(const std::filesystem::path& path, std::size_t most);

// Throws BundleError if the text is no JSON, or is deeper than a program may follow.
Json parse_json(std::string_view text);

// What msgspec calls the kind of a value: str, int, null, ...
std::string_view json_kind(const Json& value);

// A value as Python's repr writes it, up to its first 41 characters or so.
std::string repr(const Json& value);

// One JSON value and where it stands. What is not as expected is a BundleError that begins with that path.
class Value {
 public:
  Value(const Json& json, std::string path) : json_(&json), path_(std::move(path)) {}

  const Json& json() const { return *json_; }
  const std::string& path() const { return path_; }
  bool is_null() const { return json_->is_null(); }

  std::int64_t integer(std::int64_t least, std::int64_t most) const;
  std::uint32_t token_id() const;
  // A float or an integer; both bounds are open, as those of a share or an epsilon.
  double number(double above, double below) const;
  bool boolean() const;
  const std::string& text() const;
  std::vector<Value> items() const;
  std::vector<std::pair<std::string, Value>> members() const;

  // Throws BundleError with this path, what was expected and what was found.
  [[noreturn]] void refuse(const std::string& expected) const;
  // The same for a value of another kind: "model.vocab: expected object, got str, found 'a'".
  [[noreturn]] void refuse_kind(std::string_view expected) const;

 private:
  void require(bool is_right, std::string_view kind) const;

  const Json* json_;
  std::string path_;
};

// A value's values by their keys.
class Object {
 public:
  explicit Object(const Value& value);

  const std::string& path() const { return value_.path(); }
  Value get(const std::string& key) const;
  // Nothing where the key is absent; a null is a value.
  std::optional<Value> find(const std::string& key) const;
  // Nothing where it is null, too.
  std::optional<Value> given(const std::string& key) const;
  bool boolean(const std::string& key, bool otherwise) const;
  // Refuses keys that nobody asked for.
  void done() const;

 private:
  Value value_;
  mutable std::vector<std::string> asked_;
};

// A value for a message, of which nobody reads more than the beginning.
std::string shortened(const std::string& text);

}  // namespace star
