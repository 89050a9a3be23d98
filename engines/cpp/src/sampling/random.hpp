// NumPy's default random numbers: PCG64, seeded by SeedSequence. Equal seeds give equal numbers.
#pragma once

#include <cstdint>
#include <span>

namespace star {

class Random {
 public:
  // `seed` as `numpy.random.default_rng` takes it: an integer's 32-bit words, the lowest first.
  explicit Random(std::span<const std::uint32_t> seed);
  explicit Random(std::uint64_t seed);

  std::uint64_t next();
  // From 0 to 1, 1 excluded.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  __extension__ using Uint128 = unsigned __int128;

  void step();

  Uint128 state_ = 0;
  Uint128 increment_ = 0;
};

}  // namespace star
