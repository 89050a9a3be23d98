// The algorithms are those of NumPy (SeedSequence) and PCG; their notices are in NOTICE beside this file.
#include "sampling/random.hpp"

#include <array>
#include <bit>
#include <vector>

namespace star {
namespace {

constexpr std::size_t kPool = 4;

// SeedSequence's hash of one word; every use changes the multiplier.
class Hash {
 public:
  Hash(std::uint32_t first, std::uint32_t factor) : multiplier_(first), factor_(factor) {}

  std::uint32_t operator()(std::uint32_t value) {
    value ^= multiplier_;
    multiplier_ *= factor_;
    value *= multiplier_;
    return value ^ value >> 16;
  }

 private:
  std::uint32_t multiplier_;
  std::uint32_t factor_;
};

std::uint32_t mixed(std::uint32_t x, std::uint32_t y) {
  const std::uint32_t result = 0xca01f9dd * x - 0x4973f715 * y;
  return result ^ result >> 16;
}

std::array<std::uint32_t, kPool> pool_of(std::span<const std::uint32_t> entropy) {
  Hash hash(0x43b0d7e5, 0x931e8875);
  std::array<std::uint32_t, kPool> pool{};
  for (std::size_t i = 0; i < kPool; ++i) pool[i] = hash(i < entropy.size() ? entropy[i] : 0);
  for (std::size_t from = 0; from < kPool; ++from) {
    for (std::size_t to = 0; to < kPool; ++to) {
      if (from != to) pool[to] = mixed(pool[to], hash(pool[from]));
    }
  }
  for (std::size_t from = kPool; from < entropy.size(); ++from) {
    for (std::uint32_t& word : pool) word = mixed(word, hash(entropy[from]));
  }
  return pool;
}

std::array<std::uint32_t, 8> state_of(std::span<const std::uint32_t> entropy) {
  const auto pool = pool_of(entropy);
  Hash hash(0x8b51f9dd, 0x58f38ded);
  std::array<std::uint32_t, 8> state{};
  for (std::size_t i = 0; i < state.size(); ++i) state[i] = hash(pool[i % kPool]);
  return state;
}

// An integer's words without leading zeros, of which 0 has one.
std::vector<std::uint32_t> words_of(std::uint64_t seed) {
  std::vector<std::uint32_t> words{static_cast<std::uint32_t>(seed)};
  if (seed >> 32 != 0) words.push_back(static_cast<std::uint32_t>(seed >> 32));
  return words;
}

}  // namespace

Random::Random(std::span<const std::uint32_t> seed) {
  const auto words = state_of(seed);
  const auto wide = [&](std::size_t i) { return Uint128{words[2 * i + 1]} << 32 | words[2 * i]; };
  const Uint128 start = wide(0) << 64 | wide(1), stream = wide(2) << 64 | wide(3);
  increment_ = stream << 1 | 1;
  step();
  state_ += start;
  step();
}

Random::Random(std::uint64_t seed) : Random(std::span<const std::uint32_t>(words_of(seed))) {}

void Random::step() {
  constexpr Uint128 kMultiplier = Uint128{2549297995355413924U} << 64 | 4865540595714422341U;
  state_ = state_ * kMultiplier + increment_;
}

std::uint64_t Random::next() {
  step();
  const auto high = static_cast<std::uint64_t>(state_ >> 64), low = static_cast<std::uint64_t>(state_);
  return std::rotr(high ^ low, static_cast<int>(high >> 58));
}

}  // namespace star
