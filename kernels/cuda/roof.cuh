/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What the memory of a device can do at most: a copy, and a read that keeps a word per block so that it is not left out. Benchmarks measure
 * kernels against these two. */
#ifndef LQ_ROOF_CUH
#define LQ_ROOF_CUH
#include "kernels/cuda/launch.h"

namespace roof {

enum { THREADS = 256, AHEAD = 8 }; /* loads of 16 bytes in flight per thread */

/* to NULL: reads only, and leaves a sum for each block in kept. */
__global__ void __launch_bounds__(THREADS) run(uint4 *to, const uint4 *from, uint64_t n, uint32_t *kept) {
    lq_begin();
    uint32_t sum = 0;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS * AHEAD + threadIdx.x; i < n; i += (uint64_t)gridDim.x * THREADS * AHEAD) {
        uint4 v[AHEAD] = {};
LQ_UNROLL
        for (uint32_t j = 0; j < AHEAD; j++)
            if (i + j * THREADS < n) v[j] = lq_load_written(from + i + j * THREADS);
LQ_UNROLL
        for (uint32_t j = 0; j < AHEAD; j++) {
            sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
            if (to && i + j * THREADS < n) to[i + j * THREADS] = v[j];
        }
    }
    if (!to && sum == 0x9e3779b9u) kept[blockIdx.x] = sum; /* as good as never */
}

static const char *start(void *to, const void *from, uint64_t bytes) {
    enum { BLOCKS = 2048 };
    uint32_t *kept = (uint32_t *)lq_scratch(BLOCKS * sizeof *kept);
    if (!kept) return "no device memory";
    const uint64_t all = (bytes / 16 + THREADS * AHEAD - 1) / (THREADS * AHEAD);
    return lq_launch(to ? "copy" : "read", run, dim3(all < BLOCKS ? (unsigned)(all ? all : 1) : (unsigned)BLOCKS), dim3(THREADS), 0, (uint4 *)to, (const uint4 *)from, bytes / 16, kept);
}

} // namespace roof
#endif
