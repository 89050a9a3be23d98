// What pictures a bundle takes: how many visual tokens those of any size have.
#pragma once

#include <cstdint>
#include <functional>

#include "bundle/spec.hpp"
#include "image/tiling.hpp"

namespace star {

// Rows and columns of visual tokens of a grid that shows so many patches, of tiles with `side` patches.
Extent scaled_down(const Extent& patches, const Tiling& tiling, std::int64_t side);

// A number that follows from a picture's visual tokens and the newlines among them.
using PictureCount = std::function<std::int64_t(std::int64_t tokens, std::int64_t newlines)>;

// A bound of the sum over a request's pictures; of one picture it is the largest such number.
std::int64_t largest_request(const ModelSpec& model, const ImageLimits& limits, const PictureCount& count);

// Calls `visit` with the tokens and newlines of every picture that is alone in its request.
void every_picture(const ModelSpec& model, std::int64_t max_tiles,
                   const std::function<void(std::int64_t tokens, std::int64_t newlines)>& visit);

}  // namespace star
