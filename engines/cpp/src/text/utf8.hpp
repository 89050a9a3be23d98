// UTF-8 and the few classes of characters that tokenizers and Python's str know.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace star::utf8 {

// A character, or the bytes at its place that are none.
struct Character {
  char32_t letter = 0;
  std::size_t size = 0;  // bytes; of an invalid one those that a valid one might have begun with
  bool valid = false;
};

// The character at a byte that lies inside of the text.
Character at(std::string_view text, std::size_t byte);

bool is_valid(std::string_view text);

// With U+FFFD for every part that is no character, as Rust's from_utf8_lossy.
std::string lossy(std::string_view bytes);

void append(std::string& text, char32_t letter);

// Characters of a valid text, as Python's len.
std::size_t length(std::string_view text);

// The byte at which a character of a valid text begins; the text's size where it has fewer.
std::size_t offset(std::string_view text, std::size_t characters);

// Unicode's White_Space: what expressions call \s.
bool is_space(char32_t letter);

// White space as Python's str.strip sees it.
bool is_python_space(char32_t letter);

// General categories N* and, for words, what \w is of.
bool is_number(char32_t letter);
bool is_word(char32_t letter);

// A valid text without Python's white space at its ends.
std::string_view strip_end(std::string_view text);
std::string_view strip(std::string_view text);

// A valid text as Python's repr writes it.
std::string repr(std::string_view text);

}  // namespace star::utf8
