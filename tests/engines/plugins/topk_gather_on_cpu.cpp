// Launches star_topk_gather on the CPU; compiled with cuda_on_cpu.h.
#include "topk_gather.h"

extern "C" void star_topk_gather(const unsigned char* x, const unsigned int* scores, const long long* slots,
                                 int rows, int k, int row_bytes, unsigned char* kept, long long* indices);

extern "C" int rows_per_block() { return STAR_ROWS_PER_BLOCK; }

extern "C" void launch(unsigned int blocks, const unsigned char* x, const unsigned int* scores,
                       const long long* slots, int rows, int k, int row_bytes, unsigned char* kept,
                       long long* indices) {
  run_on_cpu(blocks, STAR_BLOCK_THREADS,
             [=] { star_topk_gather(x, scores, slots, rows, k, row_bytes, kept, indices); });
}
