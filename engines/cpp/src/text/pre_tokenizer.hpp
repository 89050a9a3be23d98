// The pre-tokenizer: how a text is cut into words, across which no token reaches.
#pragma once

#include <functional>
#include <string>

#include "bundle/json.hpp"
#include "text/piece.hpp"

namespace star {

using PreTokenizer = std::function<void(Pieces&)>;

// Raises BundleError for one that is damaged or not supported.
PreTokenizer read_pre_tokenizer(const Value& value, int depth = 0);

// A text of one character. Raises BundleError for another.
std::string read_letter(const Value& value);

// Where Metaspace, as pre-tokenizer and as decoder, has a space in front of a text.
struct Metaspace {
  enum class Prepend { kFirst, kNever, kAlways };

  explicit Metaspace(const Object& part);

  std::string replacement;
  Prepend prepend = Prepend::kAlways;
  bool split = true;
};

}  // namespace star
