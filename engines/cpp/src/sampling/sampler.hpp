// How the next token is chosen from logits in host memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sampling/random.hpp"
#include "star/settings.hpp"

namespace star {

// Draws one token after another; equal seeds give equal tokens.
class Sampler {
 public:
  // Throws SettingsError; see Sampling::check.
  explicit Sampler(const Sampling& sampling);

  // Whether the best token is always taken, so that the logits need not leave the device.
  bool greedy() const { return sampling_.temperature == 0.0; }

  // A token by chance, for a sampler that is not greedy. The largest of the logits is finite.
  std::int64_t draw(std::span<const float> logits);

 private:
  std::size_t one_of(std::span<const double> weights);

  Sampling sampling_;
  Random random_;
};

// Index of the largest, ties to the lower index; -1 where the largest, as NumPy orders them, is not finite:
// there is a NaN or plus infinity, or minus infinity alone.
std::int64_t argmax(std::span<const float> logits);

}  // namespace star
