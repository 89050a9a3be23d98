// JSON objects of which every value is checked before it is used.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace star {

// A part that Python's runtime has and this one has not.
[[noreturn]] void refuse_part(const std::string& what, std::string_view expected);

// An object's values by name. What is wrong with them is a BundleError that begins with their path, in the
// words of star_export/typed.py; the caller puts the file's name around it.
class Fields {
 public:
  using Json = nlohmann::json;

  Fields(const Json& object, std::string path);

  const std::string& path() const { return path_; }
  std::string path(std::string_view key) const;

  bool has(std::string_view key) const { return find(key) != nullptr; }  // and it is not null
  bool contains(std::string_view key) const { return object_->contains(std::string(key)); }
  const Json& value(std::string_view key) const;
  Fields object(std::string_view key) const;
  const Json& array(std::string_view key) const;
  const std::string& text(std::string_view key) const;
  bool boolean(std::string_view key) const;
  bool boolean(std::string_view key, bool otherwise) const;
  std::uint32_t number(std::string_view key) const;
  char32_t letter(std::string_view key) const;  // a text of one character

  // Refuse names that are not among these.
  void require_known(std::initializer_list<std::string_view> names) const;

  [[noreturn]] void refuse(std::string_view key, std::string_view expected) const;
  [[noreturn]] void refuse_choice(std::string_view key) const;  // a text that is none of those it may be

 private:
  const Json* find(std::string_view key) const;

  const Json* object_;
  std::string path_;
};

// Refuse a value: "model.vocab: expected object, got str, found 'a'".
[[noreturn]] void refuse_value(const nlohmann::json& value, const std::string& path,
                               std::string_view expected);

const std::string& text_value(const nlohmann::json& value, const std::string& path);
std::uint32_t number_value(const nlohmann::json& value, const std::string& path);

// What msgspec calls the kind of a value: str, int, null, ...
std::string_view json_kind(const nlohmann::json& value);

// A value as Python's repr writes it, up to its first 41 characters or so.
std::string repr(const nlohmann::json& value);

}  // namespace star
