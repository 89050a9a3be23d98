// The three steps of an answer, and what they pass on to each other: vision, prefill with pruning, decode.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "pipeline/inputs.hpp"
#include "sampling/sampler.hpp"
#include "session/session.hpp"
#include "text/prompts.hpp"

namespace star {

// What the vision graph gives.
struct VisionOutput {
  std::variant<SharedArray, HostArray> features;  // [1, N1, C], where the backend keeps them or on the host
  SharedArray kept;                               // int64 [1, N1], or null where nothing is pruned
  std::int64_t num_tokens = 0;

  // Visual tokens that stage 1 kept; waits, and is to be asked before the vision graph's next run.
  std::vector<std::int64_t> indices() const;
};

// One sequence between prefill and its last token.
class DecodeState {
 public:
  // Position of the next token: as many are in the first group's caches.
  std::int64_t position() const { return lengths_.front(); }
  const std::vector<std::int64_t>& lengths() const { return lengths_; }
  std::int64_t prompt_tokens() const { return prompt_tokens_; }
  // float32 [vocab] after the last token, copied from the device.
  std::vector<float> logits() const;
  // Prompt positions that each stage inside the decoder kept; to be asked before the next prefill.
  std::vector<std::vector<std::int64_t>> stage_positions() const;
  // Prompt positions that the last layers saw.
  std::vector<std::int64_t> kept_positions() const;
  // The token to append. Throws an Error of kind kNonFinite if the logits are NaN or infinite; the caches are
  // clean then.
  std::int64_t next_token(Sampler& sampler);
  // Whether the caches hold it no more: another prefill filled them, or they were cleaned.
  bool stale() const { return caches_->holder() != number_; }

 private:
  friend class Steps;

  std::shared_ptr<Caches> caches_;
  std::uint64_t number_ = 0;
  SharedArray output_;
  std::vector<SharedArray> kept_;
  std::int64_t prompt_tokens_ = 0;
  std::vector<std::int64_t> lengths_;
};

// The three graphs of a bundle on one session: see a picture, read a prompt, append a token.
class Steps {
 public:
  explicit Steps(Session& session);

  const ExportSpec& spec() const { return session_.spec(); }

  // Runs the vision graph on each picture; what it gives for several is copied to the host.
  std::vector<VisionOutput> encode_images(std::span<const ImageInputs> images,
                                          const std::optional<Keep>& keep = std::nullopt);

  // KV caches of one sequence, the same ones as long as their capacities fit; who held them holds them no
  // more. Without `new_tokens` they have room for the longest answer.
  std::shared_ptr<Caches> own_caches(const TokenizedPrompt& tokens,
                                     const std::optional<Keep>& keep = std::nullopt,
                                     std::optional<std::int64_t> new_tokens = std::nullopt);

  // Runs the prefill graph, which fills the caches from index 0. A prompt without a picture is run through
  // decode, into empty caches: the graph has no size 0.
  DecodeState prefill(const TokenizedPrompt& tokens, std::span<const VisionOutput> visions,
                      std::shared_ptr<Caches> caches, const std::optional<Keep>& keep = std::nullopt);

  // Appends tokens to a sequence and updates its logits. Throws InputError if its caches hold it no more, or
  // have no room.
  void decode(DecodeState& state, std::span<const std::int64_t> tokens);

 private:
  VisionOutput encode_image(const ImageInputs& image, const std::optional<Keep>& keep);
  void read(DecodeState& state, const TokenizedPrompt& tokens, std::span<const VisionOutput> visions,
            const std::optional<Keep>& keep);
  SharedArray decode_once(Caches& caches, std::span<const std::int64_t> tokens,
                          std::span<const std::int64_t> lengths);

  Session& session_;
  std::vector<std::string> lengths_names_, slots_, kept_names_;
  std::shared_ptr<Caches> own_;
};

}  // namespace star
