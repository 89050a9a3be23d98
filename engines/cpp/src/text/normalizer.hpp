// The normalizer of a tokenizer: what it makes of a text before it is cut into words.
#pragma once

#include <functional>
#include <string>

#include "bundle/json.hpp"
#include "text/piece.hpp"

namespace star {

using Normalizer = std::function<void(Piece&)>;

// Raises BundleError for one that is damaged or not supported.
Normalizer read_normalizer(const Value& value, int depth = 0);

// Tokenizers hold parts in sequences of sequences; no published one goes deeper than this.
inline constexpr int kDeepest = 16;
void require_shallow(const Value& part, int depth);

}  // namespace star
