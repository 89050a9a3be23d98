// From a question about pictures to token ids.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.hpp"

namespace star {

// What stands before and after the text of a turn.
struct TurnForm {
  enum class Strip { kNone, kEnd, kBoth };  // at which ends the text loses its white space

  std::string prefix, suffix;
  Strip strip = Strip::kNone;

  std::string around(std::string_view text) const;
};

// A prompt as text around the turns, for runtimes that have no Jinja.
struct PromptForms {
  std::string start;
  TurnForm user, user_with_image, assistant;
  std::string generation_prompt;
  std::optional<std::string> image;  // what stands for a picture in user_with_image's prefix

  // A question, which pictures open.
  std::string render(std::string_view question, std::size_t images) const;
};

// "prompt" of preprocessor.json.
struct PromptSpec {
  std::string image_token;
  std::int64_t image_token_id = 0;
  std::optional<std::string> chat_template;
  std::map<std::string, std::string> special_tokens;
  std::vector<std::string> end_tokens;
  std::optional<PromptForms> forms;
};

// A prompt as the prefill graph takes it.
struct TokenizedPrompt {
  std::vector<std::int64_t> input_ids;        // image places hold the image token id
  std::vector<std::int64_t> image_positions;  // places of the visual tokens
  std::vector<std::int64_t> query_positions;  // text tokens after the last image; all of them without one

  std::int64_t text_tokens() const {
    return static_cast<std::int64_t>(input_ids.size()) - static_cast<std::int64_t>(image_positions.size());
  }
};

// Reads "prompt" of a preprocessor.json for a model with this image token.
// `path` is the file's name in messages. Raises BundleError if a value is missing, unknown or does not fit.
PromptSpec read_prompt(const nlohmann::json& preprocessor, const std::string& path,
                       std::int64_t image_token_id);

// Opens a bundle's tokenizer.json. Raises BundleError if it cannot be read, or has another image token.
Tokenizer read_tokenizer(const std::filesystem::path& path, const PromptSpec& prompt);

// Puts the model's template around a question about some pictures; a text that contains the image token is
// taken as it is. Raises InputError if the question is empty or no UTF-8, and where only Jinja can render the
// template: the caller then has to give the whole prompt.
std::string render(std::string_view question, const PromptSpec& spec, std::size_t images = 1);

// Token ids of a rendered prompt, with BOS before them if the model has one and the prompt has not.
std::vector<std::int64_t> encode_prompt(std::string_view text, const Tokenizer& tokenizer,
                                        const PromptSpec& spec);

// Token ids of a rendered prompt, each image token repeated for every visual token of its picture.
// Raises InputError if there are other than one image token for each picture, or no text follows the last.
TokenizedPrompt tokenize(std::string_view text, const Tokenizer& tokenizer, const PromptSpec& spec,
                         std::span<const std::int64_t> tokens_per_image);

// Ids of tokens that end an answer, such as <|eot_id|>.
// Raises SettingsError if a text is not exactly one token.
std::vector<std::int64_t> end_token_ids(std::span<const std::string> texts, const Tokenizer& tokenizer);

}  // namespace star
