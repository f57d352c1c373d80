/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A device matrix as a warp sees it: chunks of codes in registers, codes as bytes, scales and zeros of its two rows. */
#ifndef LQ_TILE_CUH
#define LQ_TILE_CUH
#include "kernels/cuda/launch.h"

extern "C" {
#include "kernels/cuda/cuda.h"
}

namespace tile {

enum { WARPS = 8, LANES = 32, STEP = 16, TOKENS = LQ_DEVICE_N };

template <int F0, int F1> struct shape {
    enum { NARROW = F1 ? F1 : F0, CHUNK = 256 / NARROW, STEPS = CHUNK / STEP, LOADS = (F0 + F1) / NARROW, TILES0 = F0 / NARROW, WORDS = 4 * LOADS,
           RING = LOADS == 1 ? 4 : 2 };
};

/* The four codes of row g + 8 h at step s as bytes. */
template <int F> static __device__ __forceinline__ uint32_t field(const uint32_t *w, int s, int h) {
    enum { PER = 8 / F, STEPS = 16 / F };
    int at = s % STEPS * 2 + h;
    uint32_t word = w[s / STEPS * 4 + at / PER];
    return F == 8 ? word : word >> (F * (at % PER)) & 0x01010101u * ((1u << F) - 1);
}

template <int F0, int F1> static __device__ __forceinline__ uint32_t codes(const uint32_t *w, int s, int h) {
    uint32_t u = field<F0>(w, s, h);
    if (F1) u |= field<F1 ? F1 : 8>(w + 4 * shape<F0, F1>::TILES0, s, h) << F0;
    return u;
}

static __device__ __forceinline__ float bits_float(uint32_t u) {
    union { uint32_t u; float f; } v;
    v.u = u;
    return v.f;
}

/* Parameter of row i of sixteen; E4M3 without its second level. */
static __device__ __forceinline__ float param(int type, const uint8_t *p, int i) {
    switch (type) {
    case LQ_F32: return ((const float *)(const void *)p)[i];
    case LQ_F16: return lq_float(((const uint16_t *)(const void *)p)[i]);
    case LQ_U8: return (float)p[i];
    case LQ_E8M0: return bits_float(p[i] ? (uint32_t)p[i] << 23 : 0x400000u);
    default: { /* E4M3 */
        uint32_t b = p[i];
        float v = bits_float((b & 127) << 20) * 0x1p120f;
        return b & 128 ? -v : v;
    }
    }
}

static __device__ __forceinline__ int param_bytes(int type) { return type == LQ_F32 ? 4 : type == LQ_F16 ? 2 : type == LQ_NONE ? 0 : 1; }

struct segment { float s[2], z[2]; }; /* rows g, g + 8 */

static __device__ __forceinline__ segment load_segment(const lq_device_matrix &m, uint32_t tile, uint32_t seg, int g) {
    const uint8_t *p = (const uint8_t *)m.params + ((size_t)tile * m.segs + seg) * m.seg_bytes, *zero = p + 16 * param_bytes(m.scale);
    segment v;
    for (int h = 0; h < 2; h++) {
        float s = m.scale == LQ_NONE ? 1 : param(m.scale, p, g + 8 * h);
        v.s[h] = m.scale == LQ_E4M3 ? s * m.up + m.shift : s;
        v.z[h] = m.zero == LQ_NONE ? 0 : param(m.zero, zero, g + 8 * h);
    }
    return v;
}

/* What is left to subtract after the codes' own zeros. */
static __host__ __device__ __forceinline__ bool has_sums(const lq_device_matrix &m) { return m.zero_kind == LQ_ZERO_MIN || (m.zero_kind == LQ_ZERO_CODE && m.zero != LQ_U8); }

template <int F0, int F1> static __device__ __forceinline__ void load_chunk_of(const lq_device_matrix &m, uint32_t tile, uint32_t chunk, uint32_t w[]) {
    typedef shape<F0, F1> S;
    const uint4 *p = (const uint4 *)m.codes + ((size_t)tile * m.chunks + chunk) * S::LOADS * LANES + threadIdx.x % LANES;
    for (int i = 0; i < S::LOADS; i++) {
        uint4 v = lq_load_stream(p + i * LANES);
        w[4 * i] = v.x;
        w[4 * i + 1] = v.y;
        w[4 * i + 2] = v.z;
        w[4 * i + 3] = v.w;
    }
}
template <int F0, int F1> static __device__ __forceinline__ void load_chunk(const lq_device_matrix &m, uint32_t chunk, uint32_t w[]) { load_chunk_of<F0, F1>(m, blockIdx.x, chunk, w); }

} // namespace tile
#endif
