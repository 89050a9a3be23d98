// Regular expressions of tokenizers, and texts that are searched for as they are.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/json.hpp"

namespace star {

struct Match {
  std::size_t begin = 0, end = 0;
};

class Expression {
 public:
  // Raises BundleError for syntax that PCRE2 reads differently than the tokenizers library's Oniguruma.
  explicit Expression(std::string_view pattern);

  // All matches in a valid text, as Oniguruma finds them: none is empty where another ends.
  std::vector<Match> find_all(std::string_view text) const;

 private:
  std::shared_ptr<const void> code_;
};

// {"String": ...} or {"Regex": ...} of a tokenizer's file.
class Pattern {
 public:
  explicit Pattern(const Value& value);

  std::vector<Match> find_all(std::string_view text) const;

 private:
  std::string literal_;  // empty where there is an expression
  std::shared_ptr<const Expression> expression_;
};

std::vector<Match> find_literal(std::string_view text, std::string_view literal);

}  // namespace star
