#include "pipeline/steps.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "errors.hpp"
#include "pipeline/device_dtype.hpp"

namespace star {
namespace {

using std::to_string;

std::string not_finite() {
  return "the model's logits are not finite: an overflow, if the bundle is float16 (build it with " +
         option("dtype=") + "bfloat16 or " + option("fp32_layers") +
         "), else damaged weights or a damaged picture; star-export check names the first tensor that is not "
         "finite";
}

std::int64_t count_of(std::size_t size) { return static_cast<std::int64_t>(size); }

std::vector<std::int64_t> up_to(std::int64_t count) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

// The values of int64 [1, N].
std::vector<std::int64_t> integers_of(const DeviceArray& array) {
  const HostArray host = array.copy();
  std::vector<std::int64_t> values(host.data.size() / sizeof(std::int64_t));
  std::memcpy(values.data(), host.data.data(), values.size() * sizeof(std::int64_t));
  return values;
}

HostTensor integers(std::span<const std::int64_t> values, std::vector<std::int64_t> shape) {
  return {DType::kInt64, std::move(shape), values.data()};
}

// Features of all pictures, [1, V, C].
HostArray side_by_side(std::span<const VisionOutput> visions) {
  HostArray all;
  for (const VisionOutput& vision : visions) {
    const auto* array = std::get_if<SharedArray>(&vision.features);
    HostArray features = array != nullptr ? (*array)->copy() : std::get<HostArray>(vision.features);
    if (all.shape.empty()) {
      all = std::move(features);
    } else {
      all.shape.at(1) += features.shape.at(1);
      all.data.insert(all.data.end(), features.data.begin(), features.data.end());
    }
  }
  return all;
}

void check_image(const ImageInputs& image, const ExportSpec& spec) {
  const std::int64_t side = spec.model.vision.image_size, tile = 3 * side * side;
  const bool has_taps = spec.model.tiling && spec.model.tiling->max_grid;
  const std::int64_t taps = has_taps ? kTaps : 1;
  const bool is_packed =
      !spec.model.tiling || (count_of(image.packed_index.size()) == taps * image.tokens &&
                             (!has_taps || image.packed_weights.size() == image.packed_index.size()));
  if (image.tiles < 1 || count_of(image.pixels.size()) % tile != 0 ||
      count_of(image.pixels.size()) / tile != image.tiles || image.tokens < 1 || !is_packed) {
    throw InputError("a picture of " + to_string(image.pixels.size()) + " values is not " +
                     to_string(image.tiles) + " tiles of 3 x " + to_string(side) + " x " + to_string(side));
  }
}

bool are_within(std::span<const std::int64_t> values, std::int64_t end) {
  return std::all_of(values.begin(), values.end(),
                     [end](std::int64_t value) { return value >= 0 && value < end; });
}

// Graphs would read and write wherever these numbers say.
void check_prompt(const TokenizedPrompt& tokens, std::span<const VisionOutput> visions,
                  const ExportSpec& spec) {
  const std::int64_t length = count_of(tokens.input_ids.size()),
                     visual = count_of(tokens.image_positions.size());
  std::int64_t features = 0;
  for (const VisionOutput& vision : visions) features += vision.num_tokens;
  if (length == 0 || !are_within(tokens.input_ids, spec.model.text.vocab_size) ||
      !are_within(tokens.image_positions, length) || !are_within(tokens.query_positions, length)) {
    throw InputError("the prompt is empty, or has tokens or positions that the model has not");
  }
  if (features != visual) {
    throw InputError("the prompt has places for " + to_string(visual) + " visual tokens, the pictures give " +
                     to_string(features));
  }
}

void check_room(std::span<const std::int64_t> lengths, const Caches& caches) {
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] <= caches.capacities()[i]) continue;
    throw InputError("the KV caches have room for " + to_string(caches.capacities()[i]) +
                     " tokens, not for " + to_string(lengths[i]) +
                     "; ask for fewer new tokens, or build with a larger " + option("max_new_tokens"));
  }
}

}  // namespace

std::vector<std::int64_t> VisionOutput::indices() const {
  return kept ? integers_of(*kept) : up_to(num_tokens);
}

std::vector<float> DecodeState::logits() const {
  const HostArray host = output_->copy();
  std::vector<float> values(host.data.size() / sizeof(float));
  std::memcpy(values.data(), host.data.data(), values.size() * sizeof(float));
  return values;
}

std::vector<std::vector<std::int64_t>> DecodeState::stage_positions() const {
  std::vector<std::vector<std::int64_t>> stages;
  for (const SharedArray& kept : kept_) {
    stages.push_back(integers_of(*kept));
    std::erase_if(stages.back(), [](std::int64_t position) { return position < 0; });
  }
  return stages;
}

std::vector<std::int64_t> DecodeState::kept_positions() const {
  return kept_.empty() ? up_to(prompt_tokens_) : stage_positions().back();
}

std::int64_t DecodeState::next_token(Sampler& sampler) {
  const std::int64_t best = output_->argmax().front();
  if (best < 0) {
    if (!stale()) {
      caches_->zero();
      caches_->claim();
    }
    throw Error(ErrorKind::kNonFinite, not_finite());
  }
  return sampler.greedy() ? best : sampler.draw(logits());
}

Steps::Steps(Session& session)
    : session_(session),
      lengths_names_(star::lengths_names(session.spec())),
      slots_(decoder_slots(session.spec())),
      kept_names_(star::kept_names(session.spec())) {}

VisionOutput Steps::encode_image(const ImageInputs& image, const std::optional<Keep>& keep) {
  check_image(image, spec());
  const std::int64_t side = spec().model.vision.image_size;
  const std::vector<std::int64_t> shape{image.tiles, 3, side, side};
  Feeds feeds;
  HostArray rounded;
  if (spec().dtype == DType::kFloat32) {
    feeds.emplace(kPixelValues, HostTensor{DType::kFloat32, shape, image.pixels.data()});
  } else {
    rounded = to_device_dtype(image.pixels, shape, spec().dtype);
    feeds.emplace(kPixelValues, rounded.view());
  }
  if (spec().model.tiling) {
    std::vector<std::int64_t> packed{image.tokens};
    if (spec().model.tiling->max_grid) {
      packed.push_back(kTaps);
      feeds.emplace(kPackedWeights, HostTensor{DType::kFloat32, packed, image.packed_weights.data()});
    }
    feeds.emplace(kPackedIndex, integers(image.packed_index, packed));
  }
  if (spec().stage1() == nullptr) {
    return {session_.run(kVision, feeds, nullptr).at(std::string(kImageFeatures)), nullptr, image.tokens};
  }
  const std::int64_t count = spec().entering(image.tokens, image.newlines, keep);
  const std::vector<std::int64_t> slots = up_to(spec().drops() ? image.tokens - count : count);
  feeds.emplace(spec().drops() ? kStage1Drops : kStage1Slots, integers(slots, {count_of(slots.size())}));
  const Outputs outputs = session_.run(kVision, feeds, nullptr);
  return {outputs.find(kImageFeatures)->second, outputs.find(kImageIndices)->second, count};
}

std::vector<VisionOutput> Steps::encode_images(std::span<const ImageInputs> images,
                                               const std::optional<Keep>& keep) {
  std::vector<VisionOutput> visions;
  for (const ImageInputs& image : images) {
    visions.push_back(encode_image(image, keep));
    if (images.size() > 1) {
      VisionOutput& vision = visions.back();
      vision.features = std::get<SharedArray>(vision.features)->copy();
    }
  }
  return visions;
}

std::shared_ptr<Caches> Steps::own_caches(const TokenizedPrompt& tokens, const std::optional<Keep>& keep,
                                          std::optional<std::int64_t> new_tokens) {
  std::vector<std::int64_t> needed = spec().capacities();
  if (new_tokens) {
    needed = spec().lengths(tokens.text_tokens(), count_of(tokens.image_positions.size()), keep);
    for (std::int64_t& length : needed) length += *new_tokens;
  }
  const std::vector<std::int64_t> capacities = session_.capacities(needed);
  if (own_) own_->claim();
  if (!own_ || own_->capacities() != capacities) {
    own_.reset();  // free before there are others
    own_ = session_.allocate_caches(1, capacities);
  }
  return own_;
}

DecodeState Steps::prefill(const TokenizedPrompt& tokens, std::span<const VisionOutput> visions,
                           std::shared_ptr<Caches> caches, const std::optional<Keep>& keep) {
  check_prompt(tokens, visions, spec());
  DecodeState state;
  state.caches_ = std::move(caches);
  state.number_ = state.caches_->claim();
  state.prompt_tokens_ = count_of(tokens.input_ids.size());
  if (visions.empty()) {
    state.lengths_.assign(lengths_names_.size(), 0);
    decode(state, tokens.input_ids);
  } else {
    read(state, tokens, visions, keep);
  }
  return state;
}

void Steps::read(DecodeState& state, const TokenizedPrompt& tokens, std::span<const VisionOutput> visions,
                 const std::optional<Keep>& keep) {
  const std::int64_t length = state.prompt_tokens_, visual = count_of(tokens.image_positions.size());
  state.lengths_ = spec().lengths(length - visual, visual, keep);
  check_room(state.lengths_, *state.caches_);
  Feeds feeds;
  feeds.emplace(kInputIds, integers(tokens.input_ids, {1, length}));
  feeds.emplace(kImagePositions, integers(tokens.image_positions, {1, visual}));
  const auto* single = visions.size() == 1 ? std::get_if<SharedArray>(&visions.front().features) : nullptr;
  HostArray joined;
  if (single != nullptr) {
    feeds.emplace(kImageFeatures, *single);
  } else {
    joined = side_by_side(visions);
    feeds.emplace(kImageFeatures, joined.view());
  }
  if (!slots_.empty()) {
    feeds.emplace(kQueryPositions,
                  integers(tokens.query_positions, {1, count_of(tokens.query_positions.size())}));
  }
  const std::vector<std::int64_t> budgets = spec().budgets(keep, visual), places = up_to(visual);
  for (std::size_t i = 0; i < slots_.size(); ++i) feeds.emplace(slots_[i], integers(places, {budgets[i]}));
  const Outputs outputs = session_.run(kPrefill, feeds, state.caches_.get());
  state.output_ = outputs.find(kLogits)->second;
  for (const std::string& name : kept_names_) state.kept_.push_back(outputs.find(name)->second);
  if (spec().adapts())
    state.lengths_.back() = count_of(state.kept_positions().size());  // only the graph knows
}

void Steps::decode(DecodeState& state, std::span<const std::int64_t> tokens) {
  if (state.stale()) {
    throw InputError(
        "another generation or prefill took the KV caches of this sequence, or they were cleaned after "
        "logits "
        "that were not finite; finish one before the next, or give it caches of its own");
  }
  if (!are_within(tokens, spec().model.text.vocab_size))
    throw InputError("a token is outside the vocabulary");
  while (!tokens.empty()) {
    const auto some = tokens.first(std::min(tokens.size(), static_cast<std::size_t>(spec().append_tokens)));
    std::vector<std::int64_t> lengths = state.lengths_;
    for (std::int64_t& length : lengths) length += count_of(some.size());
    check_room(lengths, *state.caches_);
    state.output_ = decode_once(*state.caches_, some, state.lengths_);
    state.lengths_ = std::move(lengths);
    tokens = tokens.subspan(some.size());
  }
}

SharedArray Steps::decode_once(Caches& caches, std::span<const std::int64_t> tokens,
                               std::span<const std::int64_t> lengths) {
  std::vector<std::int64_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), lengths.front());
  const std::int64_t count = count_of(tokens.size());
  Feeds feeds;
  feeds.emplace(kInputIds, integers(tokens, {1, count}));
  feeds.emplace(kPositionIds, integers(positions, {1, count}));
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    feeds.emplace(lengths_names_[i], integers(lengths.subspan(i, 1), {1}));
  }
  return session_.run(kDecode, feeds, &caches).find(kLogits)->second;
}

}  // namespace star
