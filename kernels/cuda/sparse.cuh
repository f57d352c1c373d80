/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y += what is kept beside a matrix of codes: sparse entries, kept columns, a low-rank product. A warp owns a row and takes a few tokens at
 * once; a lane sums every 32nd entry, then column, then rank, and lanes meet in a tree, so the order is the shape's alone. fp32.
 *
 *   y[t][r] += ( sum_i value[i] x[t][col[i]]  +  sum_j kept_w[r][j] x[t][kept_col[j]]  +  sum_k low_a[r][k] low[t][k] ),   low = low_b x */
#ifndef LQ_SPARSE_CUH
#define LQ_SPARSE_CUH
#include "kernels/cuda/launch.h"

extern "C" {
#include "kernels/cuda/cuda.h"
}

namespace sparse {

enum { LANES = 32, WARPS = 8, TOKENS = 4 };

static __device__ __forceinline__ float half_at(const void *p, size_t i) { return lq_float(((const uint16_t *)p)[i]); }

static __device__ __forceinline__ float all_lanes(float v) {
    for (int lanes = LANES / 2; lanes; lanes /= 2) v += lq_shuffle_xor(v, lanes);
    return v;
}

/* low[n][rank]: a warp for each. */
__global__ void __launch_bounds__(WARPS *LANES) low_run(const __grid_constant__ lq_device_sparse s, const float *x, float *low) {
    lq_begin();
    const uint32_t k = blockIdx.x * WARPS + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (k >= s.rank) return;
    x += (size_t)blockIdx.y * s.cols;
    float sum = 0;
    for (uint32_t c = lane; c < s.cols; c += LANES) sum += half_at(s.low_b, (size_t)k * s.cols + c) * x[c];
    sum = all_lanes(sum);
    if (!lane) low[(size_t)blockIdx.y * s.rank + k] = sum;
}

/* acc[t] += w x[t][c] of as many tokens as there are. */
static __device__ __forceinline__ void add(float w, const float *x, uint32_t ld, uint32_t c, uint32_t n, float acc[TOKENS]) {
LQ_UNROLL
    for (uint32_t t = 0; t < TOKENS; t++)
        if (t < n) acc[t] += w * x[(size_t)t * ld + c];
}

__global__ void __launch_bounds__(WARPS *LANES) run(const __grid_constant__ lq_device_sparse s, const float *x, const float *low, uint32_t n_all, float *y) {
    lq_begin();
    const uint32_t r = blockIdx.x * WARPS + threadIdx.x / LANES, lane = threadIdx.x % LANES, t0 = blockIdx.y * TOKENS, n = n_all - t0;
    if (r >= s.rows) return;
    float acc[TOKENS] = {0, 0, 0, 0};
    x += (size_t)t0 * s.cols;
    low += (size_t)t0 * s.rank;
    for (uint32_t i = s.nnz ? s.start[r] + lane : 0, end = s.nnz ? s.start[r + 1] : 0; i < end; i += LANES) add(half_at(s.value, i), x, s.cols, s.col[i], n, acc);
    for (uint32_t j = lane; j < s.kept; j += LANES) add(half_at(s.kept_w, (size_t)r * s.kept + j), x, s.cols, s.kept_col[j], n, acc);
    for (uint32_t k = lane; k < s.rank; k += LANES) add(half_at(s.low_a, (size_t)r * s.rank + k), low, s.rank, k, n, acc);
LQ_UNROLL
    for (uint32_t t = 0; t < TOKENS; t++) {
        const float sum = all_lanes(acc[t]);
        if (!lane && t < n) y[(size_t)(t0 + t) * s.rows + r] += sum;
    }
}

static const char *start(const lq_device_sparse *s, const float *x, uint32_t n, float *y) {
    float *low = s->rank ? (float *)lq_scratch((size_t)n * s->rank * sizeof(float)) : nullptr;
    if (s->rank && !low) return "no device memory for a low-rank product";
    if (!s->nnz && !s->kept && !s->rank) return nullptr;
    const char *why = s->rank ? lq_launch("low rank", low_run, dim3((s->rank + WARPS - 1) / WARPS, n), dim3(WARPS * LANES), 0, *s, x, low) : nullptr;
    return why ? why : lq_launch("sparse", run, dim3((s->rows + WARPS - 1) / WARPS, (n + TOKENS - 1) / TOKENS), dim3(WARPS * LANES), 0, *s, x, (const float *)low, n, y);
}

} // namespace sparse
#endif
