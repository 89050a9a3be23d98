// What was exported: the model's shape, its pruning, the cache capacities. Names and arithmetic are those of
// Python's star_export.specs.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bundle/dtypes.hpp"
#include "star/settings.hpp"

namespace star {

// How a family cuts pictures into tiles.
struct Tiling {
  std::vector<std::pair<std::int64_t, std::int64_t>> pinpoints;  // (height, width)
  std::optional<std::int64_t> max_grid;
  bool several_whole = false;
};

struct VisionSpec {
  std::string model_type;
  std::int64_t image_size = 0;
  std::int64_t patch_size = 0;
  std::int64_t num_layers = 0;
  std::vector<std::int64_t> feature_layers;
  bool has_cls = false;
  std::string feature_select;

  std::int64_t grid_side() const { return image_size / patch_size; }
  // Visual tokens that one tile gives: its patches, where CLS alone is left out.
  std::int64_t tile_tokens() const {
    return grid_side() * grid_side() + (has_cls ? 1 : 0) - (feature_select == "default" ? 1 : 0);
  }
};

struct TextSpec {
  std::int64_t hidden_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 0;
  std::optional<std::int64_t> sliding_window;
};

struct ModelSpec {
  std::string model_type;
  VisionSpec vision;
  TextSpec text;
  std::int64_t image_token_id = 0;
  std::vector<std::int64_t> eos_token_ids;
  std::optional<Tiling> tiling;
};

// The most that a request's pictures may have.
struct ImageLimits {
  std::int64_t max_images = 1;
  std::int64_t max_tiles = 1;
  std::int64_t max_image_tokens = 0;
};

// One place where visual tokens are dropped.
struct Stage {
  std::int64_t after_layer = 0;
  std::string score;
  std::int64_t tokens = 0;
  std::int64_t max_tokens = 0;
  std::optional<double> share;
  std::optional<double> mass;
};

struct Quantization {
  std::string type;
  std::int64_t block = 0;
  bool vision = false;
  bool embedding = false;
};

// Decoder layers, both ends included, whose KV caches have one length and room for `capacity` tokens.
struct LayerGroup {
  std::int64_t first = 0;
  std::int64_t last = 0;
  std::int64_t capacity = 0;

  bool operator==(const LayerGroup&) const = default;
};

struct ExportSpec {
  ModelSpec model;
  std::vector<Stage> schedule;
  ImageLimits images;
  std::int64_t max_text_tokens = 0;
  std::int64_t max_new_tokens = 0;
  std::int64_t append_tokens = 1;
  DType dtype = DType::kFloat32;
  bool proportional = false;
  std::optional<Quantization> quantization;
  bool fixed_capacities = false;

  // The stage before the decoder, or null.
  const Stage* stage1() const;
  // The stages inside the decoder; each ends a layer group.
  std::span<const Stage> decoder_stages() const;
  // Whether the last stage keeps fewer tokens than it may, as their scores are.
  bool adapts() const { return !schedule.empty() && schedule.back().mass.has_value(); }
  // Whether stage 1 is told how many tokens it drops of a picture: where it keeps a share of many.
  bool drops() const { return stage1() != nullptr && stage1()->share.has_value(); }

  // Visual tokens of one picture before any is pruned, of the largest where they differ.
  std::int64_t largest_image() const;
  // Visual tokens of one picture when the decoder starts, of the largest where they differ.
  std::int64_t image_tokens() const;
  // Visual tokens of a request when the decoder starts, at most.
  std::int64_t max_visual_tokens() const;
  // Tokens of text and answer that KV caches may have room for, besides the visual ones.
  std::int64_t room() const { return max_text_tokens + max_new_tokens; }
  std::vector<LayerGroup> groups() const;
  std::vector<std::int64_t> capacities() const;
  // Number of the group that a decoder layer belongs to.
  std::size_t group(std::int64_t layer) const;

  // Visual tokens of one picture when the decoder starts; `newlines` of its tokens end a row.
  std::int64_t entering(std::int64_t tokens, std::int64_t newlines = 0,
                        const std::optional<Keep>& keep = std::nullopt) const;
  // Budgets of every stage: those asked for, and the bundle's own. `image_tokens` is what the request has
  // before any is pruned; by default what the largest has.
  std::vector<std::int64_t> asked(const std::optional<Keep>& keep,
                                  std::optional<std::int64_t> image_tokens = std::nullopt) const;
  // Visual tokens that each stage inside the decoder keeps of `entering` ones.
  std::vector<std::int64_t> budgets(const std::optional<Keep>& keep = std::nullopt,
                                    std::optional<std::int64_t> entering = std::nullopt) const;
  // Tokens in each group's caches after a prompt.
  std::vector<std::int64_t> lengths(std::int64_t text_tokens, std::int64_t image_tokens,
                                    const std::optional<Keep>& keep = std::nullopt) const;
};

// A share of some tokens, rounded half up, at least 1.
std::int64_t share_of(double share, std::int64_t tokens);

// Visual tokens of one picture that the stage before the decoder keeps.
std::int64_t entering_tokens(const Stage& stage, std::int64_t tokens, std::int64_t newlines);

// What users and tensor names call a stage: 1 is the one before the decoder, 2 the first inside.
std::size_t stage_number(std::span<const Stage> schedule, std::size_t index);

// Throws SettingsError if the bundle cannot serve these budgets.
void check_keep(std::span<const Stage> schedule, const Keep& keep);

// Throws BundleError or SettingsError if values contradict each other.
void check_spec(const ExportSpec& spec);

}  // namespace star
