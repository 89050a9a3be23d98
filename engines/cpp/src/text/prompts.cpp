#include "text/prompts.hpp"

#include <algorithm>
#include <limits>

#include "errors.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

std::string repeated(std::string_view text, std::size_t times) {
  std::string result;
  result.reserve(text.size() * times);
  for (std::size_t i = 0; i < times; ++i) result += text;
  return result;
}

void check_unicode(std::string_view text) {
  if (!utf8::is_valid(text)) {
    throw InputError("the prompt is not valid Unicode: it holds bytes that are no UTF-8; leave them out");
  }
}

// Text tokens after the last visual one.
std::vector<std::int64_t> positions_after(const std::vector<std::int64_t>& images, std::size_t size) {
  std::vector<std::int64_t> positions;
  const std::int64_t first = images.empty() ? 0 : images.back() + 1;
  for (auto place = first; place < static_cast<std::int64_t>(size); ++place) positions.push_back(place);
  return positions;
}

}  // namespace

std::string TurnForm::around(std::string_view text) const {
  if (strip == Strip::kEnd) text = utf8::strip_end(text);
  if (strip == Strip::kBoth) text = utf8::strip(text);
  return prefix + std::string(text) + suffix;
}

std::string PromptForms::render(std::string_view question, std::size_t images) const {
  TurnForm form = images > 0 ? user_with_image : user;
  if (images > 1 && image) {
    const std::size_t at = form.prefix.find(*image);
    if (at != std::string::npos) form.prefix.replace(at, image->size(), repeated(*image, images));
  }
  return start + form.around(question) + generation_prompt;
}

std::string render(std::string_view question, const PromptSpec& spec, std::size_t images) {
  check_unicode(question);
  if (question.find(spec.image_token) != question.npos) return std::string(question);
  if (utf8::strip(question).empty()) {
    throw InputError("the prompt is empty; ask something about the picture");
  }
  if (spec.forms) return spec.forms->render(question, images);
  if (!spec.chat_template) {
    return "USER: " + repeated(spec.image_token + "\n", images) + std::string(question) + " ASSISTANT:";
  }
  throw InputError("the model's chat template can be rendered by Python alone; give the whole prompt, with " +
                   spec.image_token + " where each picture stands");
}

std::vector<std::int64_t> encode_prompt(std::string_view text, const Tokenizer& tokenizer,
                                        const PromptSpec& spec) {
  const auto bos = spec.special_tokens.find("bos_token");
  const bool has_bos = bos != spec.special_tokens.end() && text.starts_with(bos->second);
  return tokenizer.encode(text, !has_bos);
}

TokenizedPrompt tokenize(std::string_view text, const Tokenizer& tokenizer, const PromptSpec& spec,
                         std::span<const std::int64_t> tokens_per_image) {
  const std::vector<std::int64_t> prompt = encode_prompt(text, tokenizer, spec);
  const auto places = static_cast<std::size_t>(std::count(prompt.begin(), prompt.end(), spec.image_token_id));
  if (places != tokens_per_image.size()) {
    throw InputError("the prompt has " + std::to_string(places) + " " + spec.image_token +
                     " tokens, expected " + std::to_string(tokens_per_image.size()) +
                     ", one for each picture");
  }
  TokenizedPrompt result;
  auto repeats = tokens_per_image.begin();
  for (const std::int64_t id : prompt) {
    const bool is_image = id == spec.image_token_id;
    for (std::int64_t left = is_image ? *repeats++ : 1; left > 0; --left) {
      const auto place = static_cast<std::int64_t>(result.input_ids.size());
      if (is_image) result.image_positions.push_back(place);
      result.input_ids.push_back(id);
    }
  }
  result.query_positions = positions_after(result.image_positions, result.input_ids.size());
  if (result.query_positions.empty()) {
    throw InputError("no text follows " + spec.image_token +
                     "; STAR scores the pictures by the text after the last one, so put the question there");
  }
  return result;
}

std::vector<std::int64_t> end_token_ids(std::span<const std::string> texts, const Tokenizer& tokenizer) {
  std::vector<std::int64_t> found;
  for (const std::string& text : texts) {
    const auto token = tokenizer.token_to_id(text);
    if (!token) {
      const std::string count = std::to_string(tokenizer.encode(text, false).size());
      throw SettingsError("end_tokens=" + utf8::repr(text) + " is no token of this model, which reads it " +
                          "as " + count +
                          " tokens; give one that its tokenizer.json lists, or end answers with stop");
    }
    found.push_back(*token);
  }
  return found;
}

}  // namespace star
