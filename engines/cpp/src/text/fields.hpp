// JSON objects of which every value is checked before it is used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "bundle/json.hpp"

namespace star {

// A part that Python's runtime has and this one has not.
[[noreturn]] void refuse_part(const std::string& what, std::string_view expected);

// An object's values by name. What is wrong with them is a BundleError that begins with their path, in the
// words of star_export/typed.py; the caller puts the file's name around it.
class Fields {
 public:
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

std::uint32_t number_value(const Json& value, const std::string& path);

}  // namespace star
