#include "text/piece.hpp"

#include <algorithm>

#include "errors.hpp"

namespace star {
namespace {

// A match is remembered in as many bytes as sixteen characters have.
constexpr std::size_t kLongestText = std::size_t{1} << 24;

}  // namespace

void require_sane(std::size_t size) {
  if (size > kLongestText) {
    throw InputError("the bundle's tokenizer cannot encode this prompt: it makes a text of more than " +
                     std::to_string(kLongestText) + " bytes of it");
  }
}

Piece Piece::part(std::size_t begin, std::size_t end) const {
  const std::size_t begun = begin < from_start ? std::min(from_start, end) - begin : 0;
  return {text.substr(begin, end - begin), begun, std::nullopt};
}

void Piece::prepend(std::string_view prefix) {
  if (text.empty()) return;
  require_sane(text.size() + prefix.size());
  text.insert(0, prefix);
  if (from_start > 0) from_start += prefix.size();
}

void Piece::replace(const std::vector<Match>& matches, std::string_view content) {
  if (matches.empty()) return;
  std::string replaced;
  std::size_t begun = 0, done = 0;
  const auto keep = [&](std::size_t end) {
    replaced.append(text, done, end - done);
    begun += done < from_start ? std::min(from_start, end) - done : 0;
  };
  for (const auto [begin, end] : matches) {
    keep(begin);
    replaced += content;
    if (end <= from_start || end == 0) begun += content.size();
    done = end;
    require_sane(replaced.size());
  }
  keep(text.size());
  text = std::move(replaced);
  from_start = begun;
}

}  // namespace star
