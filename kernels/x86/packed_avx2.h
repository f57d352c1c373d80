/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A packed tile (kernels/packed.h) in 256-bit vectors: eight of its rows, sixteen columns at a step. A quad is four adjacent columns of
 * a step as bytes: dword = row, byte = column, whatever fields the code is cut into. */
#ifndef LQ_PACKED_AVX2_H
#define LQ_PACKED_AVX2_H
#include "kernels/x86/x86.h"

#include <immintrin.h>
#include <string.h>

enum { LQ_STEP = 16 };

/* How A(code) is found. T2: a table of four entries; T3: eight; T4: sixteen; S: code - bias is an int8; U: code - bias in floats; E4M3 */
enum { LQ_A_T2, LQ_A_T3, LQ_A_T4, LQ_A_S, LQ_A_U, LQ_A_E4M3 };
/* name, the two fields, how */
#define LQ_PACKED_KINDS(X)                                                                                          \
    X(t1, 1, 0, LQ_A_T2) X(t2, 2, 0, LQ_A_T2) X(t3, 2, 1, LQ_A_T3) X(t4, 4, 0, LQ_A_T4) X(i4, 4, 0, LQ_A_S)         \
    X(i5, 4, 1, LQ_A_S) X(i6, 4, 2, LQ_A_S) X(i8, 8, 0, LQ_A_S) X(u8, 8, 0, LQ_A_U) X(e4m3, 8, 0, LQ_A_E4M3)
enum {
#define X(name, f0, f1, how) LQ_KIND_##name,
    LQ_PACKED_KINDS(X)
#undef X
    LQ_KIND_NONE /* left to C */
};

LQ_INLINE int lq_packed_kind(const lq_packed *p) {
    const lq_grid *g = &p->q.sch.grid;
    bool whole = g->kind == LQ_GRID_INT, byte = g->bias <= 128 && (1 << g->bits) - 1 - g->bias <= 127;
    if (g->bits <= 3) return LQ_KIND_t1 + g->bits - 1;
    if (g->kind == LQ_GRID_E4M3) return LQ_KIND_e4m3;
    if (g->bits == 4) return whole && byte ? LQ_KIND_i4 : LQ_KIND_t4;
    if (p->fields[0] == 8) return byte ? LQ_KIND_i8 : LQ_KIND_u8;
    return byte ? LQ_KIND_i5 + g->bits - 5 : LQ_KIND_NONE;
}

typedef struct lq_step { const uint8_t *lo, *hi; uint32_t half; } lq_step; /* where the fields of sixteen columns lie */

LQ_INLINE lq_step lq_step_at(const uint8_t *tile, uint32_t c, int f0, int f1) {
    uint32_t half = c >> 4 & 1;
    const uint8_t *unit = tile + (size_t)(c / LQ_UNIT) * 64 * (uint32_t)(f0 + f1);
    return (lq_step){unit + (f0 > 1 ? half * 32 * (uint32_t)f0 : 0), unit + 64 * f0 + (f1 > 1 ? half * 64 : 0), half};
}

/* Field f of quad q, moved up by `up` bits. */
LQ_INLINE __m256i lq_field256(const uint8_t *at, uint32_t half, int f, int up, int h, int q) {
    int per = 8 / f, down = f * (q % per) - up;
    __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(at + 64 * (q / per) + 32 * h));
    if (f == 8) return v;
    if (f == 1) v = _mm256_srl_epi32(v, _mm_cvtsi32_si128((int)half * 4));
    v = down >= 0 ? _mm256_srli_epi32(v, down) : _mm256_slli_epi32(v, -down);
    return _mm256_and_si256(v, _mm256_set1_epi8((char)(((1 << f) - 1) << up)));
}

/* Quad q = 0 .. 3 of a step, rows 8 h .. 8 h + 7. */
LQ_INLINE __m256i lq_quad256(lq_step s, int f0, int f1, int h, int q) {
    __m256i lo = lq_field256(s.lo, s.half, f0, 0, h, q);
    return f1 ? _mm256_or_si256(lo, lq_field256(s.hi, s.half, f1, f0, h, q)) : lo;
}

/* Eight floats of a plane's row of params. */
LQ_INLINE __m256 lq_params256(lq_dtype t, const uint8_t *v, float up, float shift) {
    __m256i b = t == LQ_E8M0 || t == LQ_E4M3 || t == LQ_U8 ? _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)v)) : _mm256_setzero_si256();
    if (t == LQ_F32) return _mm256_loadu_ps((const float *)(const void *)v);
    if (t == LQ_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)v));
    if (t == LQ_U8) return _mm256_cvtepi32_ps(b);
    if (t == LQ_E8M0) { /* 0: 2^-127, a subnormal; 255: NaN */
        __m256i least = _mm256_and_si256(_mm256_cmpeq_epi32(b, _mm256_setzero_si256()), _mm256_set1_epi32(0x400000));
        __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi32(b, _mm256_set1_epi32(255)), _mm256_set1_epi32(0x400000));
        return _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(b, 23), _mm256_or_si256(least, nan)));
    }
    __m256i m = _mm256_and_si256(b, _mm256_set1_epi32(127)), nan = _mm256_and_si256(_mm256_cmpeq_epi32(m, _mm256_set1_epi32(127)), _mm256_set1_epi32(0x7fc00000));
    __m256 f = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(m, 20)), _mm256_set1_ps(0x1p120f)); /* one field lower: 2^120 too small */
    f = _mm256_or_ps(f, _mm256_castsi256_ps(_mm256_or_si256(nan, _mm256_slli_epi32(_mm256_srli_epi32(b, 7), 31))));
    return _mm256_add_ps(_mm256_mul_ps(f, _mm256_set1_ps(up)), _mm256_set1_ps(shift));
}

typedef struct lq_scales256 { __m256 s[2], z[2]; } lq_scales256; /* of sixteen rows */

LQ_INLINE lq_scales256 lq_scales256_at(const lq_packed *p, uint32_t tile, uint32_t g) {
    const uint8_t *at = lq_packed_params(p, tile, g);
    size_t size = p->scale == LQ_NONE ? 0 : p->scale == LQ_F32 ? 4 : p->scale == LQ_F16 ? 2 : 1, zsize = p->zero == LQ_F32 ? 4 : p->zero == LQ_F16 ? 2 : 1;
    lq_scales256 v;
    for (int h = 0; h < 2; h++) {
        v.s[h] = p->scale == LQ_NONE ? _mm256_set1_ps(1) : lq_params256(p->scale, at + 8 * h * size, p->up, p->shift);
        v.z[h] = p->zero == LQ_NONE ? _mm256_setzero_ps() : lq_params256(p->zero, at + LQ_TILE * size + 8 * h * zsize, 1, 0);
    }
    return v;
}

/* First and last column of segment g; the last rounded up to a step: codes and activations behind the columns are 0. */
LQ_INLINE uint32_t lq_seg_end(const lq_packed *p, uint32_t g) {
    uint32_t end = p->q.cols - g * p->seg < p->seg ? p->q.cols : (g + 1) * p->seg;
    return (end + LQ_STEP - 1) / LQ_STEP * LQ_STEP;
}
LQ_INLINE uint32_t lq_tile_rows(const lq_packed *p, uint32_t tile) { return p->q.rows - tile * LQ_TILE < LQ_TILE ? p->q.rows - tile * LQ_TILE : LQ_TILE; }

/* A() of the grid in the forms that kinds want. */
typedef struct lq_grid256 { __m256 low, high, bias; __m256i byte; } lq_grid256;

LQ_INLINE lq_grid256 lq_grid256_make(const lq_packed *p) {
    const lq_grid *g = &p->q.sch.grid;
    float t[16];
    for (uint32_t i = 0; i < 16; i++) t[i] = g->bits > 4 ? 0 : lq_grid_value(&p->q, 0, i & ((1u << g->bits) - 1));
    return (lq_grid256){_mm256_loadu_ps(t), _mm256_loadu_ps(t + 8), _mm256_set1_ps((float)g->bias), _mm256_set1_epi8((char)g->bias)};
}
#endif
