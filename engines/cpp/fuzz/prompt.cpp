// preprocessor.json, and behind a NUL a question that is put into its prompt.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "bundle/json.hpp"
#include "fuzz.hpp"
#include "image/image_spec.hpp"
#include "json_mutator.hpp"
#include "text/prompts.hpp"

namespace {

constexpr const char* kTokenizer =
    R"({"model": {"type": "BPE", "vocab": {"<image>": 0, "a": 1, " ": 2}, "merges": []},
  "added_tokens": [{"id": 0, "content": "<image>", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true}]})";

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  return star::fuzz::mutate_json(data, size, most, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const star::Tokenizer tokenizer = star::Tokenizer::parse(kTokenizer, "tokenizer.json");
  const std::string_view all = star::fuzz::text(data, size);
  const std::size_t end = std::min(all.find('\0'), size);
  star::fuzz::refusing([&] {
    const star::Json file = star::parse_json(all.substr(0, end));
    star::fuzz::refusing([&] {
      if (file.is_object() && file.contains("image")) {
        star::read_image_spec(file.at("image"), {28, 14, 4}, size % 2 == 1, "preprocessor.json");
      }
    });
    const star::PromptSpec spec = star::read_prompt(file, "preprocessor.json", 0);
    const std::vector<std::int64_t> tokens(1 + size % 3, 4);
    const std::string text = star::render(all.substr(std::min(end + 1, size)), spec, tokens.size());
    star::tokenize(text, tokenizer, spec, tokens);
    star::end_token_ids(spec.end_tokens, tokenizer);
  });
  return 0;
}
