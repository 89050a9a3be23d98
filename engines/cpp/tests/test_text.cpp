#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "errors.hpp"
#include "text/expression.hpp"
#include "text/prompts.hpp"
#include "text/tokenizer.hpp"
#include "text/transcript.hpp"
#include "text/utf8.hpp"

namespace {

// Words of ▁, a and b; what has no token is bytes, as far as <0xC3> and <0xA9> go, then <unk>.
constexpr const char* kFile = R"({
  "version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [
    {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 9, "content": "<image>", "single_word": false, "lstrip": false, "rstrip": true,
     "normalized": false, "special": true}],
  "normalizer": {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
  "pre_tokenizer": null,
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
  "decoder": {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
    {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
  "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
    "vocab": {"<s>": 0, "<unk>": 1, "<0xC3>": 2, "<0xA9>": 3, "▁": 4, "a": 5, "b": 6, "▁a": 7, "ab": 8},
    "merges": ["▁ a", ["a", "b"]]}})";

using Ids = std::vector<std::int64_t>;

nlohmann::json file() { return nlohmann::json::parse(kFile); }

star::Tokenizer tokenizer(const nlohmann::json& content = file()) {
  return star::Tokenizer::parse(content.dump(), "tokenizer.json");
}

star::PromptSpec spec() {
  star::PromptSpec made;
  made.image_token = "<image>";
  made.image_token_id = 9;
  made.special_tokens["bos_token"] = "<s>";
  return made;
}

}  // namespace

TEST_CASE("UTF-8 is read as Unicode says") {
  CHECK(star::utf8::is_valid("a\u00e9\u72ac\U0001F389"));
  CHECK_FALSE(star::utf8::is_valid("\xC0\x80"));
  CHECK_FALSE(star::utf8::is_valid("\xED\xA0\x80"));
  CHECK(star::utf8::lossy("a\xE7\x8A z\xF0\x9F\x8E\xFF") == "a\uFFFD z\uFFFD\uFFFD");
  CHECK(star::utf8::strip("\u3000\x1C a \n") == "a");
  CHECK(star::utf8::repr("it's \n\xC2\x85") == "\"it's \\n\\x85\"");
}

TEST_CASE("expressions that two libraries read differently are refused") {
  CHECK(star::Expression(R"(\p{N}{1,3}|[^\s\p{L}]+)").find_all("12345 !?a").size() == 3);
  for (const char* pattern :
       {R"(\w+)", "a.b", "^a", "a$", "[[:alpha:]]", R"([\S])", R"(\p{Lu})", "a{2}+", "("}) {
    CHECK_THROWS_AS(star::Expression{pattern}, star::BundleError);
  }
}

TEST_CASE("a text is tokens and tokens are a text") {
  CHECK(tokenizer().encode("ab a", true) == Ids{0, 7, 6, 7});
  CHECK(tokenizer().encode("<image>  \u00e9\u00ea", false) == Ids{9, 4, 2, 3, 1});
  CHECK(tokenizer().encode("", true) == Ids{0});
  CHECK(tokenizer().decode(Ids{0, 7, 2, 3, 2, 9, 99, -1}) == "a\uFFFD\uFFFD\uFFFD");
  CHECK(tokenizer().decode(Ids{0, 7}, false) == "<s> a");
  CHECK(tokenizer().token_to_id("<image>") == 9);
  CHECK_THROWS_AS(tokenizer().encode("\xFF", true), star::InputError);
}

TEST_CASE("what is not supported is refused by name") {
  auto changed = file();
  changed["pre_tokenizer"] = {{"type", "Punctuation"}};
  CHECK_THROWS_WITH_AS(tokenizer(changed),
                       "tokenizer.json cannot be used without Python: pre_tokenizer: the pre-tokenizer "
                       "'Punctuation' is not supported, expected Sequence, Split, ByteLevel, Metaspace or "
                       "Digits; run the bundle with star-export run",
                       star::BundleError);
  changed = file();
  changed["model"]["vocab"]["a"] = "5";
  CHECK_THROWS_WITH_AS(tokenizer(changed),
                       "tokenizer.json is damaged: model.vocab.a: expected int, got str, found '5'; build "
                       "the bundle again",
                       star::BundleError);
}

TEST_CASE("a prompt has its pictures' tokens, and text behind them") {
  const auto found = star::tokenize("a<image>b", tokenizer(), spec(), Ids{3});
  CHECK(found.input_ids == Ids{0, 7, 9, 9, 9, 4, 6});
  CHECK(found.image_positions == Ids{2, 3, 4});
  CHECK(found.query_positions == Ids{5, 6});
  CHECK(star::tokenize("<s>a", tokenizer(), spec(), {}).query_positions == Ids{0, 1});
  CHECK_THROWS_AS(star::tokenize("a", tokenizer(), spec(), Ids{3}), star::InputError);
  CHECK_THROWS_AS(star::tokenize("a<image>", tokenizer(), spec(), Ids{3}), star::InputError);
  CHECK(star::render("a", spec(), 2) == "USER: <image>\n<image>\na ASSISTANT:");
  CHECK_THROWS_AS(star::render(" \n", spec()), star::InputError);
}

TEST_CASE("a stop string is no part of the text") {
  star::Transcript transcript(tokenizer(), {0}, 10, {" ab"});
  CHECK(transcript.push(5) == "a");
  CHECK(transcript.push(7).empty());  // may become the stop string
  CHECK(transcript.push(6).empty());
  CHECK(transcript.finish_reason() == star::Transcript::Finish::kStop);
  CHECK(transcript.finish().empty());
  CHECK(transcript.text() == "a");
  CHECK_THROWS_AS(star::check_stop(std::vector<std::string>{""}), star::SettingsError);
}

TEST_CASE("a first character that others join stays whole") {
  nlohmann::json content = file();
  content["normalizer"]["normalizers"] = {
      {{"type", "Prepend"}, {"prepend", "a"}}, {{"type", "NFC"}}, {{"type", "NFC"}}};
  CHECK_FALSE(tokenizer(content).encode("e\u0301a", false).empty());
}

TEST_CASE("a tokenizer that doubles texts again and again is refused") {
  nlohmann::json content = file();
  const nlohmann::json step{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  content["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", std::vector(60, step)}};
  CHECK_THROWS_AS(tokenizer(content).encode("\u00e9", false), star::InputError);
}
