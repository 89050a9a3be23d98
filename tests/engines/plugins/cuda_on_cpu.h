// Just enough of CUDA to run topk_gather.cu on a CPU: one std::thread per CUDA thread, blocks one after
// the other. Shared memory is poisoned before every block, because on a GPU it holds anything.
// Compiled with: g++ -std=c++20 -include cuda_on_cpu.h -x c++ topk_gather.cu -x c++ cuda_on_cpu.cpp
#pragma once
#include <algorithm>
#include <atomic>
#include <barrier>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ __attribute__((section("cuda_shared"))) static

using std::min;

struct Index {
  unsigned int x;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};

inline thread_local Index blockIdx, threadIdx;
inline std::barrier<>* block_barrier;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

inline void atomicAdd(unsigned int* counter, unsigned int value) {
  std::atomic_ref<unsigned int>(*counter).fetch_add(value, std::memory_order_relaxed);
}
