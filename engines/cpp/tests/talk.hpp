// Programs that Python's tests speak with: a line of JSON for a line of JSON.
#pragma once

#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "errors.hpp"

namespace star {

// Answers until the input ends: {"result": ...}, or {"error": ..., "kind": ...}.
template <typename Answer>
void talk(Answer answer) {
  using json = nlohmann::json;
  for (std::string line; std::getline(std::cin, line);) {
    json reply;
    try {
      reply["result"] = answer(json::parse(line));
    } catch (const Error& error) {
      reply = {{"error", error.what()}, {"kind", static_cast<int>(error.kind())}};
    }
    std::cout << reply.dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
  }
}

}  // namespace star
