#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "image/formats.hpp"
#include "image/prepare.hpp"

namespace {

// EXIF data of one entry, little endian.
std::string exif(int type, std::string value) {
  value.resize(4);
  std::string data("II\x2a\0\x08\0\0\0\x01\0\x12\x01", 12);
  return data + std::string{static_cast<char>(type), 0, 1, 0, 0, 0} + value;
}

TEST_CASE("orientation is read from EXIF, else from XMP") {
  CHECK(star::formats::orientation({exif(3, "\x06"), ""}) == 6);
  CHECK(star::formats::orientation({exif(3, "\x09"), ""}) == 1);
  CHECK(star::formats::orientation({exif(2, "6"), "tiff:Orientation=\"3\""}) == 1);
  CHECK(star::formats::orientation({std::nullopt, "tiff:Orientation= <tiff:Orientation>8<"}) == 8);
  CHECK(star::formats::orientation({}) == 1);
  CHECK_FALSE(star::formats::orientation({"no TIFF data", ""}));
  CHECK(star::formats::orientation({exif(3, "\x06").substr(0, 20), ""}) == 1);
}

TEST_CASE("a picture of its own size stays as it is") {
  const star::Picture picture{2, 1, {1, 2, 3, 4, 5, 6}};
  for (int filter = 0; filter < 6; ++filter) {
    CHECK(star::resample(picture, 2, 1, star::Resampling{filter}).rgb == picture.rgb);
  }
}

TEST_CASE("what is no picture is an input error") {
  const std::vector<std::uint8_t> file{'G', 'I', 'F'};
  CHECK_THROWS_WITH_AS(
      star::read_picture(file, "a.gif"),
      "a.gif is not a picture that can be read here: expected JPEG or PNG; convert it to one "
      "of them",
      star::InputError);
}

TEST_CASE("a sliver is not resized to gigabytes") {
  star::ImageSpec spec;
  spec.shortest_edge = 1 << 14;
  const std::vector<star::Picture> pictures{{200, 1, std::vector<std::uint8_t>(600)}};
  CHECK_THROWS_AS(star::prepare(pictures, spec, {336, 14, 576}, std::nullopt), star::InputError);
}

TEST_CASE("parameters that do not fit the model are a bundle error") {
  const star::TileShape shape{336, 14, 576};
  nlohmann::json image{{"shortest_edge", 336},  {"resize_to", nullptr},     {"resample", 3},
                       {"crop", {336, 336}},    {"rescale_factor", 0.0039}, {"mean", {0.5, 0.5, 0.5}},
                       {"std", {0.5, 0.5, 0.5}}};
  CHECK(star::read_image_spec(image, shape, false, "p").shortest_edge == 336);
  CHECK_THROWS_AS(star::read_image_spec(image, shape, true, "p"), star::BundleError);
  image["resample"] = "3";
  CHECK_THROWS_WITH_AS(
      star::read_image_spec(image, shape, false, "p"),
      "p is damaged: image.resample: expected int, got str, found '3'; build the bundle again",
      star::BundleError);
}

}  // namespace
