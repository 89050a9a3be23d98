// As much of CUDA's C++ as the kernels under test need, on the CPU: every thread of a block is
// a std::thread, blocks run one after another, and shared memory is static memory.
#pragma once
#include <barrier>
#include <cstddef>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

struct Dim { unsigned x; };
inline thread_local Dim threadIdx;
inline thread_local Dim blockIdx;
inline std::barrier<>* block_barrier;
inline void __syncthreads() { block_barrier->arrive_and_wait(); }

template <typename Body>
void launch(unsigned blocks, unsigned threads, Body body)
{
    for (unsigned block = 0; block < blocks; ++block) {
        std::barrier barrier(threads);
        block_barrier = &barrier;
        std::vector<std::thread> all;
        for (unsigned thread = 0; thread < threads; ++thread)
            all.emplace_back([=] {
                threadIdx.x = thread;
                blockIdx.x = block;
                body();
            });
        for (std::thread& thread : all) thread.join();
    }
}
