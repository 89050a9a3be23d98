// A fake GPU: what the tests may set and count. Device memory is host memory under addresses that no process
// has, so that code which follows one on the host dies; work begins when somebody waits for it, as late as
// may be.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <functional>

struct FakeGpu {
  int driver = 13000, devices = 1, major = 8, minor = 9;
  std::size_t memory = std::size_t{4} << 30;
  std::array<int, 4> tensorrt{};  // version
  bool tensorrt_starts = true, captures = true, compiles = true, fits = true;
  // What has happened.
  int runtimes = 0, contexts = 0, enqueued = 0, captured = 0, launched = 0, waited = 0, allocated = 0,
      kernels = 0, strategies = 0;
  std::size_t in_use = 0;
  std::size_t uploaded = 0, downloaded = 0;  // bytes
};

extern "C" FakeGpu* fake_gpu();

// The bytes at a device address, which must lie in one allocation; null otherwise.
std::byte* fake_view(const void* address, std::size_t size);
// Puts work on a stream; its result is whether it succeeded.
cudaError_t fake_enqueue(cudaStream_t stream, std::function<bool()> work);
