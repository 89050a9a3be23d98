#include "bundle/contract.hpp"

#include <set>

#include "bundle/tiling.hpp"

namespace star {
namespace {

using std::to_string;

std::string text_of(std::string_view name) { return std::string(name); }

std::string numbered(std::string name, std::size_t number) {
  name += to_string(number);
  return name;
}

// Stages inside the decoder are numbered from 2.
std::string staged(std::string name, std::size_t index, std::string_view end = "") {
  return numbered(std::move(name), index + 2).append(end);
}

std::int64_t feature_channels(const ExportSpec& spec) {
  return spec.model.text.hidden_size + (spec.proportional ? 1 : 0);
}

// A picture is one tile, and its tokens are what the tower gives.
GraphSpec whole_vision(const ExportSpec& spec) {
  const std::int64_t size = spec.model.vision.image_size, channels = feature_channels(spec);
  GraphSpec graph;
  graph.inputs = {{text_of(kPixelValues), spec.dtype, {1, 3, size, size}}};
  if (spec.stage1() == nullptr) {
    graph.outputs = {{text_of(kImageFeatures), spec.dtype, {1, spec.image_tokens(), channels}}};
    return graph;
  }
  graph.inputs.push_back({text_of(kStage1Slots), DType::kInt64, {"N1"}, true});
  graph.outputs = {{text_of(kImageFeatures), spec.dtype, {1, "N1", channels}},
                   {text_of(kImageIndices), DType::kInt64, {1, "N1"}}};
  return graph;
}

// All tiles of a picture are one batch, and its tokens are what the host packs of their patches.
GraphSpec tiled_vision(const ExportSpec& spec) {
  const std::int64_t size = spec.model.vision.image_size;
  GraphSpec graph;
  graph.inputs = {{text_of(kPixelValues), spec.dtype, {"T", 3, size, size}}};
  if (!spec.model.tiling->max_grid) {
    graph.inputs.push_back({text_of(kPackedIndex), DType::kInt64, {"P"}});
  } else {
    graph.inputs.push_back({text_of(kPackedIndex), DType::kInt64, {"P", kTaps}});
    graph.inputs.push_back({text_of(kPackedWeights), DType::kFloat32, {"P", kTaps}});
  }
  const Dim kept = spec.stage1() == nullptr ? "P" : spec.drops() ? "P - D1" : "N1";
  graph.outputs = {{text_of(kImageFeatures), spec.dtype, {1, kept, feature_channels(spec)}}};
  if (spec.stage1() != nullptr) {
    const bool drops = spec.drops();
    graph.inputs.push_back(
        {text_of(drops ? kStage1Drops : kStage1Slots), DType::kInt64, {drops ? "D1" : "N1"}, true});
    graph.outputs.push_back({text_of(kImageIndices), DType::kInt64, {1, kept}});
  }
  return graph;
}

void add_cache(GraphSpec& graph, const std::string& past, const std::string& present,
               const TensorSpec& like) {
  graph.inputs.push_back({past, like.dtype, like.shape});
  graph.outputs.push_back({present, like.dtype, like.shape});
  graph.aliases[present] = past;
}

// A graph of the decoder writes every layer's KV caches in place, and for proportional attention also, per
// layer group, what is added at the keys.
void add_caches(GraphSpec& graph, const ExportSpec& spec, const Dim& batch) {
  const TextSpec& text = spec.model.text;
  std::vector<Dim> capacities;
  if (spec.fixed_capacities) {
    for (const std::int64_t capacity : spec.capacities()) capacities.emplace_back(capacity);
  } else {
    for (const std::string& symbol : capacity_symbols(spec)) capacities.emplace_back(symbol);
  }
  for (std::int64_t layer = 0; layer < text.num_layers; ++layer) {
    const Dim& capacity = capacities[spec.group(layer)];
    for (const char* part : {".key", ".value"}) {
      const std::string name = to_string(layer) + part;
      add_cache(graph, "past_key_values." + name, "present." + name,
                {"", spec.dtype, {batch, text.num_kv_heads, capacity, text.head_dim}});
    }
  }
  if (!spec.proportional) return;
  const std::vector<std::string> names = group_names(spec);
  for (std::size_t group = 0; group < names.size(); ++group) {
    add_cache(graph, "past_key_bias." + names[group], "present_key_bias." + names[group],
              {"", spec.dtype, {batch, 1, capacities[group], 1}});
  }
}

GraphSpec prefill(const ExportSpec& spec) {
  GraphSpec graph;
  graph.inputs = {{text_of(kInputIds), DType::kInt64, {1, "S"}},
                  {text_of(kImageFeatures), spec.dtype, {1, "V", feature_channels(spec)}},
                  {text_of(kImagePositions), DType::kInt64, {1, "V"}}};
  graph.outputs = {{text_of(kLogits), DType::kFloat32, {1, spec.model.text.vocab_size}}};
  if (!spec.decoder_stages().empty()) {
    graph.inputs.push_back({text_of(kQueryPositions), DType::kInt64, {1, "Q"}});
  }
  const std::vector<std::string> slots = decoder_slots(spec), kept = kept_names(spec);
  for (std::size_t index = 0; index < slots.size(); ++index) {
    const std::string budget = staged("N", index);
    graph.inputs.push_back({slots[index], DType::kInt64, {budget}, true});
    graph.outputs.push_back({kept[index], DType::kInt64, {1, "S - V + " + budget}});
  }
  add_caches(graph, spec, 1);
  return graph;
}

GraphSpec decode(const ExportSpec& spec) {
  const Dim tokens = spec.append_tokens > 1 ? Dim("C") : Dim(1);
  GraphSpec graph;
  graph.inputs = {{text_of(kInputIds), DType::kInt64, {"B", tokens}},
                  {text_of(kPositionIds), DType::kInt64, {"B", tokens}}};
  for (const std::string& name : lengths_names(spec)) graph.inputs.push_back({name, DType::kInt64, {"B"}});
  graph.outputs = {{text_of(kLogits), DType::kFloat32, {"B", spec.model.text.vocab_size}}};
  add_caches(graph, spec, "B");
  return graph;
}

}  // namespace

std::string TensorSpec::describe() const {
  std::string text = std::string(row_of(dtype).name) + "[";
  for (const Dim& dim : shape) {
    if (&dim != shape.data()) text += ", ";
    text += dim.symbol.empty() ? to_string(dim.size) : dim.symbol;
  }
  return text + "]" + (is_length ? ", of which only the length is read" : "");
}

std::vector<std::string> GraphSpec::plain_outputs() const {
  std::vector<std::string> names;
  for (const TensorSpec& tensor : outputs) {
    if (!aliases.contains(tensor.name)) names.push_back(tensor.name);
  }
  return names;
}

std::vector<TensorSpec> GraphSpec::caches() const {
  std::set<std::string> written;
  for (const auto& [present, past] : aliases) written.insert(past);
  std::vector<TensorSpec> caches;
  for (const TensorSpec& tensor : inputs) {
    if (written.contains(tensor.name)) caches.push_back(tensor);
  }
  return caches;
}

Contract contract_of(const ExportSpec& spec) {
  Contract graphs;
  graphs.emplace(kVision, spec.model.tiling ? tiled_vision(spec) : whole_vision(spec));
  graphs.emplace(kPrefill, prefill(spec));
  graphs.emplace(kDecode, decode(spec));
  return graphs;
}

std::map<std::string, SizeRange> size_ranges(const ExportSpec& spec) {
  const std::int64_t most = spec.max_visual_tokens(), tile = spec.model.vision.tile_tokens();
  const std::int64_t least = spec.stage1() != nullptr ? 1 : tile;
  const bool is_tiled = spec.model.tiling.has_value();
  std::map<std::string, SizeRange> ranges{{"B", {1, {}, {}}},
                                          {"S", {least + 1, most + spec.max_text_tokens, {}}}};
  ranges["V"] = {least, most, is_tiled ? std::nullopt : std::optional(spec.image_tokens())};
  if (!spec.fixed_capacities) {
    const auto symbols = capacity_symbols(spec);
    const auto capacities = spec.capacities();
    for (std::size_t i = 0; i < symbols.size(); ++i) ranges[symbols[i]] = {1, capacities[i], capacities[i]};
  }
  if (spec.append_tokens > 1) ranges["C"] = {1, spec.append_tokens, {}};
  if (!spec.decoder_stages().empty()) ranges["Q"] = {1, spec.max_text_tokens, {}};
  if (is_tiled) {
    ranges["T"] = {1, spec.images.max_tiles, {}};
    ranges["P"] = {tile, spec.largest_image(), {}};
    if (spec.drops()) ranges["D1"] = {1, spec.largest_image() - 1, {}};
  }
  if (spec.stage1() != nullptr && !spec.drops()) {
    ranges["N1"] = {1, spec.stage1()->tokens, spec.stage1()->tokens};
  }
  const auto stages = spec.decoder_stages();
  for (std::size_t i = 0; i < stages.size(); ++i) {
    ranges[staged("N", i)] = {1, stages[i].max_tokens, stages[i].tokens};
  }
  return ranges;
}

std::vector<std::string> decoder_slots(const ExportSpec& spec) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < spec.decoder_stages().size(); ++i) {
    names.push_back(staged("stage", i, "_slots"));
  }
  return names;
}

std::vector<std::string> kept_names(const ExportSpec& spec) {
  std::vector<std::string> names;
  const std::size_t count = spec.decoder_stages().size();
  for (std::size_t i = 0; i < count; ++i) {
    names.push_back(i + 1 == count ? text_of(kKeptPositions) : staged("stage", i, "_positions"));
  }
  return names;
}

std::vector<std::string> group_names(const ExportSpec& spec) {
  std::vector<std::string> names{"early"};
  const std::size_t count = spec.decoder_stages().size() + 1;
  for (std::size_t number = 2; number < count; ++number) names.push_back(numbered("group", number));
  if (count > 1) names.emplace_back("late");
  return names;
}

std::vector<std::string> lengths_names(const ExportSpec& spec) {
  std::vector<std::string> names = group_names(spec);
  for (std::string& name : names) name += "_lengths";
  return names;
}

std::vector<std::string> capacity_symbols(const ExportSpec& spec) {
  std::vector<std::string> symbols;
  for (std::size_t i = 0; i <= spec.decoder_stages().size(); ++i) symbols.push_back(numbered("L", i + 1));
  return symbols;
}

}  // namespace star
