#include "text/normalizer.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <memory>

#include "bundle/json.hpp"
#include "errors.hpp"
#include "text/unicode_ranges.hpp"
#include "text/unsupported.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

bool is_normalized(char32_t letter) {
  return std::none_of(std::begin(utf8::kNotNormalized), std::end(utf8::kNotNormalized),
                      [&](utf8::Range range) { return range.first <= letter && letter <= range.last; });
}

std::string map_all(std::string_view text, utf8proc_option_t options) {
  utf8proc_uint8_t* mapped = nullptr;
  const auto size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                 static_cast<utf8proc_ssize_t>(text.size()), &mapped, options);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owned(mapped, std::free);
  if (size < 0) throw InputError(std::string("the prompt cannot be normalized: ") + utf8proc_errmsg(size));
  return {reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(size)};
}

// A normal form. Characters that it leaves alone are joints: nothing moves or joins across them.
std::string normal_form(std::string_view text, utf8proc_option_t options) {
  std::string result;
  std::size_t done = 0;
  for (std::size_t byte = 0; byte < text.size();) {
    const utf8::Character found = utf8::at(text, byte);
    if (found.letter >= 0x7FD && !is_normalized(found.letter)) {
      result += map_all(text.substr(done, byte - done), options);
      result += text.substr(byte, found.size);
      done = byte + found.size;
    }
    byte += found.size;
  }
  return result + map_all(text.substr(done), options);
}

Normalizer unicode(unsigned options) {
  return [options = static_cast<utf8proc_option_t>(options | UTF8PROC_STABLE)](Piece& piece) {
    const bool begins = piece.from_start > 0;
    std::size_t begun = normal_form(std::string_view(piece.text).substr(0, piece.from_start), options).size();
    piece.text = normal_form(piece.text, options);
    if (begins) begun = std::max(begun, utf8::at(piece.text, 0).size);  // marks may have joined it
    const auto is_inside = [&](std::size_t byte) {
      return byte < piece.text.size() && (piece.text[byte] & 0xC0) == 0x80;
    };
    while (is_inside(begun)) ++begun;  // of a character that later ones have joined
    piece.from_start = std::min(begun, piece.text.size());
  };
}

// Of characters newer than utf8proc's, as far as Rust knows them.
char32_t lower(char32_t letter) {
  if (letter >= 0x10D50 && letter <= 0x10D65) return letter + 0x20;
  if (letter >= 0x16EA0 && letter <= 0x16EB8) return letter + 0x1B;
  switch (letter) {
    case 0xA7CB:
      return 0x264;
    case 0xA7DC:
      return 0x19B;
    case 0x1C89:
    case 0xA7CC:
    case 0xA7CE:
    case 0xA7D2:
    case 0xA7D4:
    case 0xA7DA:
      return letter + 1;
    default:
      return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(letter)));
  }
}

void lowercase(Piece& piece) {
  std::string result;
  std::size_t begun = 0;
  for (std::size_t byte = 0; byte < piece.text.size();) {
    const utf8::Character found = utf8::at(piece.text, byte);
    utf8::append(result, found.letter == 0x130 ? U'i' : lower(found.letter));
    if (found.letter == 0x130) utf8::append(result, 0x307);
    byte += found.size;
    if (byte <= piece.from_start) begun = result.size();
  }
  piece.text = std::move(result);
  piece.from_start = begun;
}

Normalizer strip(bool left, bool right) {
  return [left, right](Piece& piece) {
    std::size_t begin = 0, end = piece.text.size();
    while (left && begin < end) {
      const utf8::Character first = utf8::at(piece.text, begin);
      if (!utf8::is_space(first.letter)) break;
      begin += first.size;
    }
    while (right && begin < end) {
      std::size_t last = end - 1;
      while ((piece.text[last] & 0xC0) == 0x80) --last;
      if (!utf8::is_space(utf8::at(piece.text, last).letter)) break;
      end = last;
    }
    piece = piece.part(begin, end);
  };
}

Normalizer sequence(const Object& part, int depth) {
  std::vector<Normalizer> steps;
  for (const Value& step : part.get("normalizers").items()) steps.push_back(read_normalizer(step, depth + 1));
  return [steps = std::move(steps)](Piece& piece) {
    for (const Normalizer& step : steps) step(piece);
  };
}

}  // namespace

void require_shallow(const Value& part, int depth) {
  if (depth > kDeepest) throw BundleError(part.path() + ": too many sequences inside of each other");
}

Normalizer read_normalizer(const Value& value, int depth) {
  require_shallow(value, depth);
  const Object part(value);
  const std::string& type = part.get("type").text();
  if (type == "Sequence") return sequence(part, depth);
  if (type == "NFC") return unicode(UTF8PROC_COMPOSE);
  if (type == "NFD") return unicode(UTF8PROC_DECOMPOSE);
  if (type == "NFKC") return unicode(UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
  if (type == "NFKD") return unicode(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  if (type == "Lowercase") return lowercase;
  if (type == "Strip") return strip(part.get("strip_left").boolean(), part.get("strip_right").boolean());
  if (type == "Prepend") {
    return [prefix = part.get("prepend").text()](Piece& piece) { piece.prepend(prefix); };
  }
  if (type == "Replace") {
    return [pattern = Pattern(part.get("pattern")), content = part.get("content").text()](Piece& piece) {
      piece.replace(pattern.find_all(piece.text), content);
    };
  }
  refuse_part(part.path() + ": the normalizer " + utf8::repr(type),
              "Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend or Replace");
}

}  // namespace star
