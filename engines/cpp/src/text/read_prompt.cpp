// The prompt's part of preprocessor.json, every value of its own type, nothing dropped in silence.
#include <algorithm>
#include <filesystem>

#include "bundle/json.hpp"
#include "errors.hpp"
#include "text/prompts.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

std::optional<std::string> optional_text(const std::optional<Value>& value) {
  if (!value || value->is_null()) return std::nullopt;
  if (!value->json().is_string()) value->refuse_kind("str | null");
  return value->text();
}

// A text that is none of those it may be.
[[noreturn]] void refuse_choice(const Value& value) {
  value.refuse("invalid enum value '" + value.text() + "'");
}

TurnForm read_turn(const Object& form) {
  TurnForm turn{form.get("prefix").text(), form.get("suffix").text()};
  if (const auto value = form.find("strip")) {
    const std::string& strip = value->text();
    if (strip != "none" && strip != "end" && strip != "both") refuse_choice(*value);
    turn.strip = strip == "end"    ? TurnForm::Strip::kEnd
                 : strip == "both" ? TurnForm::Strip::kBoth
                                   : TurnForm::Strip::kNone;
  }
  form.done();
  return turn;
}

PromptForms read_forms(const Object& forms) {
  PromptForms read{forms.get("start").text(),
                   read_turn(Object(forms.get("user"))),
                   read_turn(Object(forms.get("user_with_image"))),
                   read_turn(Object(forms.get("assistant"))),
                   forms.get("generation_prompt").text(),
                   optional_text(forms.find("image"))};
  forms.done();
  return read;
}

void read_texts(const Object& prompt, PromptSpec& spec) {
  const Value special = prompt.get("special_tokens");
  for (const auto& [name, value] : special.members()) {
    // Inside a mapping, Python's messages have neither the path of a value nor the value.
    if (!value.json().is_string()) {
      throw BundleError(special.path() + "[...]: expected str, got " + std::string(json_kind(value.json())));
    }
    spec.special_tokens[name] = value.text();
  }
  const auto tokens = prompt.find("end_tokens");
  if (!tokens) return;
  for (const Value& token : tokens->items()) spec.end_tokens.push_back(token.text());
}

PromptSpec read_spec(const Object& prompt) {
  PromptSpec spec;
  const Value image_token = prompt.get("image_token");
  spec.image_token = image_token.text();
  if (spec.image_token.empty()) image_token.refuse("expected str of length >= 1");
  spec.image_token_id = prompt.get("image_token_id").token_id();
  spec.chat_template = optional_text(prompt.get("chat_template"));
  read_texts(prompt, spec);
  const auto content = prompt.find("content");
  if (content && content->text() != "parts" && content->text() != "string") refuse_choice(*content);
  if (const auto given_template = prompt.find("given_template")) given_template->boolean();
  if (const auto forms = prompt.given("forms")) {
    if (!forms->json().is_object()) forms->refuse_kind("object | null");
    spec.forms = read_forms(Object(*forms));
  }
  prompt.done();
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
    const Object file(Value(preprocessor, ""));
    PromptSpec spec = read_spec(Object(file.get("prompt")));
    file.find("image");
    file.done();
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
