#include "text/utf8.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "text/unicode_ranges.hpp"

namespace star::utf8 {
namespace {

struct Form {
  std::size_t size;
  char32_t bits;           // of the first byte
  unsigned char low, high;  // what the second byte lies between
};

// What a first byte asks for; size 0 where no character begins with it.
Form form(unsigned char first) {
  if (first < 0x80) return {1, first, 0, 0};
  if (first < 0xC2 || first > 0xF4) return {0, 0, 0, 0};
  if (first < 0xE0) return {2, first & 0x1Fu, 0x80, 0xBF};
  const auto low = static_cast<unsigned char>(first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80);
  const auto high = static_cast<unsigned char>(first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF);
  if (first < 0xF0) return {3, first & 0x0Fu, low, high};
  return {4, first & 0x07u, low, high};
}

template <std::size_t N>
bool contains(const Range (&ranges)[N], char32_t letter) {
  return std::any_of(ranges, ranges + N, [&](Range r) { return r.first <= letter && letter <= r.last; });
}

utf8proc_category_t category(char32_t letter) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(letter));
}

bool is_printable(char32_t letter) {
  if (letter == U' ') return true;
  switch (category(letter)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::string escaped(char32_t letter) {
  const auto code = static_cast<std::uint32_t>(letter);
  if (letter == U'\n') return "\\n";
  if (letter == U'\r') return "\\r";
  if (letter == U'\t') return "\\t";
  char written[16];
  const char* pattern = code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x";
  std::snprintf(written, sizeof written, pattern, static_cast<unsigned>(code));
  return written;
}

}  // namespace

Character at(std::string_view text, std::size_t byte) {
  const auto [size, bits, low, high] = form(static_cast<unsigned char>(text[byte]));
  if (size == 0) return {0, 1, false};
  char32_t letter = bits;
  for (std::size_t i = 1; i < size; ++i) {
    if (byte + i == text.size()) return {0, i, false};
    const auto next = static_cast<unsigned char>(text[byte + i]);
    if (next < (i == 1 ? low : 0x80) || next > (i == 1 ? high : 0xBF)) return {0, i, false};
    letter = (letter << 6) | (next & 0x3Fu);
  }
  return {letter, size, true};
}

bool is_valid(std::string_view text) {
  for (std::size_t byte = 0; byte < text.size();) {
    const Character found = at(text, byte);
    if (!found.valid) return false;
    byte += found.size;
  }
  return true;
}

std::string lossy(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (std::size_t byte = 0; byte < bytes.size();) {
    const Character found = at(bytes, byte);
    text += found.valid ? bytes.substr(byte, found.size) : "\uFFFD";
    byte += found.size;
  }
  return text;
}

void append(std::string& text, char32_t letter) {
  const auto byte = [&](char32_t bits) { text += static_cast<char>(static_cast<unsigned char>(bits)); };
  if (letter < 0x80) return byte(letter);
  if (letter < 0x800) {
    byte(0xC0 | (letter >> 6));
  } else if (letter < 0x10000) {
    byte(0xE0 | (letter >> 12));
    byte(0x80 | ((letter >> 6) & 0x3F));
  } else {
    byte(0xF0 | (letter >> 18));
    byte(0x80 | ((letter >> 12) & 0x3F));
    byte(0x80 | ((letter >> 6) & 0x3F));
  }
  byte(0x80 | (letter & 0x3F));
}

std::size_t length(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }));
}

std::size_t offset(std::string_view text, std::size_t characters) {
  std::size_t byte = 0;
  for (; characters > 0 && byte < text.size(); --characters) byte += at(text, byte).size;
  return byte;
}

bool is_space(char32_t letter) {
  return (letter >= 0x09 && letter <= 0x0D) || letter == 0x20 || letter == 0x85 || letter == 0xA0 ||
         letter == 0x1680 || (letter >= 0x2000 && letter <= 0x200A) || letter == 0x2028 || letter == 0x2029 ||
         letter == 0x202F || letter == 0x205F || letter == 0x3000;
}

bool is_python_space(char32_t letter) { return is_space(letter) || (letter >= 0x1C && letter <= 0x1F); }

bool is_number(char32_t letter) {
  const utf8proc_category_t found = category(letter);
  return found == UTF8PROC_CATEGORY_ND || found == UTF8PROC_CATEGORY_NL || found == UTF8PROC_CATEGORY_NO ||
         contains(kNewerNumbers, letter) || contains(kNewestNumbers, letter);
}

bool is_word(char32_t letter) {
  const utf8proc_category_t found = category(letter);
  const bool letters = found >= UTF8PROC_CATEGORY_LU && found <= UTF8PROC_CATEGORY_NL;  // L*, M*, Nd, Nl
  return letters || found == UTF8PROC_CATEGORY_PC || contains(kOtherWordLetters, letter) ||
         contains(kNewerLetters, letter);
}

std::string_view strip_end(std::string_view text) {
  while (!text.empty()) {
    std::size_t first = text.size() - 1;
    while (first > 0 && (text[first] & 0xC0) == 0x80) --first;
    if (!is_python_space(at(text, first).letter)) break;
    text.remove_suffix(text.size() - first);
  }
  return text;
}

std::string_view strip(std::string_view text) {
  while (!text.empty()) {
    const Character first = at(text, 0);
    if (!is_python_space(first.letter)) break;
    text.remove_prefix(first.size);
  }
  return strip_end(text);
}

std::string repr(std::string_view text) {
  const bool doubled = text.find('\'') != text.npos && text.find('"') == text.npos;
  const char quote = doubled ? '"' : '\'';
  std::string written(1, quote);
  for (std::size_t byte = 0; byte < text.size();) {
    const Character found = at(text, byte);
    const std::string_view bytes = text.substr(byte, found.size);
    if (bytes == "\\" || bytes == std::string_view(&quote, 1)) written += '\\';
    written += is_printable(found.letter) ? std::string(bytes) : escaped(found.letter);
    byte += found.size;
  }
  return written + quote;
}

}  // namespace star::utf8
