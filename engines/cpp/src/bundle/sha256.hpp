// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace star {

class Sha256 {
 public:
  void update(std::span<const std::byte> data);
  // Lower-case hex; the object is used up.
  std::string hex();

 private:
  static constexpr std::size_t kBlock = 64;

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, kBlock> pending_{};
  std::uint64_t length_ = 0;
};

// Of a file, read in pieces of 1 MiB. Throws BundleError if it cannot be read.
std::string sha256_of(const std::filesystem::path& path);

}  // namespace star
