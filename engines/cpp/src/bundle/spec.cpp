#include "bundle/spec.hpp"

#include <algorithm>
#include <cmath>

#include "bundle/tiling.hpp"
#include "errors.hpp"

namespace star {
namespace {

// floor(share * tokens + 0.5), as Python's floats have it.
std::int64_t rounded_share(double share, std::int64_t tokens) {
  return static_cast<std::int64_t>(std::floor(share * static_cast<double>(tokens) + 0.5));
}

std::int64_t largest(const ExportSpec& spec, std::int64_t max_images) {
  ImageLimits limits = spec.images;
  limits.max_images = max_images;
  return largest_request(spec.model, limits, [](std::int64_t tokens, std::int64_t) { return tokens; });
}

}  // namespace

std::int64_t share_of(double share, std::int64_t tokens) {
  return std::max<std::int64_t>(1, rounded_share(share, tokens));
}

std::int64_t entering_tokens(const Stage& stage, std::int64_t tokens, std::int64_t newlines) {
  if (!stage.share) return std::min(stage.tokens, tokens);
  // At least one is dropped, so that no size of the graph is ever 0.
  return std::min(rounded_share(*stage.share, tokens - newlines) + newlines, tokens - 1);
}

const Stage* ExportSpec::stage1() const {
  return !schedule.empty() && schedule.front().after_layer == 0 ? &schedule.front() : nullptr;
}

std::span<const Stage> ExportSpec::decoder_stages() const {
  return std::span(schedule).subspan(stage1() != nullptr ? 1 : 0);
}

std::int64_t ExportSpec::largest_image() const { return largest(*this, 1); }

std::int64_t ExportSpec::image_tokens() const { return stage1() ? stage1()->tokens : largest_image(); }

std::int64_t ExportSpec::max_visual_tokens() const {
  return stage1() ? stage1()->max_tokens : largest(*this, images.max_images);
}

std::vector<LayerGroup> ExportSpec::groups() const {
  std::vector<LayerGroup> groups{{0, 0, max_visual_tokens() + room()}};
  for (const Stage& stage : decoder_stages()) {
    groups.back().last = stage.after_layer - 1;
    groups.push_back({stage.after_layer, 0, stage.max_tokens + room()});
  }
  groups.back().last = model.text.num_layers - 1;
  return groups;
}

std::vector<std::int64_t> ExportSpec::capacities() const {
  std::vector<std::int64_t> capacities;
  for (const LayerGroup& group : groups()) capacities.push_back(group.capacity);
  return capacities;
}

std::size_t ExportSpec::group(std::int64_t layer) const {
  const auto stages = decoder_stages();
  const auto is_before = [layer](const Stage& stage) { return stage.after_layer <= layer; };
  return static_cast<std::size_t>(std::count_if(stages.begin(), stages.end(), is_before));
}

std::int64_t ExportSpec::entering(std::int64_t tokens, std::int64_t newlines,
                                  const std::optional<Keep>& keep) const {
  const Stage* stage = stage1();
  if (stage == nullptr) return tokens;
  const std::int64_t wanted = asked(keep).front();
  if (wanted == stage->tokens) return entering_tokens(*stage, tokens, newlines);
  return std::min(wanted, stage->share ? tokens - 1 : tokens);
}

std::vector<std::int64_t> ExportSpec::asked(const std::optional<Keep>& keep,
                                            std::optional<std::int64_t> image_tokens) const {
  std::vector<std::int64_t> own;
  for (const Stage& stage : schedule) {
    const bool is_share = image_tokens.value_or(0) != 0 && stage.share && stage.after_layer != 0;
    own.push_back(is_share ? share_of(*stage.share, *image_tokens) : stage.tokens);
  }
  if (!keep || own.empty()) return own;
  if (const auto* last = std::get_if<std::int64_t>(&*keep)) {
    own.back() = *last;
    return own;
  }
  const auto& every = std::get<std::vector<std::int64_t>>(*keep);
  if (every.size() != own.size()) {
    throw SettingsError(option("keep") + " has " + std::to_string(every.size()) +
                        " budgets; give one number for the last stage, or " + std::to_string(own.size()) +
                        ", one for each");
  }
  return every;
}

std::vector<std::int64_t> ExportSpec::budgets(const std::optional<Keep>& keep,
                                              std::optional<std::int64_t> entering) const {
  std::vector<std::int64_t> tokens = asked(keep);
  tokens.erase(tokens.begin(), tokens.end() - static_cast<std::ptrdiff_t>(decoder_stages().size()));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (entering) tokens[i] = std::min(*entering, tokens[i]);
    if (i > 0) tokens[i] = std::min(tokens[i - 1], tokens[i]);
  }
  return tokens;
}

std::vector<std::int64_t> ExportSpec::lengths(std::int64_t text_tokens, std::int64_t image_tokens,
                                              const std::optional<Keep>& keep) const {
  std::vector<std::int64_t> lengths{text_tokens + image_tokens};
  for (const std::int64_t visual : budgets(keep, image_tokens)) lengths.push_back(text_tokens + visual);
  return lengths;
}

}  // namespace star
