// Tokens beside the model's: what they are found by in a text, before it is cut into words.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "text/bpe.hpp"
#include "text/normalizer.hpp"
#include "text/piece.hpp"

namespace star {

struct AddedToken {
  std::string content;
  std::string written;  // the normalizer's form of it, if it is found in normalized text
  bool single_word, left_strip, right_strip, normalized, special;
};

class AddedTokens {
 public:
  AddedTokens() = default;
  // Raises BundleError for damaged ones.
  AddedTokens(const std::optional<Value>& list, const Bpe& model, const Normalizer& normalizer);

  // A text in pieces: tokens, and normalized texts between them.
  Pieces cut(std::string_view text, const Normalizer& normalizer) const;

  const AddedToken* token(std::uint32_t id) const;
  std::optional<std::uint32_t> find(std::string_view content) const;
  bool is_special(const std::string& written) const { return special_.contains(written); }

 private:
  // Finds the longest token that begins at a place.
  class Trie {
   public:
    Trie() : nodes_(1) {}
    bool add(std::string_view content, std::uint32_t id);  // false if it is there
    std::optional<std::pair<std::size_t, std::uint32_t>> longest(std::string_view text, std::size_t at) const;

   private:
    struct Node {
      std::map<char, std::size_t> next;
      std::optional<std::uint32_t> id;
    };
    std::vector<Node> nodes_;
  };

  void add(AddedToken token, const Bpe& model);
  void index(const std::string& path);
  Pieces split(const Piece& piece, const Trie& trie) const;
  static bool stands_alone(std::string_view text, std::size_t begin, std::size_t end);

  std::map<std::uint32_t, AddedToken> tokens_;
  std::unordered_map<std::string, std::uint32_t> ids_;
  std::unordered_set<std::string> special_;
  std::uint32_t next_ = 0;  // id of the next that is not in the model's vocabulary
  Trie plain_, normalized_;
};

}  // namespace star
