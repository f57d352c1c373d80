/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What the kernels of a forward pass share: sums of a block in one order, small floats, the exponential, element-wise launches. */
#ifndef LQ_BLOCK_CUH
#define LQ_BLOCK_CUH
#include "kernels/cuda/tile.cuh"

extern "C" {
#include "kernels/kernels.h"
}

#include <math.h>

namespace block {

enum { LANES = 32, THREADS = 256, WARPS = THREADS / LANES };

/* ---- sums ---- */

template <typename T> static __device__ __forceinline__ T warp_sum(T v) {
    for (int lanes = LANES / 2; lanes; lanes /= 2) v += lq_shuffle_xor(v, lanes);
    return v;
}
static __device__ __forceinline__ float warp_max(float v) {
    for (int lanes = LANES / 2; lanes; lanes /= 2) v = fmaxf(v, lq_shuffle_xor(v, lanes));
    return v;
}

/* The same in every thread; part: one T per warp. Neighbouring calls may use the same part. */
template <typename T> static __device__ __forceinline__ T block_sum(T v, T *part) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % LANES == 0) part[threadIdx.x / LANES] = v;
    __syncthreads();
    T sum = part[0];
    for (uint32_t w = 1; w < blockDim.x / LANES; w++) sum += part[w];
    return sum;
}
static __device__ __forceinline__ float block_max(float v, float *part) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % LANES == 0) part[threadIdx.x / LANES] = v;
    __syncthreads();
    float max = part[0];
    for (uint32_t w = 1; w < blockDim.x / LANES; w++) max = fmaxf(max, part[w]);
    return max;
}

/* ---- numbers ---- */

static __device__ __forceinline__ bool finite(float v) { return (lq_bits_of(v) & 0x7f800000u) != 0x7f800000u; }
static __device__ __forceinline__ float bf16(uint16_t h) { return lq_of_bits((uint32_t)h << 16); }

static __device__ __forceinline__ float e4m3(uint8_t b) {
    float v = (b & 127) == 127 ? lq_of_bits(0x7fc00000u) : lq_of_bits((uint32_t)(b & 127) << 20) * 0x1p120f;
    return b & 128 ? -v : v;
}

/* Nearest, ties to even, saturating at 448; NaN stays NaN: lq_f32_e4m3. */
static __device__ __forceinline__ uint8_t to_e4m3(float v) {
    uint32_t u = lq_bits_of(v), sign = u >> 24 & 128, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint8_t)(sign | 0x7f);
    float abs = lq_of_bits(a);
    if (abs >= 448) return (uint8_t)(sign | 0x7e);
    if (abs < 0x1p-6f) return (uint8_t)(sign | (uint32_t)rintf(abs * 512));
    uint32_t code = ((a + 0x7ffffu + (a >> 20 & 1)) >> 20) - (120u << 3);
    return (uint8_t)(sign | (code > 0x7e ? 0x7e : code));
}

/* As kernels/ref/exp.h. */
static __device__ __forceinline__ float exponential(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float t = lq_add(lq_mul(x, 0x1.715476p+0f), 0x1.8p23f), n = lq_sub(t, 0x1.8p23f);
    float r = x - n * 0x1.63p-1f - n * -0x1.bd0106p-13f;
    float p = (((0x1.6a23f0p-10f * r + 0x1.123a0ap-7f) * r + 0x1.5558f2p-5f) * r + 0x1.555492p-3f) * r + 0x1.fffffcp-2f;
    float y = p * (r * r) + r + 1.0f;
    int32_t k = (int32_t)(lq_bits_of(t) - lq_bits_of(0x1.8p23f)), half = k >> 1;
    return y * lq_of_bits((uint32_t)(half + 127) << 23) * lq_of_bits((uint32_t)(k - half + 127) << 23);
}

/* The bits of lq_exp: no operation fused with another. */
static __device__ __forceinline__ float exact_exponential(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const float t = lq_add(lq_mul(x, 0x1.715476p+0f), 0x1.8p23f), n = lq_sub(t, 0x1.8p23f), r = lq_sub(lq_sub(x, lq_mul(n, 0x1.63p-1f)), lq_mul(n, -0x1.bd0106p-13f));
    float p = lq_add(lq_mul(0x1.6a23f0p-10f, r), 0x1.123a0ap-7f);
    p = lq_add(lq_mul(p, r), 0x1.5558f2p-5f);
    p = lq_add(lq_mul(p, r), 0x1.555492p-3f);
    p = lq_add(lq_mul(p, r), 0x1.fffffcp-2f);
    const float y = lq_add(lq_add(lq_mul(p, lq_mul(r, r)), r), 1.0f);
    const int32_t k = (int32_t)(lq_bits_of(t) - lq_bits_of(0x1.8p23f)), half = k >> 1;
    return lq_mul(lq_mul(y, lq_of_bits((uint32_t)(half + 127) << 23)), lq_of_bits((uint32_t)(k - half + 127) << 23));
}

/* A float of a dense matrix: i counts elements. */
static __device__ __forceinline__ float element(int dtype, const void *w, size_t i) {
    if (dtype == LQ_F32) return ((const float *)w)[i];
    uint16_t h = ((const uint16_t *)w)[i];
    return dtype == LQ_F16 ? lq_float(h) : bf16(h);
}

/* ---- f(i) for i < n; f(token, i) for i < width ---- */

enum { EACH = 4 }; /* elements of a thread */

template <typename F> __global__ void __launch_bounds__(THREADS) each_run(const __grid_constant__ F f, uint64_t n) {
    lq_begin();
    LQ_UNROLL
    for (uint32_t j = 0; j < EACH; j++) {
        uint64_t i = (uint64_t)blockIdx.x * (THREADS * EACH) + j * THREADS + threadIdx.x;
        if (i < n) f(i);
    }
}
template <typename F> static const char *each(const char *name, const F &f, uint64_t n) {
    return lq_launch(name, each_run<F>, dim3((unsigned)((n + THREADS * EACH - 1) / (THREADS * EACH))), dim3(THREADS), 0, f, n);
}

template <typename F> __global__ void __launch_bounds__(THREADS) each_token_run(const __grid_constant__ F f, uint32_t width) {
    lq_begin();
    LQ_UNROLL
    for (uint32_t j = 0; j < EACH; j++) {
        uint32_t i = blockIdx.y * (THREADS * EACH) + j * THREADS + threadIdx.x;
        if (i < width) f(blockIdx.x, i);
    }
}
template <typename F> static const char *each_token(const char *name, const F &f, uint32_t n, uint32_t width) {
    return lq_launch(name, each_token_run<F>, dim3(n, (width + THREADS * EACH - 1) / (THREADS * EACH)), dim3(THREADS), 0, f, width);
}

/* ---- what several kernels do to an activation ---- */

struct normal { float mean, scale; };

/* Of one token, the same in every thread of THREADS. */
static __device__ __forceinline__ normal normal_of(const lq_device_norm &o, const float *x, uint32_t d, float *part) {
    float mean = 0, square = 0;
    if (o.layernorm) {
        float sum = 0;
        for (uint32_t i = threadIdx.x; i < d; i += THREADS) sum += x[i];
        mean = block_sum(sum, part) / (float)d;
    }
    for (uint32_t i = threadIdx.x; i < d; i += THREADS) square += (x[i] - mean) * (x[i] - mean);
    return normal{mean, 1 / sqrtf(block_sum(square, part) / (float)d + o.eps)};
}
static __device__ __forceinline__ float normed(const lq_device_norm &o, normal v, float x, uint32_t i) {
    return (x - v.mean) * v.scale * (o.gain ? o.gain[i] : 1) + (o.shift && o.layernorm ? o.shift[i] : 0);
}

/* Pair j of a head whose first 2 half coordinates turn. */
static __device__ __forceinline__ void turn_pair(float *x, uint32_t half, bool pairs, uint32_t j, const float *cos, const float *sin, uint32_t pos) {
    float *a = x + (pairs ? 2 * j : j), *b = a + (pairs ? 1 : half);
    float c = cos[(size_t)pos * half + j], s = sin[(size_t)pos * half + j], u = *a, v = *b;
    *a = lq_sub(lq_mul(u, c), lq_mul(v, s));
    *b = lq_add(lq_mul(v, c), lq_mul(u, s));
}

static __device__ __forceinline__ float act_of(int f, float x) {
    switch (f) {
    case LQ_ACTFN_SILU: return x / (1.0f + exponential(-x));
    case LQ_ACTFN_GELU_TANH: return x / (1.0f + exponential((x + x * x * x * 0.044715f) * -1.5957691f));
    case LQ_ACTFN_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case LQ_ACTFN_RELU: return x < 0 ? 0 : x;
    default: return x < 0 ? 0 : x * x;
    }
}

} // namespace block
#endif
