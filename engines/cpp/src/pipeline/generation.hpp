// One answer: its tokens one after the other, its text as it comes, and what it cost.
#pragma once

#include <stop_token>

#include "pipeline/request.hpp"
#include "pipeline/steps.hpp"
#include "star/pipeline.hpp"

namespace star {

// Answers a request in the steps' own caches. Throws an Error of kind kCancelled when `stop` asks for the
// end.
Result answer_request(Steps& steps, const Request& request, Transcript transcript, const OnText& on_text,
                      const std::stop_token& stop);

}  // namespace star
