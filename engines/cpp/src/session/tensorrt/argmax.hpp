// Greedy sampling on the GPU: 8 bytes per sequence come back instead of its logits.
//
// The kernel, which is Python's, is compiled at session start for the GPU at hand, to machine code and not to
// PTX: a driver refuses PTX of a newer toolkit than its own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <utility>
#include <vector>

#include "session/tensorrt/cuda.hpp"

namespace star {

struct UnloadLibrary {
  void operator()(cudaLibrary_t library) const { cuda().cudaLibraryUnload(library); }
};

// The compiled kernel and the memory for its result.
class Argmax {
 public:
  // `max_rows` sequences it can be called for at once. Throws PlatformError if NVRTC is missing or does not
  // know the GPU.
  Argmax(const std::filesystem::path& nvrtc, std::pair<int, int> capability, std::int64_t max_rows);

  // Index of the largest of each row of float32 `[rows, vocab]`, -1 for a row whose largest is not finite;
  // waits for the stream.
  std::vector<std::int64_t> find(const Stream& stream, const std::byte* logits, std::int64_t rows,
                                 std::int64_t vocab) const;

 private:
  Owned<cudaLibrary_t, UnloadLibrary> library_;
  cudaKernel_t kernel_ = nullptr;
  DeviceBuffer tokens_;
  PinnedBuffer landing_;
};

// Machine code of the kernel for one GPU; needs none. Throws PlatformError if NVRTC is missing or does not
// know it.
std::vector<char> compile_argmax(const std::filesystem::path& nvrtc, std::pair<int, int> capability);

}  // namespace star
