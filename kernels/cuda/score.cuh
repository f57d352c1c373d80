/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What logits are worth: -log p of a target, log sum exp in fp64; and the first of the largest. A block per token. */
#ifndef LQ_SCORE_CUH
#define LQ_SCORE_CUH
#include "kernels/cuda/block.cuh"

namespace score {

using namespace block;

struct largest { float v; uint32_t at; };

static __device__ __forceinline__ largest better(largest a, largest b) { return b.v > a.v || (b.v == a.v && b.at < a.at) ? b : a; }

static __device__ __forceinline__ largest find_largest(const float *x, uint32_t n, largest *part) {
    largest best = {-INFINITY, 0xffffffffu};
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) best = better(best, largest{x[i], i});
    for (int lanes = LANES / 2; lanes; lanes /= 2) best = better(best, largest{lq_shuffle_xor(best.v, lanes), lq_shuffle_xor(best.at, lanes)});
    if (threadIdx.x % LANES == 0) part[threadIdx.x / LANES] = best;
    __syncthreads();
    best = part[0];
    for (int w = 1; w < WARPS; w++) best = better(best, part[w]);
    return best;
}

__global__ void __launch_bounds__(THREADS) run(const float *logits, uint32_t vocab, const int32_t *target, double *nll, int32_t *best) {
    lq_begin();
    double *part = (double *)(void *)lq_shared();
    const float *x = logits + (size_t)blockIdx.x * vocab;
    largest top = find_largest(x, vocab, (largest *)(void *)(part + WARPS));
    if (best && threadIdx.x == 0) best[blockIdx.x] = top.at == 0xffffffffu ? 0 : (int32_t)top.at;
    if (!nll) return;
    double sum = 0;
    for (uint32_t i = threadIdx.x; i < vocab; i += THREADS) sum += (double)exponential(x[i] - top.v);
    sum = block_sum(sum, part);
    uint32_t t = (uint32_t)target[blockIdx.x];
    if (threadIdx.x == 0) nll[blockIdx.x] = (double)top.v + log(sum) - (t < vocab ? (double)x[t] : -INFINITY);
}

static const char *start(const float *logits, uint32_t vocab, uint32_t n, const int32_t *target, double *nll, int32_t *best) {
    return lq_launch("score", run, dim3(n), dim3(THREADS), WARPS * (sizeof(double) + sizeof(largest)), logits, vocab, target, nll, best);
}

} // namespace score
#endif
