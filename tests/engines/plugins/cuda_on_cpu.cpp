// Launches star_topk_gather on the CPU; see cuda_on_cpu.h.
#include <cstring>
#include <thread>
#include <vector>

#include "topk_gather.h"

extern "C" void star_topk_gather(const unsigned char* x, const unsigned int* scores, const long long* slots,
                                 int rows, int k, int row_bytes, unsigned char* kept, long long* indices);
extern "C" char __start_cuda_shared, __stop_cuda_shared;

extern "C" int rows_per_block() { return STAR_ROWS_PER_BLOCK; }

extern "C" void launch(unsigned int blocks, const unsigned char* x, const unsigned int* scores,
                       const long long* slots, int rows, int k, int row_bytes, unsigned char* kept,
                       long long* indices) {
  std::barrier<> barrier(STAR_BLOCK_THREADS);
  block_barrier = &barrier;
  std::vector<std::jthread> threads;
  for (unsigned int thread = 0; thread < STAR_BLOCK_THREADS; ++thread) {
    threads.emplace_back([=] {
      threadIdx.x = thread;
      for (unsigned int block = 0; block < blocks; ++block) {
        blockIdx.x = block;
        __syncthreads();  // the previous block is done
        if (thread == 0) std::memset(&__start_cuda_shared, 0xA5, &__stop_cuda_shared - &__start_cuda_shared);
        __syncthreads();
        star_topk_gather(x, scores, slots, rows, k, row_bytes, kept, indices);
      }
    });
  }
}
