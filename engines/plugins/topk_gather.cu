// star::TopKGather: the k best rows of x, in their old order.
//
// Definition: graphs/ops.py, topk_gather_function. Plan and its cost: docs/kernels.md.
//
// One launch, no workspace, no order between blocks: every block finds the k-th best score for
// itself, numbers the rows that stay, and copies the STAR_ROWS_PER_BLOCK of them that are its share.
// Nothing but shared memory, atomics and __syncthreads, so that the tests can run it on a CPU.
#include "topk_gather.h"

namespace {

constexpr int kDigits = 4;  // of 8 bits, the most significant first
constexpr int kGroups = 16;
constexpr int kBinsPerGroup = 16;

// How many candidates have each digit, and how many have a digit of each group.
struct Histogram {
  unsigned int bins[kGroups * kBinsPerGroup];
  unsigned int groups[kGroups];
};

// The k-th best score, and how many of the scores equal to it stay.
struct Threshold {
  unsigned int key;
  unsigned int ties;
};

// The bits of a score as a number of the same order: NaN counts as -inf, -0 as +0.
__device__ inline unsigned int order_key(unsigned int score) {
  if ((score & 0x7fffffffu) > 0x7f800000u) score = 0xff800000u;
  if (score == 0x80000000u) score = 0u;
  return score & 0x80000000u ? ~score : score | 0x80000000u;
}

// The entry of counts[16] that holds the rank-th candidate from the top; rank becomes its rank in there.
__device__ inline unsigned int locate(const unsigned int* counts, unsigned int& rank) {
  unsigned int above = 0, found = 0, skipped = 0;
#pragma unroll
  for (int i = 15; i >= 0; --i) {  // no early exit: the loads do not wait for each other
    const unsigned int count = counts[i];
    if (above < rank && above + count >= rank) {
      found = i;
      skipped = above;
    }
    above += count;
  }
  rank -= skipped;
  return found;
}

// Radix select. Each digit has a histogram of its own, so that one barrier per digit is enough:
// all threads then read the digit off the counts, and none writes to them again.
__device__ inline Threshold select(const unsigned int* scores, int rows, int k, Histogram* histograms) {
  unsigned int* counts = (unsigned int*)histograms;
  for (int i = threadIdx.x; i < kDigits * int(sizeof(Histogram) / sizeof(int)); i += STAR_BLOCK_THREADS) {
    counts[i] = 0;
  }
  __syncthreads();
  unsigned int prefix = 0, rank = k;
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = 24 - 8 * digit;
    Histogram& histogram = histograms[digit];
    for (int i = threadIdx.x; i < rows; i += STAR_BLOCK_THREADS) {
      const unsigned int key = order_key(scores[i]) >> shift;
      if (digit == 0 || key >> 8 == prefix) {
        atomicAdd(&histogram.bins[key & 255u], 1u);
        atomicAdd(&histogram.groups[(key & 255u) / kBinsPerGroup], 1u);
      }
    }
    __syncthreads();
    const unsigned int group = locate(histogram.groups, rank);
    const unsigned int bin = locate(histogram.bins + group * kBinsPerGroup, rank);
    prefix = prefix << 8 | group * kBinsPerGroup | bin;
  }
  return {prefix, rank};
}

// Sum of the values of all threads before this one.
__device__ inline unsigned long long sum_before(
    unsigned long long value, unsigned long long (*sums)[STAR_BLOCK_THREADS]) {
  const int thread = threadIdx.x;
  unsigned long long sum = value;
  int side = 0;
  for (int step = 1; step < STAR_BLOCK_THREADS; step *= 2) {
    sums[side][thread] = sum;
    __syncthreads();
    if (thread >= step) sum += sums[side][thread - step];
    side ^= 1;  // the next step writes where nobody reads any more
  }
  return sum - value;
}

// Number the rows that stay, and note those with a number in [first, first + STAR_ROWS_PER_BLOCK).
// Every thread takes neighbouring rows, so that one scan over the threads is enough.
__device__ inline void number_rows(const unsigned int* scores, int rows, int first, Threshold threshold,
                                   unsigned long long (*sums)[STAR_BLOCK_THREADS], int* sources) {
  const int chunk = (rows - 1) / STAR_BLOCK_THREADS + 1;
  const int begin = min(int(threadIdx.x) * chunk, rows);
  const int end = min(begin + chunk, rows);
  unsigned int better = 0, ties = 0;
  for (int i = begin; i < end; ++i) {
    const unsigned int key = order_key(scores[i]);
    better += key > threshold.key;
    ties += key == threshold.key;
  }
  const unsigned long long before = sum_before((unsigned long long)better << 32 | ties, sums);
  better = (unsigned int)(before >> 32);
  ties = (unsigned int)before;
  for (int i = begin; i < end; ++i) {
    const unsigned int key = order_key(scores[i]);
    const bool stays = key > threshold.key || (key == threshold.key && ties < threshold.ties);
    const unsigned int place = better + min(ties, threshold.ties) - (unsigned int)first;
    if (stays && place < STAR_ROWS_PER_BLOCK) sources[place] = i;
    better += key > threshold.key;
    ties += key == threshold.key;
  }
}

template <typename Word>
__device__ inline void copy_rows(const unsigned char* x, unsigned char* kept, const int* sources, int count,
                                 int row_bytes) {
  const int words = row_bytes / int(sizeof(Word));
#pragma unroll 4
  for (int i = threadIdx.x; i < count * words; i += STAR_BLOCK_THREADS) {
    const int row = i / words;
    const Word* source = (const Word*)(x + (long long)sources[row] * row_bytes);
    ((Word*)kept)[i] = source[i - row * words];
  }
}

}  // namespace

// x [B, rows, row_bytes], scores float32 [B, rows], slots int64 [k] (not read), kept [B, k, row_bytes],
// indices int64 [B, k]; row_bytes is even. Scores and indices are aligned as their types are, x and kept
// to 2 bytes; 16-byte alignment makes them faster. k > rows leaves the places from `rows` on unwritten.
extern "C" __global__ void __launch_bounds__(STAR_BLOCK_THREADS, 2)
    star_topk_gather(const unsigned char* __restrict__ x, const unsigned int* __restrict__ scores,
                     const long long* __restrict__ /* slots */, int rows, int k, int row_bytes,
                     unsigned char* __restrict__ kept, long long* __restrict__ indices) {
  __shared__ Histogram histograms[kDigits];
  __shared__ unsigned long long sums[2][STAR_BLOCK_THREADS];
  __shared__ int sources[STAR_ROWS_PER_BLOCK];

  const unsigned int shares = (unsigned int)(k - 1) / STAR_ROWS_PER_BLOCK + 1u;
  const long long batch = blockIdx.x / shares;
  const int first = int(blockIdx.x % shares) * STAR_ROWS_PER_BLOCK;
  const int count = min(STAR_ROWS_PER_BLOCK, min(k, rows) - first);

  x += batch * rows * row_bytes;
  scores += batch * rows;
  kept += (batch * k + first) * row_bytes;
  indices += batch * k + first;

  number_rows(scores, rows, first, select(scores, rows, min(k, rows), histograms), sums, sources);
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += STAR_BLOCK_THREADS) indices[i] = sources[i];
  const unsigned long long alignment = (unsigned long long)x | (unsigned long long)kept | row_bytes;
  if (alignment % 16 == 0) {
    copy_rows<uint4>(x, kept, sources, count, row_bytes);
  } else if (alignment % 4 == 0) {
    copy_rows<unsigned int>(x, kept, sources, count, row_bytes);
  } else {
    copy_rows<unsigned short>(x, kept, sources, count, row_bytes);
  }
}
