// The prompt's part of preprocessor.json, every value of its own type, nothing dropped in silence.
#include <algorithm>
#include <filesystem>

#include "errors.hpp"
#include "text/fields.hpp"
#include "text/prompts.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

std::optional<std::string> optional_text(const Fields& fields, std::string_view key) {
  const auto& value = fields.value(key);
  if (!value.is_null() && !value.is_string()) fields.refuse(key, "str | null");
  return value.is_null() ? std::nullopt : std::optional(value.get<std::string>());
}

TurnForm read_turn(const Fields& form) {
  TurnForm turn{form.text("prefix"), form.text("suffix")};
  if (form.contains("strip")) {
    const std::string& strip = form.text("strip");
    if (strip != "none" && strip != "end" && strip != "both") form.refuse_choice("strip");
    turn.strip = strip == "end"    ? TurnForm::Strip::kEnd
                 : strip == "both" ? TurnForm::Strip::kBoth
                                   : TurnForm::Strip::kNone;
  }
  form.require_known({"prefix", "suffix", "strip"});
  return turn;
}

PromptForms read_forms(const Fields& forms) {
  PromptForms read{forms.text("start"),
                   read_turn(forms.object("user")),
                   read_turn(forms.object("user_with_image")),
                   read_turn(forms.object("assistant")),
                   forms.text("generation_prompt"),
                   forms.contains("image") ? optional_text(forms, "image") : std::nullopt};
  forms.require_known({"start", "user", "user_with_image", "assistant", "generation_prompt", "image"});
  return read;
}

void read_texts(const Fields& prompt, PromptSpec& spec) {
  const Fields special = prompt.object("special_tokens");
  for (const auto& [name, value] : prompt.value("special_tokens").items()) {
    // Inside a mapping, Python's messages have neither the path of a value nor the value.
    if (!value.is_string()) {
      throw BundleError(special.path() + "[...]: expected str, got " + std::string(json_kind(value)));
    }
    spec.special_tokens[name] = value.get<std::string>();
  }
  if (!prompt.contains("end_tokens")) return;
  const auto& tokens = prompt.array("end_tokens");
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::string path = prompt.path("end_tokens") + "[" + std::to_string(i) + "]";
    spec.end_tokens.push_back(Value(tokens[i], path).text());
  }
}

PromptSpec read_spec(const Fields& prompt) {
  PromptSpec spec;
  spec.image_token = prompt.text("image_token");
  if (spec.image_token.empty()) {
    throw BundleError(prompt.path("image_token") + ": expected str of length >= 1, found ''");
  }
  spec.image_token_id = prompt.number("image_token_id");
  spec.chat_template = optional_text(prompt, "chat_template");
  read_texts(prompt, spec);
  if (prompt.contains("content")) {
    const std::string& content = prompt.text("content");
    if (content != "parts" && content != "string") prompt.refuse_choice("content");
  }
  if (prompt.contains("given_template")) prompt.boolean("given_template");
  if (prompt.has("forms")) {
    if (!prompt.value("forms").is_object()) prompt.refuse("forms", "object | null");
    spec.forms = read_forms(prompt.object("forms"));
  }
  prompt.require_known({"image_token", "image_token_id", "chat_template", "special_tokens", "content",
                        "given_template", "end_tokens", "forms"});
  return spec;
}

std::size_t count(std::string_view text, std::string_view token) {
  std::size_t found = 0;
  for (std::size_t at = 0; (at = text.find(token, at)) != text.npos; at += token.size()) ++found;
  return found;
}

void check_fit(const PromptSpec& spec, std::int64_t image_token_id) {
  if (spec.image_token_id != image_token_id) {
    throw BundleError("prompt.image_token_id: the model has " + std::to_string(image_token_id) + ", found " +
                      std::to_string(spec.image_token_id));
  }
  if (!spec.forms) return;
  const std::string& token = spec.image_token;
  const std::string& prefix = spec.forms->user_with_image.prefix;
  if (const std::size_t found = count(prefix, token); found != 1) {
    throw BundleError("prompt.forms.user_with_image.prefix: expected one " + token + ", found " +
                      std::to_string(found));
  }
  const auto& image = spec.forms->image;
  if (image && (image->find(token) == image->npos || prefix.find(*image) == prefix.npos)) {
    throw BundleError("prompt.forms.image: expected " + token + ", as it is in user_with_image.prefix");
  }
}

}  // namespace

PromptSpec read_prompt(const nlohmann::json& preprocessor, const std::string& path,
                       std::int64_t image_token_id) {
  try {
    const Fields file(preprocessor, "");
    PromptSpec spec = read_spec(file.object("prompt"));
    file.require_known({"image", "prompt"});
    check_fit(spec, image_token_id);
    return spec;
  } catch (const BundleError& error) {
    throw BundleError(path + " is damaged: " + error.what() + "; build the bundle again");
  }
}

Tokenizer read_tokenizer(const std::filesystem::path& path, const PromptSpec& prompt) {
  Tokenizer tokenizer = Tokenizer::open(path);
  std::vector<std::int64_t> found;
  try {
    found = tokenizer.encode(prompt.image_token, true);
  } catch (const InputError& error) {
    throw BundleError(path.string() + " is damaged: " + error.what() + "; build the bundle again");
  }
  if (std::count(found.begin(), found.end(), prompt.image_token_id) == 1) return tokenizer;
  found.resize(std::min<std::size_t>(found.size(), 8));
  throw BundleError(path.string() + " makes " + repr(nlohmann::json(found)) + " of " + prompt.image_token +
                    ", whose id is " + std::to_string(prompt.image_token_id) + "; build the bundle again");
}

}  // namespace star
