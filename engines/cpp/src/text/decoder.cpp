#include "text/decoder.hpp"

#include <charconv>
#include <optional>
#include <utility>

#include "bundle/json.hpp"
#include "text/byte_level.hpp"
#include "text/expression.hpp"
#include "text/normalizer.hpp"
#include "text/piece.hpp"
#include "text/pre_tokenizer.hpp"
#include "text/unsupported.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

using Tokens = std::vector<std::string>;

std::string joined(const Tokens& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

// The byte of a token like <0xE7>.
std::optional<char> byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) return std::nullopt;
  std::string_view digits = token.substr(3, 2);
  if (digits.starts_with('+')) digits.remove_prefix(1);  // as Rust reads numbers
  unsigned byte = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), byte, 16);
  if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
  return static_cast<char>(static_cast<unsigned char>(byte));
}

// A run of bytes is a text as a whole or not at all.
void byte_fallback(Tokens& tokens) {
  Tokens result;
  std::string bytes;
  const auto flush = [&] {
    if (utf8::is_valid(bytes)) {
      if (!bytes.empty()) result.push_back(bytes);
    } else {
      result.insert(result.end(), bytes.size(), "\uFFFD");
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const auto byte = byte_of(token)) {
      bytes += *byte;
    } else {
      flush();
      result.push_back(std::move(token));
    }
  }
  flush();
  tokens = std::move(result);
}

void byte_level(Tokens& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) bytes += letters_as_bytes(token).value_or(token);
  tokens = {utf8::lossy(bytes)};
}

Decoder read_metaspace(const Object& part) {
  return [meta = Metaspace(part)](Tokens& tokens) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const bool dropped = i == 0 && meta.prepend != Metaspace::Prepend::kNever;
      Piece piece{std::move(tokens[i]), 0, std::nullopt};
      piece.replace(find_literal(piece.text, meta.replacement), dropped ? "" : " ");
      tokens[i] = std::move(piece.text);
    }
  };
}

Decoder read_replace(const Object& part) {
  return [pattern = Pattern(part.get("pattern")), content = part.get("content").text()](Tokens& tokens) {
    for (std::string& token : tokens) {
      Piece piece{std::move(token), 0, std::nullopt};
      piece.replace(pattern.find_all(piece.text), content);
      token = std::move(piece.text);
    }
  };
}

Decoder read_strip(const Object& part) {
  return [content = read_letter(part.get("content")), start = part.get("start").token_id(),
          stop = part.get("stop").token_id()](Tokens& tokens) {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      const std::size_t size = content.size();
      for (std::uint32_t i = 0; i < start && rest.starts_with(content); ++i) rest.remove_prefix(size);
      for (std::uint32_t i = 0; i < stop && rest.ends_with(content); ++i) rest.remove_suffix(size);
      token = std::string(rest);
    }
  };
}

Decoder sequence(const Object& part, int depth) {
  std::vector<Decoder> steps;
  for (const Value& step : part.get("decoders").items()) steps.push_back(read_decoder(step, depth + 1));
  return [steps = std::move(steps)](Tokens& tokens) {
    for (const Decoder& step : steps) step(tokens);
  };
}

}  // namespace

Decoder read_decoder(const Value& value, int depth) {
  require_shallow(value, depth);
  const Object part(value);
  const std::string& type = part.get("type").text();
  if (type == "Sequence") return sequence(part, depth);
  if (type == "Replace") return read_replace(part);
  if (type == "ByteFallback") return byte_fallback;
  if (type == "Fuse") return [](Tokens& tokens) { tokens = {joined(tokens)}; };
  if (type == "Strip") return read_strip(part);
  if (type == "ByteLevel") return byte_level;
  if (type == "Metaspace") return read_metaspace(part);
  refuse_part(part.path() + ": the decoder " + utf8::repr(type),
              "Sequence, Replace, ByteFallback, Fuse, Strip, ByteLevel or Metaspace");
}

}  // namespace star
