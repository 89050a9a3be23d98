#include "image/image_spec.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "errors.hpp"

namespace star {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kLongestSide = 1 << 14;
constexpr std::string_view kKeys[] = {"shortest_edge",  "resize_to", "resample", "crop",
                                      "rescale_factor", "mean",      "std"};

class Reader {
 public:
  Reader(const Json& image, std::string_view path) : image_(image), path_(path) {
    if (!image.is_object()) damaged("image", "expected object");
    for (const auto& [key, value] : image.items()) {
      if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys)) {
        damaged("image." + key, "unknown to this version");
      }
    }
  }

  [[noreturn]] void damaged(const std::string& where, const std::string& what) const {
    throw BundleError(std::string(path_) + " is damaged: " + where + ": " + what +
                      "; build the bundle again");
  }

  std::int64_t whole(const Json& value, const std::string& where, std::int64_t least,
                     std::int64_t most) const {
    const std::string wanted = "from " + std::to_string(least) + " to " + std::to_string(most);
    if (!value.is_number_integer()) damaged(where, "expected int " + wanted + found(value));
    const bool huge = value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{1} << 62;
    if (huge || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most) {
      damaged(where, "expected int " + wanted + found(value));
    }
    return value.get<std::int64_t>();
  }

  std::int64_t whole(const std::string& key, std::int64_t least, std::int64_t most) const {
    return whole(at(key), "image." + key, least, most);
  }

  std::optional<std::int64_t> side(const std::string& key) const {
    if (at(key).is_null()) return std::nullopt;
    return whole(key, 1, kLongestSide);
  }

  std::optional<Extent> extent(const std::string& key) const {
    const Json& value = at(key);
    if (value.is_null()) return std::nullopt;
    const std::string where = "image." + key;
    if (!value.is_array() || value.size() != 2)
      damaged(where, "expected [height, width] or null" + found(value));
    return Extent{whole(value[0], where + "[0]", 1, kLongestSide),
                  whole(value[1], where + "[1]", 1, kLongestSide)};
  }

  double number(const Json& value, const std::string& where, double least, double most) const {
    if (!value.is_number()) damaged(where, "expected float" + found(value));
    const auto result = value.get<double>();
    if (!(result >= least && result <= most)) damaged(where, "out of range" + found(value));
    return result;
  }

  double rescale_factor() const {
    const auto factor = number(at("rescale_factor"), "image.rescale_factor", 0, 1);
    if (factor == 0) damaged("image.rescale_factor", "expected float > 0");
    return factor;
  }

  std::array<double, 3> channels(const std::string& key, double least, double most) const {
    const Json& value = at(key);
    if (!value.is_array() || value.size() != 3)
      damaged("image." + key, "expected three numbers" + found(value));
    std::array<double, 3> result{};
    for (std::size_t i = 0; i < result.size(); ++i) {
      result[i] = number(value[i], "image." + key + "[" + std::to_string(i) + "]", least, most);
    }
    return result;
  }

 private:
  const Json& at(const std::string& key) const {
    const auto value = image_.find(key);
    if (value == image_.end()) damaged("image", "object missing required field " + key);
    return *value;
  }

  static std::string found(const Json& value) {
    const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    return text.size() > 40 ? "" : ", found " + text;
  }

  const Json& image_;
  std::string_view path_;
};

// Whether what it gives is what the model takes.
void check(const ImageSpec& spec, const TileShape& shape, bool cut, const Reader& reader) {
  const std::int64_t side = shape.image_size;
  const std::string pixels = std::to_string(side), model = " the " + pixels + "x" + pixels;
  if (spec.shortest_edge.has_value() == spec.resize_to.has_value()) {
    reader.damaged("image", "one of shortest_edge and resize_to must be null");
  }
  const std::optional<Extent> given = spec.crop ? spec.crop : spec.resize_to;
  const Extent square{side, side};
  if (given != square) reader.damaged("image", "does not give" + model + " pixels that the model takes");
  const std::int64_t least =
      spec.resize_to ? std::min(spec.resize_to->down, spec.resize_to->across) : *spec.shortest_edge;
  if (least < side) {
    reader.damaged("image", "is resized to less than the " + pixels + " pixels that the model takes");
  }
  if (cut && spec.resize_to != square) {
    reader.damaged("image.resize_to",
                   "must be [" + pixels + ", " + pixels + "] for a model that cuts pictures");
  }
}

}  // namespace

ImageSpec read_image_spec(const nlohmann::json& image, const TileShape& shape, bool cut,
                          std::string_view path) {
  const Reader reader(image, path);
  ImageSpec spec;
  spec.shortest_edge = reader.side("shortest_edge");
  spec.resize_to = reader.extent("resize_to");
  spec.resample = static_cast<Resampling>(reader.whole("resample", 0, 5));
  spec.crop = reader.extent("crop");
  spec.rescale_factor = reader.rescale_factor();
  spec.mean = reader.channels("mean", -1e3, 1e3);
  spec.std = reader.channels("std", 1e-3, 1e3);
  check(spec, shape, cut, reader);
  return spec;
}

}  // namespace star
