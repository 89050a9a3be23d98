// Pieces of a text on their way to tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/expression.hpp"

namespace star {

struct Piece {
  std::string text;
  // Leading bytes that were made of the first character of the whole text; none in later pieces.
  std::size_t from_start = 0;
  std::optional<std::uint32_t> token;  // of an added token

  Piece part(std::size_t begin, std::size_t end) const;
  void prepend(std::string_view prefix);
  // As prepend, raises InputError where texts grow beyond all sense.
  void replace(const std::vector<Match>& matches, std::string_view content);
};

// Raises InputError for texts of more bytes than any prompt has.
void require_sane(std::size_t size);

using Pieces = std::vector<Piece>;

// Put what `cut` makes of each piece that is no token in its place, without empty ones.
template <typename Cut>
void cut_pieces(Pieces& pieces, Cut cut) {
  Pieces result;
  result.reserve(pieces.size());
  for (Piece& piece : pieces) {
    if (piece.token) {
      result.push_back(std::move(piece));
      continue;
    }
    for (Piece& part : cut(std::move(piece))) {
      if (!part.text.empty()) result.push_back(std::move(part));
    }
  }
  pieces = std::move(result);
}

}  // namespace star
