#include "text/added_tokens.hpp"

#include <algorithm>
#include <utility>

#include "bundle/json.hpp"
#include "errors.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

// Where the character before a byte begins.
std::size_t before(std::string_view text, std::size_t byte) {
  do {
    --byte;
  } while (byte > 0 && (text[byte] & 0xC0) == 0x80);
  return byte;
}

std::size_t spaces_begin(std::string_view text, std::size_t end) {
  while (end > 0 && utf8::is_space(utf8::at(text, before(text, end)).letter)) end = before(text, end);
  return end;
}

std::size_t spaces_end(std::string_view text, std::size_t begin) {
  while (begin < text.size() && utf8::is_space(utf8::at(text, begin).letter)) {
    begin += utf8::at(text, begin).size;
  }
  return begin;
}

AddedToken read_token(const Object& token, const Normalizer& normalizer) {
  AddedToken read{token.get("content").text(),        "",
                  token.get("single_word").boolean(), token.get("lstrip").boolean(),
                  token.get("rstrip").boolean(),      token.get("normalized").boolean(),
                  token.get("special").boolean()};
  token.get("id").token_id();  // the library gives it another if it has to
  Piece written{read.content, 0, std::nullopt};
  if (read.normalized) normalizer(written);
  read.written = std::move(written.text);
  return read;
}

}  // namespace

AddedTokens::AddedTokens(const std::optional<Value>& list, const Bpe& model, const Normalizer& normalizer) {
  next_ = static_cast<std::uint32_t>(model.size());
  if (!list) return;
  for (const Value& token : list->items()) add(read_token(Object(token), normalizer), model);
  index(list->path());
}

void AddedTokens::add(AddedToken token, const Bpe& model) {
  if (token.content.empty()) return;
  auto id = find(token.content);
  if (!id) id = model.find(token.content);
  if (!id) id = next_++;
  ids_[token.content] = *id;
  if (token.special) special_.insert(token.content);
  tokens_[*id] = std::move(token);
}

void AddedTokens::index(const std::string& path) {
  for (const auto& [id, token] : tokens_) {
    if (token.written.empty() || !(token.normalized ? normalized_ : plain_).add(token.written, id)) {
      throw BundleError(path + ": " + utf8::repr(token.content) +
                        " is written as another token or as nothing");
    }
  }
}

const AddedToken* AddedTokens::token(std::uint32_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : &found->second;
}

std::optional<std::uint32_t> AddedTokens::find(std::string_view content) const {
  const auto found = ids_.find(std::string(content));
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

Pieces AddedTokens::cut(std::string_view text, const Normalizer& normalizer) const {
  Pieces pieces;
  if (text.empty()) return pieces;
  pieces.push_back({std::string(text), utf8::at(text, 0).size, std::nullopt});
  cut_pieces(pieces, [&](const Piece& piece) { return split(piece, plain_); });
  cut_pieces(pieces, [&](Piece piece) {
    normalizer(piece);
    return split(piece, normalized_);
  });
  return pieces;
}

Pieces AddedTokens::split(const Piece& piece, const Trie& trie) const {
  const std::string_view text = piece.text;
  Pieces pieces;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto found = trie.longest(text, at);
    if (!found) {
      ++at;
      continue;
    }
    std::size_t begin = at, end = at + found->first;
    at = end;
    const AddedToken& token = tokens_.at(found->second);
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.left_strip) begin = std::max(spaces_begin(text, begin), done);
    if (token.right_strip) end = spaces_end(text, end);
    if (done < begin) pieces.push_back(piece.part(done, begin));
    pieces.push_back({std::string(text.substr(begin, end - begin)), 0, found->second});
    done = end;
  }
  if (done != text.size()) pieces.push_back(piece.part(done, text.size()));
  return pieces;
}

bool AddedTokens::stands_alone(std::string_view text, std::size_t begin, std::size_t end) {
  const bool follows = begin > 0 && utf8::is_word(utf8::at(text, before(text, begin)).letter);
  const bool goes_on = end < text.size() && utf8::is_word(utf8::at(text, end).letter);
  return !follows && !goes_on;
}

bool AddedTokens::Trie::add(std::string_view content, std::uint32_t id) {
  std::size_t node = 0;
  for (const char byte : content) {
    const auto [found, is_new] = nodes_[node].next.try_emplace(byte, nodes_.size());
    node = found->second;
    if (is_new) nodes_.emplace_back();
  }
  return !std::exchange(nodes_[node].id, id).has_value();
}

std::optional<std::pair<std::size_t, std::uint32_t>> AddedTokens::Trie::longest(std::string_view text,
                                                                                std::size_t at) const {
  std::optional<std::pair<std::size_t, std::uint32_t>> found;
  std::size_t node = 0;
  for (std::size_t size = 0; at + size < text.size();) {
    const auto next = nodes_[node].next.find(text[at + size]);
    if (next == nodes_[node].next.end()) break;
    node = next->second;
    ++size;
    if (nodes_[node].id) found = {size, *nodes_[node].id};
  }
  return found;
}

}  // namespace star
