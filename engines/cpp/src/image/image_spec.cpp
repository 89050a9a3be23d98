#include "image/image_spec.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "bundle/json.hpp"
#include "errors.hpp"

namespace star {
namespace {

std::int64_t read_side(const Value& value) {
  constexpr std::int64_t kLongest = 1 << 14;
  return value.integer(1, kLongest);
}

std::optional<Extent> read_extent(const Value& value) {
  if (value.is_null()) return std::nullopt;
  const std::vector<Value> pair = value.items();
  if (pair.size() != 2) value.refuse("expected array of length 2");
  return Extent{read_side(pair[0]), read_side(pair[1])};
}

double read_number(const Value& value, double least, double most) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double number = value.number(-kInfinity, kInfinity);
  if (number < least || number > most) value.refuse("out of range");
  return number;
}

std::array<double, 3> read_channels(const Value& value, double least, double most) {
  const std::vector<Value> items = value.items();
  std::array<double, 3> channels{};
  if (items.size() != channels.size()) value.refuse("expected array of length 3");
  for (std::size_t i = 0; i < items.size(); ++i) channels[i] = read_number(items[i], least, most);
  return channels;
}

// Whether what it gives is what the model takes.
void check(const ImageSpec& spec, const TileShape& shape, bool cut) {
  const auto refuse = [](const std::string& what) { throw BundleError("image" + what); };
  const std::int64_t side = shape.image_size;
  const std::string pixels = std::to_string(side), model = " the " + pixels + "x" + pixels;
  if (spec.shortest_edge.has_value() == spec.resize_to.has_value()) {
    refuse(": one of shortest_edge and resize_to must be null");
  }
  const std::optional<Extent> given = spec.crop ? spec.crop : spec.resize_to;
  const Extent square{side, side};
  if (given != square) refuse(": does not give" + model + " pixels that the model takes");
  const std::int64_t least =
      spec.resize_to ? std::min(spec.resize_to->down, spec.resize_to->across) : *spec.shortest_edge;
  if (least < side) {
    refuse(": is resized to less than the " + pixels + " pixels that the model takes");
  }
  if (cut && spec.resize_to != square) {
    refuse(".resize_to: must be [" + pixels + ", " + pixels + "] for a model that cuts pictures");
  }
}

ImageSpec read(const Value& value) {
  Object object(value);
  ImageSpec spec;
  if (const Value side = object.get("shortest_edge"); !side.is_null()) spec.shortest_edge = read_side(side);
  spec.resize_to = read_extent(object.get("resize_to"));
  spec.resample = static_cast<Resampling>(object.get("resample").integer(0, 5));
  spec.crop = read_extent(object.get("crop"));
  spec.rescale_factor =
      read_number(object.get("rescale_factor"), std::numeric_limits<double>::denorm_min(), 1);
  spec.mean = read_channels(object.get("mean"), -1e3, 1e3);
  spec.std = read_channels(object.get("std"), 1e-3, 1e3);
  object.done();
  return spec;
}

}  // namespace

ImageSpec read_image_spec(const nlohmann::json& image, const TileShape& shape, bool cut,
                          std::string_view path) {
  try {
    const ImageSpec spec = read(Value(image, "image"));
    check(spec, shape, cut);
    return spec;
  } catch (const BundleError& error) {
    throw BundleError(std::string(path) + " is damaged: " + error.what() + "; build the bundle again");
  }
}

}  // namespace star
