// What a request asks of the stages and of the caches, checked.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "bundle/spec.hpp"
#include "pipeline/inputs.hpp"

namespace star {

// Budgets for these pictures, or the largest ones where there are none: of the last stage, or as many as are
// asked for. Never more than come to a stage inside the decoder; nothing where there is no stage.
// Throws SettingsError if the bundle cannot serve `keep`.
std::optional<Keep> budget(const ExportSpec& spec, const std::optional<Keep>& keep,
                           std::span<const ImageInputs> images = {});

// Visual tokens of each picture when the decoder starts.
std::vector<std::int64_t> entering(const ExportSpec& spec, std::span<const ImageInputs> images,
                                   const std::optional<Keep>& keep = std::nullopt);

// Tokens of an answer, at most: `wanted`, or what the caches have room for. Throws SettingsError.
std::int64_t new_tokens(const ExportSpec& spec, std::optional<std::int64_t> wanted);

// Throws InputError for more pictures than a bundle takes.
void check_count(std::size_t images, const ImageLimits& limits);

// Throws InputError for pictures that a bundle has no room for.
void check_limits(std::span<const ImageInputs> images, const ImageLimits& limits);

}  // namespace star
