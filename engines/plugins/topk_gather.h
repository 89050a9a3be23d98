// How star_topk_gather is launched: grid (batch * ceil(k / STAR_ROWS_PER_BLOCK)), block (STAR_BLOCK_THREADS).
// Read by the kernel, by the C++ plugin and, through nvrtc.py, by Python.
#pragma once

#ifndef STAR_BLOCK_THREADS
#define STAR_BLOCK_THREADS 512
#endif
#ifndef STAR_ROWS_PER_BLOCK
#define STAR_ROWS_PER_BLOCK 2
#endif
