#include "text/pre_tokenizer.hpp"

#include <algorithm>
#include <utility>

#include "errors.hpp"
#include "text/byte_level.hpp"
#include "text/normalizer.hpp"
#include "text/unsupported.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

constexpr std::string_view kGpt2Words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// All of a text, in order: what matches and what stands between.
struct Stretch {
  std::size_t begin, end;
  bool matches;
};

std::vector<Stretch> stretches(const std::vector<Match>& matches, std::size_t size) {
  std::vector<Stretch> all;
  std::size_t done = 0;
  for (const auto [begin, end] : matches) {
    if (done != begin) all.push_back({done, begin, false});
    all.push_back({begin, end, true});
    done = end;
  }
  if (done != size) all.push_back({done, size, false});
  return all;
}

// Whether a stretch goes on where the one before it, in the direction of merging, ended.
bool joins(Behavior behavior, bool matches, bool before) {
  return behavior == Behavior::kContiguous ? matches == before : matches && !before;
}

std::vector<Stretch> merged(std::vector<Stretch> all, Behavior behavior) {
  const bool backwards = behavior == Behavior::kMergedWithNext;
  if (backwards) std::reverse(all.begin(), all.end());
  std::vector<Stretch> result;
  bool before = false;
  for (const Stretch& next : all) {
    if (joins(behavior, next.matches, before) && !result.empty()) {
      (backwards ? result.back().begin : result.back().end) = backwards ? next.begin : next.end;
    } else {
      result.push_back(next);
    }
    before = next.matches;
  }
  if (backwards) std::reverse(result.begin(), result.end());
  return result;
}

Pieces cut(const Piece& piece, const std::vector<Match>& matches, Behavior behavior, bool invert = false) {
  std::vector<Stretch> all = stretches(matches, piece.text.size());
  if (invert) {
    for (Stretch& stretch : all) stretch.matches = !stretch.matches;
  }
  if (behavior == Behavior::kRemoved) {
    std::erase_if(all, [](const Stretch& stretch) { return stretch.matches; });
  } else if (behavior != Behavior::kIsolated) {
    all = merged(std::move(all), behavior);
  }
  Pieces pieces;
  pieces.reserve(all.size());
  for (const auto [begin, end, _] : all) pieces.push_back(piece.part(begin, end));
  return pieces;
}

Behavior read_behavior(const Object& part) {
  const std::string& name = part.get("behavior").text();
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  part.get("behavior").refuse_kind("Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

PreTokenizer read_split(const Object& part) {
  return [pattern = Pattern(part.get("pattern")), behavior = read_behavior(part),
          invert = part.get("invert").boolean()](Pieces& pieces) {
    cut_pieces(pieces, [&](const Piece& piece) {
      return cut(piece, pattern.find_all(piece.text), behavior, invert);
    });
  };
}

PreTokenizer read_byte_level(const Object& part) {
  static const Expression words(kGpt2Words);
  part.get("trim_offsets").boolean();  // says where tokens stand in the text, which nobody asks for
  return [prefix = part.get("add_prefix_space").boolean(),
          cuts = part.boolean("use_regex", true)](Pieces& pieces) {
    cut_pieces(pieces, [&](Piece&& piece) {
      if (prefix && !piece.text.starts_with(' ')) piece.prepend(" ");
      return cuts ? cut(piece, words.find_all(piece.text), Behavior::kIsolated) : Pieces{std::move(piece)};
    });
    for (Piece& piece : pieces) {
      if (piece.token) continue;
      require_sane(2 * piece.text.size());
      piece.from_start = bytes_as_letters(std::string_view(piece.text).substr(0, piece.from_start)).size();
      piece.text = bytes_as_letters(piece.text);
    }
  };
}

PreTokenizer read_metaspace(const Object& part) {
  return [meta = Metaspace(part)](Pieces& pieces) {
    cut_pieces(pieces, [&](Piece&& piece) {
      piece.replace(find_literal(piece.text, " "), meta.replacement);
      const bool prepends = meta.prepend == Metaspace::Prepend::kAlways ||
                            (meta.prepend == Metaspace::Prepend::kFirst && piece.from_start > 0);
      if (prepends && !piece.text.starts_with(meta.replacement)) piece.prepend(meta.replacement);
      if (!meta.split) return Pieces{std::move(piece)};
      return cut(piece, find_literal(piece.text, meta.replacement), Behavior::kMergedWithNext);
    });
  };
}

std::vector<Match> find_digits(std::string_view text) {
  std::vector<Match> matches;
  for (std::size_t byte = 0; byte < text.size();) {
    const utf8::Character found = utf8::at(text, byte);
    if (utf8::is_number(found.letter)) matches.push_back({byte, byte + found.size});
    byte += found.size;
  }
  return matches;
}

PreTokenizer read_digits(const Object& part) {
  const auto behavior = part.get("individual_digits").boolean() ? Behavior::kIsolated : Behavior::kContiguous;
  return [behavior](Pieces& pieces) {
    cut_pieces(pieces, [&](const Piece& piece) { return cut(piece, find_digits(piece.text), behavior); });
  };
}

PreTokenizer sequence(const Object& part, int depth) {
  std::vector<PreTokenizer> steps;
  for (const Value& step : part.get("pretokenizers").items()) {
    steps.push_back(read_pre_tokenizer(step, depth + 1));
  }
  return [steps = std::move(steps)](Pieces& pieces) {
    for (const PreTokenizer& step : steps) step(pieces);
  };
}

}  // namespace

std::string read_letter(const Value& value) {
  if (utf8::length(value.text()) != 1) value.refuse_kind("one character");
  return value.text();
}

Metaspace::Metaspace(const Object& part)
    : replacement(read_letter(part.get("replacement"))), split(part.boolean("split", true)) {
  if (const auto name = part.given("prepend_scheme")) {
    const std::string& scheme = name->text();
    if (scheme != "first" && scheme != "never" && scheme != "always") {
      name->refuse_kind("first, never or always");
    }
    prepend = scheme == "first" ? Prepend::kFirst : scheme == "never" ? Prepend::kNever : Prepend::kAlways;
  }
  if (!part.boolean("add_prefix_space", true) && prepend != Prepend::kNever) {
    part.get("add_prefix_space").refuse_kind("true, or the prepend_scheme never beside it");
  }
}

PreTokenizer read_pre_tokenizer(const Value& value, int depth) {
  require_shallow(value, depth);
  const Object part(value);
  const std::string& type = part.get("type").text();
  if (type == "Sequence") return sequence(part, depth);
  if (type == "Split") return read_split(part);
  if (type == "ByteLevel") return read_byte_level(part);
  if (type == "Metaspace") return read_metaspace(part);
  if (type == "Digits") return read_digits(part);
  refuse_part(part.path() + ": the pre-tokenizer " + utf8::repr(type),
              "Sequence, Split, ByteLevel, Metaspace or Digits");
}

}  // namespace star
