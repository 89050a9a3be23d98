// The image part of a bundle's preprocessor.json.
#pragma once

#include <array>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string_view>

#include "image/resample.hpp"
#include "image/tiling.hpp"

namespace star {

// Parameters of the image processor, in the order in which they are used.
struct ImageSpec {
  std::optional<std::int64_t> shortest_edge;  // One of these two is there.
  std::optional<Extent> resize_to;
  Resampling resample = Resampling::kBicubic;
  std::optional<Extent> crop;  // In the middle.
  double rescale_factor = 0;
  std::array<double, 3> mean{};
  std::array<double, 3> std{};
};

// `image` is the value of the key "image" of the file `path`, which is for errors. Throws BundleError if a
// value is missing, unknown, of another type, or does not fit the model: tiles as `shape` has them, cut or
// not.
ImageSpec read_image_spec(const nlohmann::json& image, const TileShape& shape, bool cut,
                          std::string_view path);

}  // namespace star
