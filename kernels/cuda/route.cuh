/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Which experts a token goes to, and the sum of what they made of it: the bits of calib/moe.c, so that nothing in a step of decoding waits for the host.
 * A warp per token; lane l has the experts l, l + 32, ... */
#ifndef LQ_ROUTE_CUH
#define LQ_ROUTE_CUH
#include "kernels/cuda/block.cuh"

namespace route {

using namespace block;
enum { MOST = LQ_DEVICE_EXPERTS, SUMS = 16 }; /* lanes of kernels/ref/lanes.h */

struct best { float v; uint32_t at; }; /* at ~0: none */

/* As the host looks for it: the first that nothing is larger than. */
static __device__ __forceinline__ best better(best a, best b) {
    if (a.at == ~0u || b.at == ~0u) return a.at == ~0u ? b : a;
    return b.v > a.v || (!(a.v > b.v) && b.at < a.at) ? b : a;
}

/* p becomes its softmax: kernels/ref/softmax.c. */
static __device__ __forceinline__ void soften(float *p, uint32_t n) {
    const uint32_t lane = threadIdx.x;
    float max = -INFINITY;
    for (uint32_t i = lane; i < n; i += LANES) max = p[i] > max ? p[i] : max;
    max = warp_max(max);
    for (uint32_t i = lane; i < n; i += LANES) p[i] = exact_exponential(lq_sub(p[i], max));
    lq_sync_warp();
    double sum = 0;
    for (uint32_t i = lane; lane < SUMS && i < n; i += SUMS) sum += (double)p[i];
    for (int lanes = SUMS / 2; lanes; lanes /= 2) sum += lq_shuffle_xor(sum, lanes);
    sum += lq_shuffle_xor(sum, SUMS); /* the others' is 0 */
    const float inverse = (float)(1 / sum);
    lq_sync_warp();
    for (uint32_t i = lane; i < n; i += LANES) p[i] = lq_mul(p[i], inverse);
    lq_sync_warp();
}

struct job {
    float *scores;
    uint32_t experts, n, k;
    bool shares;
    float times;
    int32_t *pick, *token;
    float *weight;
};

/* The k choices of a token in shared memory, the likeliest first. */
static __device__ __forceinline__ void choose(const job &j, const float *p, int32_t *pick, float *gain) {
    const uint32_t lane = threadIdx.x;
    uint32_t taken = 0; /* of this lane's */
    for (uint32_t c = 0; c < j.k; c++) {
        best b = {0, ~0u};
        for (uint32_t i = lane, bit = 0; i < j.experts; i += LANES, bit++)
            if (!(taken >> bit & 1)) b = better(b, best{p[i], i});
        for (int lanes = LANES / 2; lanes; lanes /= 2) b = better(b, best{lq_shuffle_xor(b.v, lanes), lq_shuffle_xor(b.at, lanes)});
        if (b.at % LANES == lane) taken |= 1u << b.at / LANES;
        if (lane == 0) pick[c] = (int32_t)b.at, gain[c] = b.v;
    }
    lq_sync_warp();
}

__global__ void __launch_bounds__(LANES) run(const __grid_constant__ job j) {
    lq_begin();
    int32_t *pick = (int32_t *)(void *)lq_shared();
    float *gain = (float *)(void *)(pick + j.k), *p = j.scores + (size_t)blockIdx.x * j.experts;
    soften(p, j.experts);
    choose(j, p, pick, gain);
    if (threadIdx.x) return;
    float all = 0;
    for (uint32_t c = 0; c < j.k; c++) all = lq_add(all, gain[c]);
    for (uint32_t c = 0; c < j.k; c++) { /* sorted by expert, one after the other */
        const int32_t e = pick[c];
        const float g = j.shares ? gain[c] / all : gain[c];
        uint32_t at = 0;
        for (uint32_t i = 0; i < j.k; i++) at += pick[i] < e;
        const size_t to = (size_t)blockIdx.x * j.k + at;
        j.pick[to] = j.pick[(size_t)j.n * j.k + to] = e;
        j.weight[to] = lq_mul(g, j.times);
        j.token[to] = (int32_t)blockIdx.x;
    }
}

static const char *start(float *scores, uint32_t experts, uint32_t n, uint32_t k, int shares, float times, int32_t *pick, float *weight, int32_t *token) {
    if (experts > MOST || k > experts) return "no kernel that chooses among so many experts";
    const job j = {scores, experts, n, k, shares != 0, times, pick, token, weight};
    return lq_launch("route", run, dim3(n), dim3(LANES), k * (sizeof(int32_t) + sizeof(float)), j);
}

struct merge_one {
    float *y;
    const float *x, *weight;
    uint32_t k, width;
    __device__ void operator()(uint32_t t, uint32_t i) const {
        float v = y[(size_t)t * width + i];
        for (uint32_t c = 0; c < k; c++) v = lq_add(v, lq_mul(weight[(size_t)t * k + c], x[((size_t)t * k + c) * width + i]));
        y[(size_t)t * width + i] = v;
    }
};
static const char *merge(float *y, const float *x, const float *weight, uint32_t k, uint32_t width, uint32_t n) { return each_token("merge", merge_one{y, x, weight, k, width}, n, width); }

} // namespace route
#endif
