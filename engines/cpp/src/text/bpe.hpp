// Byte-pair encoding: a word to tokens of a vocabulary.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bundle/json.hpp"

namespace star {

class Bpe {
 public:
  // Of "model" in a tokenizer's file. Raises BundleError for one that is damaged or not supported.
  explicit Bpe(const Object& model);
  Bpe(const Bpe&) = delete;
  Bpe& operator=(const Bpe&) = delete;

  // Append a word's tokens.
  void encode(std::string_view word, std::vector<std::uint32_t>& ids) const;

  std::optional<std::uint32_t> find(std::string_view token) const;
  const std::string* token(std::uint32_t id) const;
  std::size_t size() const { return ids_.size(); }

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  struct Merge {
    std::uint32_t rank, id;
  };
  struct PairHash {
    std::size_t operator()(std::uint64_t pair) const {
      pair *= 0x9E3779B97F4A7C15u;  // spreads neighbouring ids, which a table by remainders would not
      return pair ^ (pair >> 32);
    }
  };

  void read_vocab(const Object& model);
  void read_merges(const Object& model);
  void add_merge(std::string_view left, std::string_view right, std::uint32_t rank);
  std::uint32_t required(std::string_view token) const;
  const Merge* merge(std::uint32_t left, std::uint32_t right) const;
  std::vector<std::uint32_t> symbols(std::string_view word) const;
  bool append_bytes(std::string_view letter, std::vector<std::uint32_t>& ids) const;
  void merge_all(std::vector<std::uint32_t>& ids) const;

  std::unordered_map<std::string, std::uint32_t, Hash, std::equal_to<>> ids_;
  std::unordered_map<std::uint32_t, const std::string*> tokens_;  // names in ids_
  std::unordered_map<std::uint64_t, Merge, PairHash> merges_;
  std::string unknown_;  // empty: what has no token is left out
  bool fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;
};

}  // namespace star
