#include "sampling/sampler.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <sstream>

#include "errors.hpp"

namespace star {
namespace {

std::uint64_t seed_of(const Sampling& sampling) {
  if (sampling.seed) return *sampling.seed;
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

// NumPy's pairwise sum, so that the last bit is the same too.
double sum_of(std::span<const double> values) {
  const std::size_t count = values.size();
  if (count < 8) {
    double sum = 0.0;
    for (const double value : values) sum += value;
    return sum;
  }
  if (count > 128) {
    const std::size_t half = count / 2 - count / 2 % 8;
    return sum_of(values.first(half)) + sum_of(values.subspan(half));
  }
  std::array<double, 8> sums{};
  std::copy_n(values.begin(), 8, sums.begin());
  std::size_t i = 8;
  for (; i < count - count % 8; i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += values[i + lane];
  }
  double sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  for (; i < count; ++i) sum += values[i];
  return sum;
}

std::vector<double> softmax(std::span<const float> logits, double temperature) {
  std::vector<double> values(logits.size());
  std::transform(logits.begin(), logits.end(), values.begin(),
                 [temperature](float logit) { return static_cast<double>(logit) / temperature; });
  const double largest = *std::max_element(values.begin(), values.end());
  for (double& value : values) value = std::exp(value - largest);
  const double sum = sum_of(values);
  for (double& value : values) value /= sum;
  return values;
}

// The fewest that together have `share`, in descending order, without sorting all of them.
std::vector<double> nucleus_of(std::span<const double> probabilities, double share) {
  std::vector<double> largest(probabilities.begin(), probabilities.end());
  double together = 0.0;
  // A nucleus is small, 512 tokens are enough, or else much of the vocabulary.
  for (std::size_t first = 0, count = 512; first < largest.size(); first = count, count *= 64) {
    count = std::min(count, largest.size());
    const auto end = largest.begin() + static_cast<std::ptrdiff_t>(count);
    std::partial_sort(largest.begin() + static_cast<std::ptrdiff_t>(first), end, largest.end(),
                      std::greater<>());
    for (std::size_t i = first; i < count; ++i) {
      together += largest[i];
      if (together >= share) {
        largest.resize(i + 1);
        return largest;
      }
    }
  }
  return largest;
}

}  // namespace

void Sampling::check() const {
  std::ostringstream text;
  if (!(temperature == 0.0 || (temperature >= 1e-3 && std::isfinite(temperature)))) {
    text << option("temperature") << " must be 0 (greedy) or a number from 0.001, got " << temperature;
  } else if (!(top_p > 0.0 && top_p <= 1.0)) {
    text << option("top_p") << " must be above 0 and at most 1, got " << top_p;
  } else {
    return;
  }
  throw SettingsError(text.str());
}

Sampler::Sampler(const Sampling& sampling) : sampling_(sampling), random_(seed_of(sampling)) {
  sampling_.check();
}

std::int64_t Sampler::draw(std::span<const float> logits) {
  const std::vector<double> probabilities = softmax(logits, sampling_.temperature);
  if (sampling_.top_p == 1.0) return static_cast<std::int64_t>(one_of(probabilities));
  const std::vector<double> nucleus = nucleus_of(probabilities, sampling_.top_p);
  const std::size_t place = one_of(nucleus);
  const double drawn = nucleus[place];
  const auto larger = std::count_if(nucleus.begin(), nucleus.end(), [drawn](double p) { return p > drawn; });
  std::size_t skipped = place - static_cast<std::size_t>(larger);  // of equals, the lower id comes first
  for (std::size_t token = 0; token < probabilities.size(); ++token) {
    if (probabilities[token] == drawn && skipped-- == 0) return static_cast<std::int64_t>(token);
  }
  return static_cast<std::int64_t>(probabilities.size()) - 1;
}

// As numpy.random.Generator.choice: the place of a uniform number among cumulated weights.
std::size_t Sampler::one_of(std::span<const double> weights) {
  const double sum = sum_of(weights);
  std::vector<double> cumulated;
  cumulated.reserve(weights.size());
  double together = 0.0;
  for (const double weight : weights) cumulated.push_back(together += weight / sum);
  for (double& value : cumulated) value /= together;
  const auto found = std::upper_bound(cumulated.begin(), cumulated.end(), random_.uniform());
  return std::min(static_cast<std::size_t>(found - cumulated.begin()), weights.size() - 1);
}

std::int64_t argmax(std::span<const float> logits) {
  std::int64_t best = -1;
  float largest = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) return -1;
    if (logits[i] > largest) largest = logits[i], best = static_cast<std::int64_t>(i);
  }
  return std::isfinite(largest) ? best : -1;
}

}  // namespace star
