// What is asked: pictures and a prompt, checked and prepared for one bundle.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/bundle.hpp"
#include "image/prepare.hpp"
#include "pipeline/inputs.hpp"
#include "star/pipeline.hpp"
#include "text/prompts.hpp"
#include "text/transcript.hpp"

namespace star {

// A checked request, ready to run.
struct Request {
  std::vector<ImageInputs> images;  // in the order of their places in the prompt
  TokenizedPrompt tokens;
  std::optional<Keep> keep;  // budgets of the stages, as far as these pictures have so many visual tokens
  std::int64_t max_new_tokens = 0;
  Sampling sampling;
  std::vector<std::string> stop;
  std::vector<std::int64_t> end_token_ids;  // those of the bundle and those asked for
};

// Makes requests of pictures and prompts; any thread may.
class Requests {
 public:
  // Throws BundleError if tokenizer or preprocessing parameters cannot be read.
  explicit Requests(const Bundle& bundle);

  // Throws InputError if a picture or the prompt cannot be used, SettingsError if a number is out of range or
  // an end token is unknown.
  Request request(std::span<const Image> images, std::string_view prompt, const Settings& settings) const;

  // An empty answer to a request.
  Transcript transcript(const Request& request) const;

 private:
  std::vector<ImageInputs> prepare_images(std::span<const Image> images) const;
  TokenizedPrompt tokenize_prompt(std::string_view prompt, std::span<const ImageInputs> images,
                                  const std::optional<Keep>& keep) const;

  ExportSpec spec_;
  std::filesystem::path tokenizer_path_;
  TileShape shape_;
  ImageSpec image_spec_;
  PromptSpec prompt_spec_;
  std::optional<Tokenizer> tokenizer_;
  std::vector<std::int64_t> end_token_ids_;
};

}  // namespace star
