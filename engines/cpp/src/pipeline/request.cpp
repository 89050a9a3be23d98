#include "pipeline/request.hpp"

#include <algorithm>
#include <fstream>

#include "errors.hpp"
#include "pipeline/budgets.hpp"

namespace star {
namespace {

namespace fs = std::filesystem;
using std::to_string;

constexpr std::string_view kTokenizer = "tokenizer.json", kPreprocessor = "preprocessor.json";
constexpr std::size_t kLargestParameters = 64 << 20;
// Bytes of a picture's file: more than those of the most pixels that are decoded.
constexpr std::uintmax_t kLargestPicture = std::uintmax_t{1} << 30;

Json read_parameters(const fs::path& path) {
  try {
    return parse_json(read_file(path, kLargestParameters));
  } catch (const BundleError& error) {
    throw BundleError(path.string() + " is damaged: " + error.marked() + "; build the bundle again");
  }
}

std::vector<std::uint8_t> read_picture_file(const fs::path& path) {
  const std::string name = path.string();
  if (name.starts_with("http:/") || name.starts_with("https:/")) {
    const std::size_t colon = name.find(':');  // a path folds the two slashes behind it into one
    const std::string rest = name.substr(std::min(name.size(), name.find_first_not_of('/', colon + 1)));
    throw InputError(name.substr(0, colon) + "://" + rest +
                     " is a web address; download the picture and give its path");
  }
  std::error_code failure;
  const fs::file_status status = fs::status(path, failure);
  if (!fs::exists(status)) throw InputError(name + " does not exist; give the path of a picture");
  if (!fs::is_regular_file(status)) throw InputError(name + " is no file, expected a JPEG or PNG");
  const std::uintmax_t size = fs::file_size(path, failure);
  std::ifstream file(path, std::ios::binary);
  if (failure || !file) throw InputError(name + " cannot be read; give a file that you may read");
  if (size > kLargestPicture) {
    throw InputError(name + " has " + to_string(size) + " bytes, expected at most " +
                     to_string(kLargestPicture) + "; scale it down");
  }
  std::vector<std::uint8_t> content(static_cast<std::size_t>(size));
  file.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(size));
  content.resize(static_cast<std::size_t>(std::max<std::streamsize>(0, file.gcount())));
  return content;
}

Picture load_image(const Image& image) {
  if (const auto* path = std::get_if<fs::path>(&image)) {
    return read_picture(read_picture_file(*path), path->string());
  }
  return read_picture(std::get<std::span<const std::uint8_t>>(image), "the picture");
}

ImageInputs inputs_of(PreparedImage image, const std::optional<Tiling>& tiling, const TileShape& shape) {
  ImageInputs inputs;
  inputs.pixels = std::move(image.pixels);
  inputs.tiles = image.tiles;
  inputs.tokens = image.packing.tokens;
  inputs.newlines = image.packing.newlines;
  if (!tiling) return inputs;
  if (tiling->max_grid) {
    PackedTaps taps = packed_taps(image.packing, shape);
    inputs.packed_index = std::move(taps.index);
    inputs.packed_weights = std::move(taps.weights);
  } else {
    inputs.packed_index = packed_index(image.packing, shape);
  }
  return inputs;
}

}  // namespace

Requests::Requests(const Bundle& bundle)
    : spec_(bundle.spec()),
      tokenizer_path_(bundle.path(kTokenizer)),
      shape_{spec_.model.vision.image_size, spec_.model.vision.patch_size, spec_.model.vision.tile_tokens()} {
  const fs::path path = bundle.path(kPreprocessor);
  const Json parameters = read_parameters(path);
  prompt_spec_ = read_prompt(parameters, path.string(), spec_.model.image_token_id);
  const auto image = parameters.find("image");
  if (image == parameters.end()) {
    throw BundleError(path.string() +
                      " is damaged: object missing required field image; build the bundle again");
  }
  image_spec_ = read_image_spec(*image, shape_, spec_.model.tiling.has_value(), path.string());
  tokenizer_ = read_tokenizer(tokenizer_path_, prompt_spec_);
  end_token_ids_ = spec_.model.eos_token_ids;
  try {
    const std::vector<std::int64_t> added = star::end_token_ids(prompt_spec_.end_tokens, *tokenizer_);
    end_token_ids_.insert(end_token_ids_.end(), added.begin(), added.end());
  } catch (const SettingsError& error) {
    throw BundleError(path.string() + " is damaged: " + error.marked());
  }
}

Request Requests::request(std::span<const Image> images, std::string_view prompt,
                          const Settings& settings) const {
  settings.sampling.check();
  Request request;
  request.images = prepare_images(images);
  request.keep = budget(spec_, settings.keep, request.images);
  request.tokens = tokenize_prompt(prompt, request.images, request.keep);
  request.max_new_tokens = new_tokens(spec_, settings.max_new_tokens);
  request.sampling = settings.sampling;
  check_stop(settings.stop);
  request.stop = settings.stop;
  request.end_token_ids = end_token_ids_;
  const std::vector<std::int64_t> asked = star::end_token_ids(settings.end_tokens, *tokenizer_);
  request.end_token_ids.insert(request.end_token_ids.end(), asked.begin(), asked.end());
  return request;
}

Transcript Requests::transcript(const Request& request) const {
  return Transcript(*tokenizer_, request.end_token_ids, static_cast<std::size_t>(request.max_new_tokens),
                    request.stop);
}

std::vector<ImageInputs> Requests::prepare_images(std::span<const Image> images) const {
  if (images.empty()) throw InputError("no picture is given; a question needs one at least");
  check_count(images.size(), spec_.images);
  std::vector<Picture> pictures;
  for (const Image& image : images) pictures.push_back(load_image(image));
  std::vector<ImageInputs> inputs;
  for (PreparedImage& image : prepare(pictures, image_spec_, shape_, spec_.model.tiling)) {
    inputs.push_back(inputs_of(std::move(image), spec_.model.tiling, shape_));
  }
  check_limits(inputs, spec_.images);
  return inputs;
}

TokenizedPrompt Requests::tokenize_prompt(std::string_view prompt, std::span<const ImageInputs> images,
                                          const std::optional<Keep>& keep) const {
  const std::string text = render(prompt, prompt_spec_, images.size());
  TokenizedPrompt tokens = tokenize(text, *tokenizer_, prompt_spec_, entering(spec_, images, keep));
  const std::int64_t largest = *std::max_element(tokens.input_ids.begin(), tokens.input_ids.end());
  if (largest >= spec_.model.text.vocab_size) {
    throw BundleError(tokenizer_path_.string() + " gives token " + to_string(largest) + ", the model has " +
                      to_string(spec_.model.text.vocab_size) + "; build the bundle again");
  }
  if (tokens.text_tokens() > spec_.max_text_tokens) {
    throw InputError("the prompt has " + to_string(tokens.text_tokens()) +
                     " text tokens, this bundle has room for " + to_string(spec_.max_text_tokens) +
                     "; shorten it or build it again with " + option("max_text_tokens=") +
                     to_string(tokens.text_tokens()));
  }
  return tokens;
}

}  // namespace star
