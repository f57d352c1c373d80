/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What products of packed tiles and rounded activations in 512-bit vectors have in common (packed_idot_vnni.c, packed_spans_vnni.c). */
#ifndef LQ_PACKED_IDOT512_H
#define LQ_PACKED_IDOT512_H
#include "kernels/spans.h"
#include "kernels/x86/packed_avx512.h"

enum { MOST = 8 }; /* tokens at once */

typedef struct whole { __m512i table; int32_t less; } whole; /* A(code) = table[code] - less, or code - less */
typedef struct job { const lq_packed *p; const lq_packed_i *x; uint32_t tile, t0; whole a; double *acc; size_t ld; } job;
typedef void (*tile_fn)(const job *j);

LQ_INLINE __m512i four(const int8_t *x) {
    int32_t v;
    memcpy(&v, x, 4);
    return _mm512_set1_epi32(v);
}

/* The bits of quad q where they are. */
LQ_INLINE __m512i in_place(const uint8_t *at, uint32_t half, int f, int q) {
    __m512i v = lq_vector512(at, half, f, q);
    return f == 8 ? v : _mm512_and_si512(v, lq_bytes512(((1 << f) - 1) << lq_bit512(f, q)));
}

LQ_INLINE __m512i codes_of(lq_step s, const whole *a, int f0, int f1, bool table, int q) {
    __m512i v = lq_quad512(s, f0, f1, q);
    return table ? _mm512_shuffle_epi8(a->table, v) : v;
}

/* Codes of quad q times each token's four. Two tokens have two sums each, that of even and of odd quads; one has four. */
LQ_INLINE void add_quad(__m512i v, const int8_t *const *x, uint32_t c, int q, __m512i *sum, int n) {
    for (int t = 0; t < n; t++) {
        __m512i *to = sum + (n >= 4 ? t : n == 1 ? q : 2 * t + (q & 1));
        *to = _mm512_dpbusd_epi32(*to, v, four((x[t] + c) + 4 * q));
    }
}

LQ_INLINE __m512i join_some(const __m512i *sum, int t, int n) {
    if (n >= 4) return sum[t];
    if (n > 1) return _mm512_add_epi32(sum[2 * t], sum[2 * t + 1]);
    return _mm512_add_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_add_epi32(sum[2], sum[3]));
}

typedef struct wide { __m512d lo, hi; } wide; /* sixteen rows in fp64 */
LQ_INLINE wide wide_f32(__m512 v) {
    return (wide){_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
}
LQ_INLINE wide wide_i32(__m512i v) {
    return (wide){_mm512_cvtepi32_pd(_mm512_castsi512_si256(v)), _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(v, 1))};
}
LQ_INLINE wide mul(wide a, wide b) { return (wide){_mm512_mul_pd(a.lo, b.lo), _mm512_mul_pd(a.hi, b.hi)}; }
LQ_INLINE wide mul1(wide a, double b) { return (wide){_mm512_mul_pd(a.lo, _mm512_set1_pd(b)), _mm512_mul_pd(a.hi, _mm512_set1_pd(b))}; }
LQ_INLINE wide add(wide a, wide b) { return (wide){_mm512_add_pd(a.lo, b.lo), _mm512_add_pd(a.hi, b.hi)}; }
LQ_INLINE wide sub(wide a, wide b) { return (wide){_mm512_sub_pd(a.lo, b.lo), _mm512_sub_pd(a.hi, b.hi)}; }

/* A table of whole numbers as bytes above the least of them. */
LQ_INLINE whole make_whole(const lq_packed *p) {
    const lq_grid grid = lq_packed_grid(p), *g = &grid;
    uint8_t t[64];
    int32_t v[16], least = INT32_MAX;
    if (g->kind == LQ_GRID_INT) return (whole){_mm512_setzero_si512(), g->bias};
    for (uint32_t i = 0; i < 16; i++) {
        v[i] = (int32_t)lq_grid_value(&p->q, 0, i & ((1u << g->bits) - 1));
        if (v[i] < least) least = v[i];
    }
    for (int i = 0; i < 64; i++) t[i] = (uint8_t)(v[i % 16] - least);
    return (whole){lq_load512(t), -least};
}

/* packed_idot where lq_spans_whole(p) */
void lq_packed_spans_vnni(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);
#endif
