// Answers requests about texts.
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "talk.hpp"
#include "text/prompts.hpp"
#include "text/tokenizer.hpp"
#include "text/transcript.hpp"
#include "text/utf8.hpp"

namespace {

using nlohmann::json;

using Ids = std::vector<std::int64_t>;
using Texts = std::vector<std::string>;

class Talker {
 public:
  json answer(const json& request) {
    const std::string what = request.at("what");
    if (what == "open") {
      tokenizer_.emplace(star::Tokenizer::open(request.at("path").get<std::string>()));
      return nullptr;
    }
    if (what == "encode" || what == "decode") return coded(request, what == "encode");
    if (what == "name") {
      const auto name = tokenizer_->id_to_token(request.at("id"));
      return name ? json(*name) : json(nullptr);
    }
    if (what == "id") {
      const auto id = tokenizer_->token_to_id(request.at("token").get<std::string>());
      return id ? json(*id) : json(nullptr);
    }
    if (what == "prompt") {
      spec_ = star::read_prompt(request.at("file"), request.at("path"), request.at("image_token_id"));
      return nullptr;
    }
    if (what == "render") {
      return star::render(request.at("text").get<std::string>(), spec_, request.at("images"));
    }
    if (what == "tokenize") return tokenized(request);
    if (what == "end_tokens") return star::end_token_ids(request.at("texts").get<Texts>(), *tokenizer_);
    if (what == "read_tokenizer") {
      tokenizer_.emplace(star::read_tokenizer(request.at("path").get<std::string>(), spec_));
      return nullptr;
    }
    if (what == "transcript") return transcript(request);
    throw std::invalid_argument("unknown request " + what);
  }

 private:
  json coded(const json& request, bool encodes) const {
    json results = json::array();
    for (const auto& value : request.at(encodes ? "texts" : "ids")) {
      results.push_back(encodes ? json(tokenizer_->encode(value.get<std::string>(), request.at("special")))
                                : json(tokenizer_->decode(value.get<Ids>(), request.at("skip"))));
    }
    return results;
  }

  json tokenized(const json& request) const {
    const auto prompt = star::tokenize(request.at("text").get<std::string>(), *tokenizer_, spec_,
                                       request.at("tokens_per_image").get<Ids>());
    return {prompt.input_ids, prompt.image_positions, prompt.query_positions, prompt.text_tokens()};
  }

  json transcript(const json& request) const {
    const auto stop = request.at("stop").get<Texts>();
    star::check_stop(stop);
    star::Transcript transcript(*tokenizer_, request.at("eos").get<Ids>(), request.at("limit"), stop);
    json pieces = json::array();
    for (const auto& token : request.at("tokens")) {
      pieces.push_back(transcript.push(token));
      if (transcript.finish_reason()) break;
    }
    pieces.push_back(transcript.finish());
    const auto reason = transcript.finish_reason();
    const bool by_stop = reason == star::Transcript::Finish::kStop;
    return {pieces, transcript.text(), reason ? json(by_stop ? "stop" : "length") : json(nullptr)};
  }

  std::optional<star::Tokenizer> tokenizer_;
  star::PromptSpec spec_;
};

}  // namespace

int main() {
  Talker talker;
  star::talk([&](const auto& request) { return talker.answer(request); });
}
