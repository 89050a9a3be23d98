#include "pipeline/generation.hpp"

#include <algorithm>
#include <chrono>

#include "errors.hpp"

namespace star {
namespace {

// Milliseconds since the last lap, and since the start.
class Clock {
 public:
  double lap() {
    const Time now = std::chrono::steady_clock::now();
    return milliseconds(now - std::exchange(last_, now));
  }
  double total() const { return milliseconds(std::chrono::steady_clock::now() - start_); }

 private:
  using Time = std::chrono::steady_clock::time_point;
  static double milliseconds(std::chrono::steady_clock::duration time) {
    return std::chrono::duration<double, std::milli>(time).count();
  }

  Time start_ = std::chrono::steady_clock::now(), last_ = start_;
};

void go_on_unless(const std::stop_token& stop) {
  if (stop.stop_requested()) throw Error(ErrorKind::kCancelled, "the answer was cancelled before its end");
}

// Visual tokens that stage 1 kept, those of all pictures numbered one after the other.
std::vector<std::int64_t> stage1_indices(std::span<const ImageInputs> images,
                                         std::span<const VisionOutput> visions) {
  std::vector<std::int64_t> indices;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < images.size(); ++i) {
    for (const std::int64_t index : visions[i].indices()) indices.push_back(first + index);
    first += images[i].tokens;
  }
  return indices;
}

// Indices into the stage-1 tokens of those whose positions are kept, which ascend.
std::vector<std::int64_t> stage2_indices(const TokenizedPrompt& tokens, std::span<const std::int64_t> kept) {
  std::vector<std::int64_t> indices;
  for (std::size_t i = 0; i < tokens.image_positions.size(); ++i) {
    if (std::binary_search(kept.begin(), kept.end(), tokens.image_positions[i])) {
      indices.push_back(static_cast<std::int64_t>(i));
    }
  }
  return indices;
}

}  // namespace

Result answer_request(Steps& steps, const Request& request, Transcript transcript, const OnText& on_text,
                      const std::stop_token& stop) {
  const auto give = [&on_text](const std::string& piece) {
    if (on_text && !piece.empty()) on_text(piece);
  };
  Sampler sampler(request.sampling);
  Clock clock;
  Result result;
  const auto caches = steps.own_caches(request.tokens, request.keep, request.max_new_tokens);
  go_on_unless(stop);
  const std::vector<VisionOutput> visions = steps.encode_images(request.images, request.keep);
  result.timings_ms.vision = clock.lap();
  go_on_unless(stop);
  DecodeState state = steps.prefill(request.tokens, visions, caches, request.keep);
  std::int64_t token = state.next_token(sampler);
  result.timings_ms.prefill = clock.lap();
  result.stage1_indices = stage1_indices(request.images, visions);
  result.stage2_indices = stage2_indices(request.tokens, state.kept_positions());
  result.prompt_tokens = state.position();
  while (true) {
    give(transcript.push(token));
    if (transcript.finish_reason()) break;
    go_on_unless(stop);
    clock.lap();
    steps.decode(state, {&token, 1});
    token = state.next_token(sampler);
    result.timings_ms.decode.push_back(clock.lap());
  }
  const std::string rest = transcript.finish();
  result.timings_ms.total = clock.total();
  give(rest);
  result.text = transcript.text();
  result.token_ids = transcript.token_ids();
  result.finish_reason = transcript.finish_reason() == Transcript::Finish::kStop ? "stop" : "length";
  return result;
}

}  // namespace star
