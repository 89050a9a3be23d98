// The next token of every sequence: tokens[b] = index of the largest logits[b][0..vocab),
// or -1 where that is not finite.
//
// Same order as numpy.argmax: a NaN wins, then the largest value; -0 equals 0;
// ties go to the lower index. One block of THREADS threads per row; the logits are read as
// bits, so that no compiler flag for floating point can change the result.

#define THREADS 512

// Larger for what should win: the value in the upper half, the lower index in the lower half.
static __device__ unsigned long long rank_of(unsigned bits, unsigned index)
{
    if ((bits & 0x7fffffffu) > 0x7f800000u) bits = 0x7fffffffu; // NaN of any sign: above +infinity
    if (bits == 0x80000000u) bits = 0u;                         // -0
    unsigned ordered = (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
    return ((unsigned long long)ordered << 32) | (0xffffffffu - index);
}

extern "C" __global__ void star_argmax(const unsigned* logits, long long* tokens, int vocab)
{
    __shared__ unsigned long long best[THREADS];
    const unsigned* row = logits + (size_t)blockIdx.x * vocab;
    unsigned long long mine = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        unsigned long long rank = rank_of(row[i], (unsigned)i);
        if (rank > mine) mine = rank;
    }
    best[threadIdx.x] = mine;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half && best[threadIdx.x + half] > best[threadIdx.x])
            best[threadIdx.x] = best[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        unsigned value = (unsigned)(best[0] >> 32);
        bool finite = value > 0x007fffffu && value < 0xff800000u; // between the two infinities
        tokens[blockIdx.x] = finite ? (long long)(0xffffffffu - (unsigned)best[0]) : -1;
    }
}
