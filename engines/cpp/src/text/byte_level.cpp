#include "text/byte_level.hpp"

#include <array>

#include "text/utf8.hpp"

namespace star {
namespace {

struct Alphabet {
  std::array<std::string, 256> letters;          // of each byte
  std::array<std::optional<char>, 512> bytes{};  // of each letter

  Alphabet() {
    char32_t next = 256;  // what is not printable in Latin-1 follows behind it
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      const char32_t letter = printable ? byte : next++;
      utf8::append(letters[byte], letter);
      bytes[letter] = static_cast<char>(static_cast<unsigned char>(byte));
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet made;
  return made;
}

}  // namespace

std::string bytes_as_letters(std::string_view bytes) {
  std::string letters;
  letters.reserve(2 * bytes.size());
  for (const char byte : bytes) letters += alphabet().letters[static_cast<unsigned char>(byte)];
  return letters;
}

std::optional<std::string> letters_as_bytes(std::string_view letters) {
  std::string bytes;
  for (std::size_t at = 0; at < letters.size();) {
    const utf8::Character found = utf8::at(letters, at);
    if (found.letter >= alphabet().bytes.size() || !alphabet().bytes[found.letter]) return std::nullopt;
    bytes += *alphabet().bytes[found.letter];
    at += found.size;
  }
  return bytes;
}

}  // namespace star
