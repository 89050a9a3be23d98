#include "pipeline/budgets.hpp"

#include <algorithm>
#include <numeric>

#include "errors.hpp"

namespace star {

using std::to_string;

std::optional<Keep> budget(const ExportSpec& spec, const std::optional<Keep>& keep,
                           std::span<const ImageInputs> images) {
  if (keep) check_keep(spec.schedule, *keep);
  std::int64_t tokens = 0;
  for (const ImageInputs& image : images) tokens += image.tokens;
  std::vector<std::int64_t> asked = spec.asked(keep, tokens);
  if (asked.empty()) return std::nullopt;
  const std::vector<std::int64_t> each = entering(spec, images, Keep(asked));
  const std::int64_t sum = std::accumulate(each.begin(), each.end(), std::int64_t{0});
  const auto inside = spec.budgets(Keep(asked), sum != 0 ? sum : spec.max_visual_tokens());
  std::copy(inside.begin(), inside.end(), asked.end() - static_cast<std::ptrdiff_t>(inside.size()));
  const auto stages = spec.decoder_stages();
  const auto earlier = stages.first(stages.empty() ? 0 : stages.size() - 1);
  const bool has_share =
      std::any_of(earlier.begin(), earlier.end(), [](const Stage& stage) { return stage.share.has_value(); });
  if (has_share || (keep && std::holds_alternative<std::vector<std::int64_t>>(*keep))) return Keep(asked);
  return Keep(asked.back());
}

std::vector<std::int64_t> entering(const ExportSpec& spec, std::span<const ImageInputs> images,
                                   const std::optional<Keep>& keep) {
  std::vector<std::int64_t> counts;
  for (const ImageInputs& image : images) counts.push_back(spec.entering(image.tokens, image.newlines, keep));
  return counts;
}

std::int64_t new_tokens(const ExportSpec& spec, std::optional<std::int64_t> wanted) {
  const std::int64_t most = spec.max_new_tokens;
  if (wanted && (*wanted < 1 || *wanted > most)) {
    throw SettingsError(option("max_new_tokens") + " must be from 1 to " + to_string(most) + ", got " +
                        to_string(*wanted) + "; for more, build the bundle with a larger " +
                        option("max_new_tokens"));
  }
  return wanted.value_or(most);
}

void check_count(std::size_t images, const ImageLimits& limits) {
  const auto count = static_cast<std::int64_t>(images);
  if (count > limits.max_images) {
    throw InputError("this bundle takes at most " + to_string(limits.max_images) +
                     (limits.max_images == 1 ? " picture" : " pictures") + ", got " + to_string(count) +
                     "; build it again with " + option("max_images=") + to_string(count));
  }
}

void check_limits(std::span<const ImageInputs> images, const ImageLimits& limits) {
  check_count(images.size(), limits);
  std::int64_t tiles = 0, tokens = 0;
  for (const ImageInputs& image : images) {
    tiles = std::max(tiles, image.tiles);
    tokens += image.tokens;
  }
  if (tiles > limits.max_tiles) {
    throw InputError("a picture has " + to_string(tiles) + " tiles, this bundle takes " +
                     to_string(limits.max_tiles) + "; scale it down or build with " + option("max_tiles=") +
                     to_string(tiles));
  }
  if (tokens > limits.max_image_tokens) {
    throw InputError("the pictures have " + to_string(tokens) + " visual tokens, this bundle has room for " +
                     to_string(limits.max_image_tokens) + "; scale them down or build with " +
                     option("max_image_tokens=") + to_string(tokens));
  }
}

}  // namespace star
