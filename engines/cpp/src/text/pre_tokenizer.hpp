// The pre-tokenizer: how a text is cut into words, across which no token reaches.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "text/fields.hpp"
#include "text/piece.hpp"

namespace star {

using PreTokenizer = std::function<void(Pieces&)>;

// Raises BundleError for one that is damaged or not supported.
PreTokenizer read_pre_tokenizer(const nlohmann::json& value, const std::string& path, int depth = 0);

// Where Metaspace, as pre-tokenizer and as decoder, has a space in front of a text.
struct Metaspace {
  enum class Prepend { kFirst, kNever, kAlways };

  explicit Metaspace(const Fields& part);

  std::string replacement;
  Prepend prepend = Prepend::kAlways;
  bool split = true;
};

}  // namespace star
