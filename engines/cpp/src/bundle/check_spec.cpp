// Whether the values of a spec make sense together.
#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <sstream>
#include <string_view>

#include "bundle/spec.hpp"
#include "bundle/tiling.hpp"
#include "errors.hpp"

namespace star {
namespace {

using std::to_string;

constexpr std::array<std::string_view, 4> kStage1Scores{"received", "cls", "spread", "peaks"};
constexpr std::array<std::string_view, 7> kStage2Scores{"text",       "last",  "raters",  "visual-heads",
                                                        "text-peaks", "drift", "key-norm"};

std::string spelled(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

void check_model(const ModelSpec& model) {
  const VisionSpec& vision = model.vision;
  const TextSpec& text = model.text;
  if (vision.grid_side() == 0) {
    throw BundleError("spec.model.vision: " + to_string(vision.image_size) + " px are no whole patch");
  }
  const auto& layers = vision.feature_layers;
  const std::int64_t last = layers.empty() ? 0 : *std::max_element(layers.begin(), layers.end());
  if (last != vision.num_layers) {
    throw BundleError("spec.model.vision.feature_layers: the last is " + to_string(last) + " of " +
                      to_string(vision.num_layers) + " layers");
  }
  if (text.num_heads % text.num_kv_heads != 0) {
    throw BundleError("spec.model.text: " + to_string(text.num_heads) + " heads cannot share " +
                      to_string(text.num_kv_heads) + " KV heads");
  }
  if (model.image_token_id >= text.vocab_size) {
    throw BundleError("spec.model.image_token_id: " + to_string(model.image_token_id) +
                      " is outside the vocabulary");
  }
}

void check_images(const ImageLimits& images, const ModelSpec& model) {
  const std::int64_t tile = model.vision.image_size;
  if (model.tiling) {
    const auto& pinpoints = model.tiling->pinpoints;
    const auto is_odd = [tile](const auto& pair) {
      return pair.first % tile != 0 || pair.second % tile != 0;
    };
    if (pinpoints.empty() || std::any_of(pinpoints.begin(), pinpoints.end(), is_odd)) {
      throw SettingsError("the pin points are no whole tiles of " + to_string(tile) + " px");
    }
  }
  std::int64_t smallest = std::numeric_limits<std::int64_t>::max();
  every_picture(model, images.max_tiles,
                [&](std::int64_t tokens, std::int64_t) { smallest = std::min(smallest, tokens); });
  if (smallest > images.max_image_tokens) {
    throw SettingsError(option("max_image_tokens=") + to_string(images.max_image_tokens) +
                        " has no room for any picture");
  }
}

void check_score(const Stage& stage, const ModelSpec& model) {
  const std::span<const std::string_view> scores =
      stage.after_layer != 0 ? std::span<const std::string_view>(kStage2Scores) : kStage1Scores;
  const std::string name = stage.after_layer != 0 ? "stage2" : "stage1";
  if (std::find(scores.begin(), scores.end(), stage.score) == scores.end()) {
    throw SettingsError(option(name + "=") + stage.score + " is no score of this stage");
  }
  if (stage.score == "cls" && !model.vision.has_cls) {
    throw SettingsError(option(name + "=") + "cls needs a class token, and " + model.vision.model_type +
                        " has none");
  }
}

void check_mass(const Stage& stage, bool is_last) {
  if (!stage.mass || (stage.after_layer != 0 && is_last)) return;
  throw SettingsError(option("keep_mass=") + spelled(*stage.mass) +
                      " is about the last stage of a schedule, in the decoder");
}

// Visual tokens that a stage leaves of the largest request.
std::int64_t most_of(const Stage& stage) { return stage.after_layer != 0 ? stage.tokens : stage.max_tokens; }

void check_counts(const Stage& stage, const std::string& name, std::int64_t most, const ExportSpec& spec) {
  if (stage.max_tokens > most) {
    throw SettingsError(name + " keeps up to " + to_string(stage.max_tokens) + " tokens, expected at most " +
                        to_string(most));
  }
  if (stage.tokens > stage.max_tokens) {
    throw SettingsError(name + " keeps " + to_string(stage.tokens) + " tokens, over its maximum of " +
                        to_string(stage.max_tokens));
  }
  if (stage.after_layer != 0) {
    if (stage.share && share_of(*stage.share, spec.images.max_image_tokens) > stage.max_tokens) {
      throw SettingsError(name + " keeps a share of " + spelled(*stage.share) + ", over its maximum of " +
                          to_string(stage.max_tokens));
    }
    return;
  }
  if (stage.share && !spec.model.tiling) {
    throw SettingsError(name + " keeps a share of each picture, but all have one size; give a number");
  }
  const std::int64_t left = largest_request(
      spec.model, spec.images,
      [&](std::int64_t tokens, std::int64_t newlines) { return entering_tokens(stage, tokens, newlines); });
  if (left > stage.max_tokens) {
    throw SettingsError(name + " leaves " + to_string(left) + " tokens of the largest request, over its " +
                        "maximum of " + to_string(stage.max_tokens));
  }
}

void check_schedule(const ExportSpec& spec) {
  const std::int64_t layers = spec.model.text.num_layers;
  std::int64_t layer = -1, most = spec.images.max_image_tokens;
  for (std::size_t index = 0; index < spec.schedule.size(); ++index) {
    const Stage& stage = spec.schedule[index];
    const std::string name = "stage " + to_string(stage_number(spec.schedule, index));
    if (!(layer < stage.after_layer && stage.after_layer < layers)) {
      throw SettingsError(name + " comes after layer " + to_string(stage.after_layer) + ", expected " +
                          to_string(layer + 1) + " to " + to_string(layers - 1));
    }
    check_counts(stage, name, most, spec);
    check_score(stage, spec.model);
    check_mass(stage, index + 1 == spec.schedule.size());
    layer = stage.after_layer, most = most_of(stage) - 1;
  }
}

void check_proportional(const ExportSpec& spec) {
  if (!spec.proportional) return;
  const std::string name = option("proportional");
  if (spec.schedule.empty()) throw SettingsError(name + " has no meaning with " + option("prune=False"));
  if (spec.stage1() == nullptr) throw SettingsError(name + " needs a stage before the decoder");
  if (spec.adapts()) throw SettingsError(name + " can't be had with " + option("keep_mass"));
}

void check_capacities(const ExportSpec& spec) {
  const std::int64_t longest = spec.groups().front().capacity;
  const auto check = [&](std::int64_t limit, const std::string& what) {
    if (longest <= limit) return;
    throw SettingsError(to_string(spec.max_visual_tokens()) + " image + " + to_string(spec.max_text_tokens) +
                        " text + " + to_string(spec.max_new_tokens) + " new tokens are " +
                        to_string(longest) + ", over the model's " + to_string(limit) + " " + what);
  };
  check(spec.model.text.max_position_embeddings, "positions");
  if (spec.model.text.sliding_window) check(*spec.model.text.sliding_window, "tokens of its sliding window");
}

// Refuses a budget of the last of these stages.
void check_last(std::span<const Stage> schedule, std::int64_t keep) {
  const Stage& last = schedule.back();
  const std::string named = option("keep=") + to_string(keep);
  if (keep < 1)
    throw SettingsError(option("keep") + " must be at least 1 visual token, got " + to_string(keep));
  if (schedule.size() > 1) {
    const std::size_t before = schedule.size() - 2;
    const std::int64_t most = most_of(schedule[before]);
    if (keep >= most) {
      const std::int64_t possible = std::min(most - 1, last.max_tokens);
      const std::string fewer = possible != 0 ? "choose at most " + to_string(possible) + " or " : "";
      throw SettingsError(named + " is not below the " + to_string(most) + " tokens that stage " +
                          to_string(stage_number(schedule, before)) + " keeps; " + fewer +
                          "let that stage keep more");
    }
  }
  const std::int64_t most = last.after_layer != 0 ? last.max_tokens : last.tokens;
  if (keep > most) {
    const std::string remedy = last.after_layer != 0 ? option("max_keep=") + to_string(keep)
                                                     : option("schedule=") + to_string(keep) + "@0";
    throw SettingsError(named + " is over this bundle's maximum of " + to_string(most) +
                        "; build it again with " + remedy);
  }
}

}  // namespace

std::size_t stage_number(std::span<const Stage> schedule, std::size_t index) {
  return index + (schedule.front().after_layer == 0 ? 1 : 2);
}

void check_keep(std::span<const Stage> schedule, const Keep& keep) {
  if (schedule.empty()) {
    throw SettingsError("this bundle was built with " + option("prune=False") + "; " + option("keep") +
                        " has no meaning for it");
  }
  if (const auto* last = std::get_if<std::int64_t>(&keep)) return check_last(schedule, *last);
  const auto& every = std::get<std::vector<std::int64_t>>(keep);
  if (every.size() != schedule.size()) {
    std::string joined;
    for (const std::int64_t tokens : every)
      joined.append(joined.empty() ? "" : ",").append(to_string(tokens));
    throw SettingsError(option("keep=") + joined + " has " + to_string(every.size()) +
                        " budgets; give one number for the last stage, or " + to_string(schedule.size()) +
                        ", one for each");
  }
  std::vector<Stage> asked;
  for (std::size_t index = 0; index < every.size(); ++index) {
    asked.push_back(schedule[index]);
    check_last(asked, every[index]);
    Stage& stage = asked.back();
    if (stage.after_layer == 0) stage.max_tokens = stage.max_tokens * every[index] / stage.tokens;
    stage.tokens = every[index];
  }
}

void check_spec(const ExportSpec& spec) {
  check_model(spec.model);
  check_images(spec.images, spec.model);
  check_schedule(spec);
  check_proportional(spec);
  check_capacities(spec);
}

}  // namespace star
