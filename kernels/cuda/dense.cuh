/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = W x for matrices of floats, sums fp32. A few tokens: a warp owns four rows, lanes take turns at runs of columns, a tree joins them.
 * Many: tiles of 64 rows x 64 tokens in shared memory, sixteen columns at a time, four by four products a thread. */
#ifndef LQ_DENSE_CUH
#define LQ_DENSE_CUH
#include "kernels/cuda/block.cuh"

namespace dense {

using namespace block;
enum { ROWS = 4, RUN = 8, FEW = 8 };          /* rows of a warp; columns of a lane's turn; tokens of a pass */
enum { SIDE = 64, DEEP = 16, PAD = 4 };       /* rows and tokens of a tile, columns at a time */

/* Eight neighbouring weights; wide: rows begin at multiples of 16 bytes. */
static __device__ __forceinline__ void load_run(const lq_device_dense &w, bool wide, uint32_t r, uint32_t c, float v[RUN]) {
    const size_t at = (size_t)r * w.cols + c;
    if (wide && w.dtype == LQ_F32) {
        for (int i = 0; i < 2; i++) {
            uint4 u = lq_load_stream((const uint4 *)(const void *)((const float *)w.w + at) + i);
            v[4 * i] = lq_of_bits(u.x), v[4 * i + 1] = lq_of_bits(u.y), v[4 * i + 2] = lq_of_bits(u.z), v[4 * i + 3] = lq_of_bits(u.w);
        }
    } else if (wide) {
        uint4 u = lq_load_stream((const uint4 *)(const void *)((const uint16_t *)w.w + at));
        const uint32_t word[4] = {u.x, u.y, u.z, u.w};
        for (int i = 0; i < 4; i++) {
            uint16_t lo = (uint16_t)word[i], hi = (uint16_t)(word[i] >> 16);
            v[2 * i] = w.dtype == LQ_F16 ? lq_float(lo) : bf16(lo);
            v[2 * i + 1] = w.dtype == LQ_F16 ? lq_float(hi) : bf16(hi);
        }
    } else
        for (uint32_t i = 0; i < RUN; i++) v[i] = c + i < w.cols ? element(w.dtype, w.w, at + i) : 0;
}

/* The beginnings of a warp's rows, `ahead` bytes together, before it waits: only where they lie at multiples of 16 bytes. */
static __device__ __forceinline__ void prefetch_rows(const lq_device_dense &w, uint32_t ahead) {
    const uint32_t lane = threadIdx.x % LANES, r = (blockIdx.x * WARPS + threadIdx.x / LANES) * ROWS + lane, pitch = w.cols * (w.dtype == LQ_F32 ? 4 : 2), most = ahead / (WARPS * ROWS);
    if (ahead && lane < ROWS && r < w.rows) lq_prefetch((const uint8_t *)w.w + (size_t)r * pitch, pitch < most ? pitch : most);
}

/* before: rows of w that precede the matrix. */
template <int N> static __device__ __forceinline__ void multiply(const lq_device_dense &w, uint32_t before, const float *x, bool wide, float *y) {
    const uint32_t lane = threadIdx.x % LANES, r0 = (blockIdx.x * WARPS + threadIdx.x / LANES) * ROWS;
    float acc[ROWS][N] = {};
    if (r0 >= w.rows) return;
    for (uint32_t c = lane * RUN; c < w.cols; c += LANES * RUN) {
        float v[ROWS][RUN];
        LQ_UNROLL
        for (int r = 0; r < ROWS; r++) load_run(w, wide, before + (r0 + r < w.rows ? r0 + r : w.rows - 1), c, v[r]);
        LQ_UNROLL
        for (int t = 0; t < N; t++)
            LQ_UNROLL
            for (int i = 0; i < RUN; i++) {
                float e = wide || c + i < w.cols ? x[(size_t)t * w.cols + c + i] : 0;
                LQ_UNROLL
                for (int r = 0; r < ROWS; r++) acc[r][t] += v[r][i] * e;
            }
    }
    LQ_UNROLL
    for (int r = 0; r < ROWS; r++)
        LQ_UNROLL
        for (int t = 0; t < N; t++) {
            float sum = warp_sum(acc[r][t]);
            if (lane == 0 && r0 + r < w.rows) y[(size_t)t * w.rows + r0 + r] = sum;
        }
}

template <int N> __global__ void __launch_bounds__(THREADS) few_run(const lq_device_dense w, const float *x, bool wide, uint32_t ahead, float *y) {
    lq_let_next();
    prefetch_rows(w, ahead);
    lq_wait_before();
    multiply<N>(w, 0, x, wide, y);
}

/* A row of blocks for each token. */
__global__ void __launch_bounds__(THREADS) pick_run(const lq_device_dense w, const float *x, bool wide, float *y) {
    lq_begin();
    multiply<1>(w, (uint32_t)w.pick[blockIdx.y] * w.rows, x + (size_t)blockIdx.y * w.cols, wide, y + (size_t)blockIdx.y * w.rows);
}

__global__ void __launch_bounds__(THREADS) many_run(const lq_device_dense w, const float *x, uint32_t n, float *y) {
    lq_begin();
    float *a = (float *)(void *)lq_shared(), *b = a + DEEP * (SIDE + PAD);
    const uint32_t r0 = blockIdx.x * SIDE, t0 = blockIdx.y * SIDE, tr = threadIdx.x % 16 * 4, tt = threadIdx.x / 16 * 4;
    float acc[4][4] = {};
    for (uint32_t k = 0; k < w.cols; k += DEEP) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < SIDE * DEEP; i += THREADS) {
            uint32_t c = i % DEEP, s = i / DEEP;
            a[c * (SIDE + PAD) + s] = r0 + s < w.rows && k + c < w.cols ? element(w.dtype, w.w, (size_t)(r0 + s) * w.cols + k + c) : 0;
            b[c * (SIDE + PAD) + s] = t0 + s < n && k + c < w.cols ? x[(size_t)(t0 + s) * w.cols + k + c] : 0;
        }
        __syncthreads();
        LQ_UNROLL
        for (int c = 0; c < DEEP; c++) {
            float4 u = *(const float4 *)(const void *)(a + c * (SIDE + PAD) + tr), v = *(const float4 *)(const void *)(b + c * (SIDE + PAD) + tt);
            const float row[4] = {u.x, u.y, u.z, u.w}, token[4] = {v.x, v.y, v.z, v.w};
            LQ_UNROLL
            for (int i = 0; i < 4; i++)
                LQ_UNROLL
                for (int j = 0; j < 4; j++) acc[i][j] += row[i] * token[j];
        }
    }
    for (uint32_t j = 0; j < 4; j++)
        for (uint32_t i = 0; i < 4; i++)
            if (t0 + tt + j < n && r0 + tr + i < w.rows) y[(size_t)(t0 + tt + j) * w.rows + r0 + tr + i] = acc[i][j];
}

template <int N> static const char *few(const lq_device_dense &w, const float *x, bool wide, float *y) {
    return lq_launch("dense", few_run<N>, dim3((w.rows + WARPS * ROWS - 1) / (WARPS * ROWS)), dim3(THREADS), 0, w, x, wide, wide ? lq_ahead_bytes() : 0, y);
}

static const char *start(const lq_device_dense *w, const float *x, uint32_t n, float *y) {
    if (w->dtype != LQ_F32 && w->dtype != LQ_F16 && w->dtype != LQ_BF16) return "no kernel for floats of this type";
    const bool wide = w->cols % RUN == 0 && (uintptr_t)w->w % 16 == 0;
    if (w->pick) return lq_launch("dense of picked", pick_run, dim3((w->rows + WARPS * ROWS - 1) / (WARPS * ROWS), n), dim3(THREADS), 0, *w, x, wide, y);
    if (n > FEW) {
        const size_t bytes = 2 * DEEP * (SIDE + PAD) * sizeof(float);
        return lq_launch("dense of many", many_run, dim3((w->rows + SIDE - 1) / SIDE, (n + SIDE - 1) / SIDE), dim3(THREADS), bytes, *w, x, n, y);
    }
    for (uint32_t t = 0; t < n;) {
        const float *from = x + (size_t)t * w->cols;
        float *to = y + (size_t)t * w->rows;
        const uint32_t left = n - t, take = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const char *why = take == 8 ? few<8>(*w, from, wide, to) : take == 4 ? few<4>(*w, from, wide, to) : take == 2 ? few<2>(*w, from, wide, to) : few<1>(*w, from, wide, to);
        if (why) return why;
        t += take;
    }
    return nullptr;
}

} // namespace dense
#endif
