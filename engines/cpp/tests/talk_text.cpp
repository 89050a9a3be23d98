// Answers requests about texts, a line of JSON for a line of JSON.
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "errors.hpp"
#include "text/tokenizer.hpp"
#include "text/utf8.hpp"

namespace {

using nlohmann::json;

class Talker {
 public:
  json answer(const json& request) {
    const std::string what = request.at("what");
    if (what == "open") {
      tokenizer_.emplace(star::Tokenizer::open(request.at("path").get<std::string>()));
      return nullptr;
    }
    if (what == "encode") {
      json ids = json::array();
      for (const auto& text : request.at("texts")) {
        ids.push_back(tokenizer_->encode(text.get_ref<const std::string&>(), request.at("special")));
      }
      return ids;
    }
    if (what == "decode") {
      json texts = json::array();
      for (const auto& ids : request.at("ids")) {
        texts.push_back(tokenizer_->decode(ids.get<std::vector<std::int64_t>>(), request.at("skip")));
      }
      return texts;
    }
    if (what == "name") {
      const auto name = tokenizer_->id_to_token(request.at("id"));
      return name ? json(*name) : json(nullptr);
    }
    if (what == "id") {
      const auto id = tokenizer_->token_to_id(request.at("token").get<std::string>());
      return id ? json(*id) : json(nullptr);
    }
    throw std::invalid_argument("unknown request " + what);
  }

 private:
  std::optional<star::Tokenizer> tokenizer_;
};

}  // namespace

int main() {
  Talker talker;
  for (std::string line; std::getline(std::cin, line);) {
    json reply;
    try {
      reply["result"] = talker.answer(json::parse(line));
    } catch (const star::Error& error) {
      reply["error"] = error.what();
      reply["kind"] = static_cast<int>(error.kind());
    }
    std::cout << reply.dump() << std::endl;
  }
}
