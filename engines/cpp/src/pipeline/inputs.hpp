// What a request gives to the graphs: plain arrays, from pictures and prompts.
#pragma once

#include <cstdint>
#include <vector>

namespace star {

// A picture, ready for the vision graph.
struct ImageInputs {
  std::vector<float> pixels;  // [tiles, 3, H, W]
  std::int64_t tiles = 1;
  std::int64_t tokens = 0;    // visual tokens, before any is pruned
  std::int64_t newlines = 0;  // how many of them end a row
  // Of a family that cuts pictures: [tokens], or [tokens, 4] and its weights where a grid may be scaled down.
  std::vector<std::int64_t> packed_index;
  std::vector<float> packed_weights;
};

// A prompt, ready for the prefill graph.
struct PromptInputs {
  std::vector<std::int64_t> input_ids;        // image places hold the image token id
  std::vector<std::int64_t> image_positions;  // places of the visual tokens
  std::vector<std::int64_t> query_positions;  // text tokens after the last image; all of them without one

  std::int64_t text_tokens() const {
    return static_cast<std::int64_t>(input_ids.size()) - static_cast<std::int64_t>(image_positions.size());
  }
};

}  // namespace star
