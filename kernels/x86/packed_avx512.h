/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A packed tile (kernels/packed.h) in 512-bit vectors: all of its rows, sixteen columns at a step as in packed_avx2.h. */
#ifndef LQ_PACKED_AVX512_H
#define LQ_PACKED_AVX512_H
#include "kernels/x86/packed_avx2.h"

enum { LQ_AHEAD = 4096 }; /* bytes of codes that are fetched before they are read */

/* The grid, where a table of -1 0 1 2 is what it is: integers of two bits less 1. */
LQ_INLINE lq_grid lq_packed_grid(const lq_packed *p) {
    lq_grid g = p->q.sch.grid;
    if (g.kind == LQ_GRID_LUT && g.bias == LQ_LUT_QUAD && g.bits == 2) g.kind = LQ_GRID_INT, g.bias = 1;
    return g;
}

LQ_INLINE __m512i lq_load512(const uint8_t *p) { return _mm512_loadu_si512((const void *)p); }

/* Both ways: a count below 0 shifts up. Constant wherever it is used in a loop. */
LQ_INLINE __m512i lq_down512(__m512i v, int n) {
    typedef uint32_t u32x16 __attribute__((vector_size(64)));
    return n >= 0 ? (__m512i)((u32x16)v >> n) : (__m512i)((u32x16)v << -n);
}

/* Steps of a single field follow each other. */
LQ_INLINE lq_step lq_step512(const uint8_t *tile, uint32_t c, int f0, int f1) {
    return f1 || f0 == 1 ? lq_step_at(tile, c, f0, f1) : (lq_step){tile + (size_t)c * 2 * (uint32_t)f0, NULL, 0};
}

/* The vector of field f in which quad q = 0 .. 3 of a step lies, its bits at f * (q % per) of each byte. */
LQ_INLINE __m512i lq_vector512(const uint8_t *at, uint32_t half, int f, int q) {
    __m512i v = lq_load512(at + 64 * (q * f / 8));
    return f == 1 ? _mm512_srl_epi32(v, _mm_cvtsi32_si128((int)half * 4)) : v;
}
LQ_INLINE int lq_bit512(int f, int q) { return f * (q % (8 / f)); }

LQ_INLINE __m512i lq_bytes512(int v) { return _mm512_set1_epi32((int)((uint32_t)v * 0x01010101u)); }

/* Quad q as bytes: dword = row, byte = column. */
LQ_INLINE __m512i lq_quad512(lq_step s, int f0, int f1, int q) {
    __m512i lo = lq_down512(lq_vector512(s.lo, s.half, f0, q), lq_bit512(f0, q));
    if (!f1) return f0 == 8 ? lo : _mm512_and_si512(lo, lq_bytes512((1 << f0) - 1));
    __m512i hi = lq_down512(lq_vector512(s.hi, s.half, f1, q), lq_bit512(f1, q) - f0), low = lq_bytes512((1 << f0) - 1);
    return _mm512_and_si512(_mm512_ternarylogic_epi32(low, lo, hi, 0xca), lq_bytes512((1 << (f0 + f1)) - 1)); /* low ? lo : hi */
}

/* The codes of a step, 4 KB ahead; LQ_PACKED_PAD bytes may be read behind the last. */
LQ_INLINE void lq_ahead512(lq_step s, int f0, int f1) {
    for (int i = 0; i < 32 * f0; i += 64) _mm_prefetch((const char *)s.lo + LQ_AHEAD + i, _MM_HINT_T0);
    for (int i = 0; i < 32 * f1; i += 64) _mm_prefetch((const char *)s.hi + LQ_AHEAD + i, _MM_HINT_T0);
}

LQ_INLINE __m512 lq_e4m3_512(__m512i b) { /* as in codes_avx2.h, of codes 0 .. 255 in dwords */
    __m512i m = _mm512_and_si512(b, _mm512_set1_epi32(127));
    __m512 f = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(m, 20)), _mm512_set1_ps(0x1p120f));
    __m512i bits = _mm512_mask_mov_epi32(_mm512_castps_si512(f), _mm512_cmpeq_epi32_mask(m, _mm512_set1_epi32(127)), _mm512_set1_epi32(0x7fc00000));
    return _mm512_castsi512_ps(_mm512_or_si512(bits, _mm512_slli_epi32(_mm512_srli_epi32(b, 7), 31)));
}

/* Sixteen floats of a plane's row of params. */
LQ_INLINE __m512 lq_params512(lq_dtype t, const uint8_t *v, float up, float shift) {
    if (t == LQ_F16) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)v));
    if (t == LQ_F32) return _mm512_loadu_ps((const void *)v);
    __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)v));
    if (t == LQ_U8) return _mm512_cvtepi32_ps(b);
    if (t == LQ_I8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)v)));
    if (t == LQ_E4M3) return _mm512_add_ps(_mm512_mul_ps(lq_e4m3_512(b), _mm512_set1_ps(up)), _mm512_set1_ps(shift));
    __m512i e = _mm512_slli_epi32(b, 23); /* E8M0; 0: 2^-127, a subnormal; 255: NaN */
    __mmask16 odd = _mm512_cmpeq_epi32_mask(b, _mm512_setzero_si512()) | _mm512_cmpeq_epi32_mask(b, _mm512_set1_epi32(255));
    return _mm512_castsi512_ps(_mm512_mask_or_epi32(e, odd, e, _mm512_set1_epi32(0x400000)));
}

LQ_INLINE uint32_t lq_params_size(lq_dtype t) { return t == LQ_NONE ? 0 : t == LQ_F32 ? 4 : t == LQ_F16 ? 2 : 1; }

typedef struct lq_scales512 { __m512 s, z; } lq_scales512; /* of sixteen rows */

LQ_INLINE __m512 lq_up512(__m512 v, const uint8_t *up, float shift) {
    return _mm512_add_ps(_mm512_mul_ps(v, lq_params512(LQ_F16, up, 1, 0)), _mm512_set1_ps(shift));
}

LQ_INLINE lq_scales512 lq_scales512_at(const lq_packed *p, uint32_t tile, uint32_t g) {
    const uint8_t *at = lq_packed_params(p, tile, g);
    lq_scales512 v = {p->scale == LQ_NONE ? _mm512_set1_ps(1) : lq_params512(p->scale, at, p->up, p->shift),
                      p->zero == LQ_NONE ? _mm512_setzero_ps() : lq_params512(p->zero, at + LQ_TILE * lq_params_size(p->scale), 1, 0)};
    if (p->up_scale) v.s = lq_up512(v.s, lq_packed_ups(p, tile, g), p->shift);
    if (p->up_zero) v.z = lq_up512(v.z, lq_packed_ups(p, tile, g) + (p->up_scale ? 2 * LQ_TILE : 0), p->zero_shift);
    return v;
}

LQ_INLINE __mmask16 lq_rows512(const lq_packed *p, uint32_t tile) { return (__mmask16)((1u << lq_tile_rows(p, tile)) - 1); }
#endif
