#include "text/bpe.hpp"

#include <array>
#include <cstdio>
#include <limits>
#include <queue>
#include <tuple>

#include "errors.hpp"
#include "text/unsupported.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// Two neighbours that a merge applies to; the lowest rank comes first, of equals the leftmost.
struct Candidate {
  std::uint32_t rank, at, id;
  bool operator>(const Candidate& other) const { return std::tie(rank, at) > std::tie(other.rank, other.at); }
};

struct Symbol {
  std::uint32_t id, previous, next;
  bool merged = false;  // into the one before it
};

std::vector<Symbol> linked(const std::vector<std::uint32_t>& ids) {
  std::vector<Symbol> symbols;
  symbols.reserve(ids.size());
  for (std::uint32_t at = 0; at < ids.size(); ++at) {
    symbols.push_back({ids[at], at == 0 ? kNone : at - 1, at + 1 == ids.size() ? kNone : at + 1});
  }
  return symbols;
}

void require_empty(const std::optional<Value>& part) {
  if (part && !part->text().empty()) refuse_part(part->path() + " " + utf8::repr(part->text()), "none");
}

}  // namespace

Bpe::Bpe(const Object& model) {
  if (const auto type = model.given("type"); type && type->text() != "BPE") {
    refuse_part(model.path() + ": the model " + utf8::repr(type->text()), "BPE");
  }
  require_empty(model.given("continuing_subword_prefix"));
  require_empty(model.given("end_of_word_suffix"));
  if (const auto dropout = model.given("dropout"); dropout && dropout->json() != 0) {
    refuse_part(dropout->path() + " " + repr(dropout->json()), "none");
  }
  if (const auto unknown = model.given("unk_token")) unknown_ = unknown->text();
  fuse_unknown_ = model.boolean("fuse_unk", false);
  byte_fallback_ = model.boolean("byte_fallback", false);
  ignore_merges_ = model.boolean("ignore_merges", false);
  read_vocab(model);
  read_merges(model);
}

void Bpe::read_vocab(const Object& model) {
  const Value vocab = model.get("vocab");
  const Json& values = vocab.json();
  if (!values.is_object()) vocab.refuse_kind("object");
  ids_.reserve(values.size());
  tokens_.reserve(values.size());
  for (auto item = values.begin(); item != values.end(); ++item) {
    const bool whole = item->is_number_unsigned();
    const std::uint32_t id = Value(*item, whole ? vocab.path() : vocab.path() + "." + item.key()).token_id();
    tokens_[id] = &ids_.emplace(item.key(), id).first->first;
  }
}

void Bpe::read_merges(const Object& model) {
  const Value list = model.get("merges");
  const Json& merges = list.json();
  if (!merges.is_array()) list.refuse_kind("array");
  merges_.reserve(merges.size());
  std::uint32_t rank = 0;
  for (const Json& merge : merges) {
    const Value value(merge, list.path());
    if (merge.is_string()) {
      const std::string_view line = merge.get_ref<const std::string&>();
      if (line.starts_with("#version")) continue;
      const std::size_t space = line.find(' ');
      if (space == line.npos || line.find(' ', space + 1) != line.npos) {
        value.refuse_kind("two tokens with a space between them");
      }
      add_merge(line.substr(0, space), line.substr(space + 1), rank++);
    } else if (merge.is_array() && merge.size() == 2) {
      add_merge(Value(merge[0], list.path()).text(), Value(merge[1], list.path()).text(), rank++);
    } else {
      value.refuse_kind("two tokens");
    }
  }
}

void Bpe::add_merge(std::string_view left, std::string_view right, std::uint32_t rank) {
  const std::uint64_t pair = (std::uint64_t{required(left)} << 32) | required(right);
  merges_[pair] = {rank, required(std::string(left) + std::string(right))};
}

std::uint32_t Bpe::required(std::string_view token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) {
    throw BundleError("model.merges: the token " + utf8::repr(token) + " is not in the vocabulary");
  }
  return found->second;
}

const Bpe::Merge* Bpe::merge(std::uint32_t left, std::uint32_t right) const {
  const auto found = merges_.find((std::uint64_t{left} << 32) | right);
  return found == merges_.end() ? nullptr : &found->second;
}

std::optional<std::uint32_t> Bpe::find(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

const std::string* Bpe::token(std::uint32_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : found->second;
}

void Bpe::encode(std::string_view word, std::vector<std::uint32_t>& ids) const {
  if (ignore_merges_) {
    if (const auto whole = find(word)) return ids.push_back(*whole);
  }
  std::vector<std::uint32_t> found = symbols(word);
  merge_all(found);
  ids.insert(ids.end(), found.begin(), found.end());
}

std::vector<std::uint32_t> Bpe::symbols(std::string_view word) const {
  std::vector<std::uint32_t> ids;
  std::uint32_t unknowns = 0;  // that are not yet in ids: they wait for a character that has a token
  const auto flush = [&] {
    if (unknowns > 0) ids.push_back(*find(unknown_));
    unknowns = 0;
  };
  for (std::size_t byte = 0; byte < word.size();) {
    const std::string_view letter = word.substr(byte, utf8::at(word, byte).size);
    byte += letter.size();
    if (const auto id = find(letter)) {
      flush();
      ids.push_back(*id);
    } else if (!(byte_fallback_ && append_bytes(letter, ids)) && !unknown_.empty()) {
      if (!find(unknown_)) {
        throw InputError("the bundle's tokenizer cannot encode this prompt: its unknown token " +
                         utf8::repr(unknown_) + " is not in its vocabulary");
      }
      if (!fuse_unknown_) flush();
      ++unknowns;
    }
  }
  flush();
  return ids;
}

bool Bpe::append_bytes(std::string_view letter, std::vector<std::uint32_t>& ids) const {
  std::array<std::uint32_t, 4> found{};
  for (std::size_t i = 0; i < letter.size(); ++i) {
    std::array<char, 8> name{};
    std::snprintf(name.data(), name.size(), "<0x%02X>", static_cast<unsigned char>(letter[i]));
    const auto id = find(name.data());
    if (!id) return false;
    found[i] = *id;
  }
  ids.insert(ids.end(), found.begin(), found.begin() + static_cast<std::ptrdiff_t>(letter.size()));
  return true;
}

void Bpe::merge_all(std::vector<std::uint32_t>& ids) const {
  std::vector<Symbol> symbols = linked(ids);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto consider = [&](std::uint32_t at) {
    if (at == kNone || symbols[at].next == kNone) return;
    if (const Merge* found = merge(symbols[at].id, symbols[symbols[at].next].id)) {
      queue.push({found->rank, at, found->id});
    }
  };
  for (std::uint32_t at = 0; at < symbols.size(); ++at) consider(at);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.at];
    if (left.merged || left.next == kNone) continue;
    Symbol& right = symbols[left.next];
    const Merge* still = merge(left.id, right.id);
    if (still == nullptr || still->id != best.id) continue;  // one of them was merged since
    left.id = best.id;
    left.next = right.next;
    right.merged = true;
    if (left.next != kNone) symbols[left.next].previous = best.at;
    consider(left.previous);
    consider(best.at);
  }
  ids.clear();
  for (const Symbol& symbol : symbols) {
    if (!symbol.merged) ids.push_back(symbol.id);
  }
}

}  // namespace star
