// Reads and prepares pictures for the Python tests. Arrays are in files, which the request names, those of
// the answer too. Raw pictures are bytes [height, width, 3].
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "image/prepare.hpp"
#include "talk.hpp"

namespace {

using Json = nlohmann::json;

std::vector<std::uint8_t> bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

template <typename T>
void write(const std::string& path, const std::vector<T>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(T)));
}

star::Picture raw_picture(const Json& raw) {
  return {raw.at("width"), raw.at("height"), bytes_of(raw.at("file"))};
}

star::TileShape shape_of(const Json& vision) {
  return {vision.at("image_size"), vision.at("patch_size"), vision.at("tile_tokens")};
}

star::Extent extent_of(const Json& pair) { return {pair.at(0), pair.at(1)}; }

std::optional<star::Tiling> tiling_of(const Json& json) {
  if (json.is_null()) return std::nullopt;
  star::Tiling tiling;
  for (const Json& pinpoint : json.at("pinpoints"))
    tiling.pinpoints.emplace_back(pinpoint.at(0), pinpoint.at(1));
  if (!json.at("max_grid").is_null()) tiling.max_grid = json.at("max_grid").get<std::int64_t>();
  tiling.several_whole = json.at("several_whole");
  return tiling;
}

Json put(const star::Picture& picture, const Json& request) {
  write(request.at("out"), picture.rgb);
  return {{"width", picture.width}, {"height", picture.height}};
}

Json json_of(const star::Extent& extent) { return {extent.down, extent.across}; }

Json json_of(const star::Packing& packing) {
  Json json{{"tokens", packing.tokens}, {"newlines", packing.newlines}, {"grid", nullptr}};
  if (const auto& grid = packing.grid) {
    json["grid"] = {{"tiles", json_of(grid->tiles)},
                    {"first", json_of(grid->first)},
                    {"patches", json_of(grid->patches)},
                    {"shape", json_of(grid->shape)}};
  }
  return json;
}

Json prepared(const Json& request) {
  const star::TileShape shape = shape_of(request.at("vision"));
  const std::optional<star::Tiling> tiling = tiling_of(request.at("tiling"));
  const star::ImageSpec spec =
      star::read_image_spec(request.at("spec"), shape, tiling.has_value(), "preprocessor.json");
  std::vector<star::Picture> pictures;
  for (const Json& raw : request.at("pictures")) pictures.push_back(raw_picture(raw));
  Json images = Json::array();
  std::vector<float> pixels, weights;
  std::vector<std::int64_t> index;
  for (const star::PreparedImage& image : star::prepare(pictures, spec, shape, tiling)) {
    pixels.insert(pixels.end(), image.pixels.begin(), image.pixels.end());
    const star::PackedTaps taps = star::packed_taps(image.packing, shape);
    index.insert(index.end(), taps.index.begin(), taps.index.end());
    weights.insert(weights.end(), taps.weights.begin(), taps.weights.end());
    images.push_back({{"tiles", image.tiles}, {"side", image.side}, {"packing", json_of(image.packing)}});
  }
  const std::string out = request.at("out");
  write(out, pixels);
  write(out + ".index", index);
  write(out + ".weights", weights);
  return images;
}

// Grids of many sizes at once.
Json grids(const Json& request) {
  const star::TileShape shape = shape_of(request.at("vision"));
  const star::Tiling tiling = tiling_of(request.at("tiling")).value();
  Json found = Json::array();
  for (const Json& size : request.at("sizes")) {
    const star::Grid grid = star::picture_grid(extent_of(size), tiling, shape);
    found.push_back({json_of(grid.tiles), json_of(grid.first), json_of(grid.patches), json_of(grid.shape)});
  }
  return found;
}

Json answer(const Json& request) {
  const std::string what = request.at("what");
  if (what == "read") return put(star::read_picture(bytes_of(request.at("file")), "the picture"), request);
  if (what == "resample") {
    const star::Resampling filter{request.at("filter").get<int>()};
    const star::Picture picture = raw_picture(request.at("picture"));
    return put(star::resample(picture, request.at("width"), request.at("height"), filter), request);
  }
  return what == "prepare" ? prepared(request) : grids(request);
}

}  // namespace

int main() { star::talk(answer); }
