// Just enough of CUDA to run our kernels on a CPU: one std::thread per CUDA thread, blocks one after
// the other. Shared memory is poisoned before every block, because on a GPU it holds anything.
// Compiled with: g++ -std=c++20 -include cuda_on_cpu.h -x c++ KERNEL.cu
#pragma once
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

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

extern "C" char __start_cuda_shared, __stop_cuda_shared;

// Run `kernel()` as a grid of `blocks` blocks of `threads` threads.
template <typename Kernel>
void run_on_cpu(unsigned int blocks, unsigned int threads, Kernel kernel) {
  std::barrier<> barrier(threads);
  block_barrier = &barrier;
  std::vector<std::jthread> all;
  for (unsigned int thread = 0; thread < threads; ++thread) {
    all.emplace_back([=] {
      threadIdx.x = thread;
      for (unsigned int block = 0; block < blocks; ++block) {
        blockIdx.x = block;
        __syncthreads();  // the previous block is done
        if (thread == 0) std::memset(&__start_cuda_shared, 0xA5, &__stop_cuda_shared - &__start_cuda_shared);
        __syncthreads();
        kernel();
      }
    });
  }
}
