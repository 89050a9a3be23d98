// Names, shapes and dtypes of every tensor that crosses a graph's border.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/dtypes.hpp"
#include "bundle/spec.hpp"

namespace star {

inline constexpr std::int64_t kContractVersion = 1;

inline constexpr std::string_view kVision = "vision", kPrefill = "prefill", kDecode = "decode";
inline constexpr std::array<std::string_view, 3> kGraphs{kVision, kPrefill, kDecode};

inline constexpr std::string_view kPixelValues = "pixel_values", kStage1Slots = "stage1_slots",
                                  kStage1Drops = "stage1_drops", kPackedIndex = "packed_index",
                                  kPackedWeights = "packed_weights", kImageFeatures = "image_features",
                                  kImageIndices = "image_indices", kInputIds = "input_ids",
                                  kImagePositions = "image_positions", kQueryPositions = "query_positions",
                                  kPositionIds = "position_ids", kLogits = "logits",
                                  kKeptPositions = "kept_positions";

// Patches that a visual token is made of where a grid may be scaled down.
inline constexpr std::int64_t kTaps = 4;

// A size, or an expression of symbolic sizes such as `S - V + N2`.
struct Dim {
  std::int64_t size = 0;
  std::string symbol;  // empty where the size is a number

  Dim(std::int64_t number) : size(number) {}          // NOLINT(google-explicit-constructor)
  Dim(std::string name) : symbol(std::move(name)) {}  // NOLINT(google-explicit-constructor)
  Dim(const char* name) : symbol(name) {}             // NOLINT(google-explicit-constructor)
};

// One graph input or output.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<Dim> shape;
  bool is_length = false;  // whether only its length is read

  std::string describe() const;
};

// What crosses one graph's border.
struct GraphSpec {
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::map<std::string, std::string> aliases;  // by output, the input whose memory it takes

  // Outputs with memory of their own.
  std::vector<std::string> plain_outputs() const;
  // The inputs that are written in place.
  std::vector<TensorSpec> caches() const;
};

// What a symbolic size may be; without `max` only memory limits it.
struct SizeRange {
  std::int64_t min = 1;
  std::optional<std::int64_t> max;
  std::optional<std::int64_t> default_size;
};

using Contract = std::map<std::string, GraphSpec, std::less<>>;

// The three graphs' inputs and outputs.
Contract contract_of(const ExportSpec& spec);
// What every symbolic size may be.
std::map<std::string, SizeRange> size_ranges(const ExportSpec& spec);

// Inputs of prefill, one for each stage inside the decoder.
std::vector<std::string> decoder_slots(const ExportSpec& spec);
// Outputs of prefill: the prompt positions that are left after each stage inside the decoder.
std::vector<std::string> kept_names(const ExportSpec& spec);
// `early`; of the last of several groups `late`; between them `group2`, ...
std::vector<std::string> group_names(const ExportSpec& spec);
// Inputs of decode, one for each layer group: tokens in its caches.
std::vector<std::string> lengths_names(const ExportSpec& spec);
// The size of each layer group's caches: `L1`, `L2`, ...
std::vector<std::string> capacity_symbols(const ExportSpec& spec);

}  // namespace star
