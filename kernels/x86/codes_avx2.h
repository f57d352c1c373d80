/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Eight codes at a time. Codes of up to 4 bits lie in the low bits of one dword; a shift by bits * lane brings each to the
 * bottom; vpermps selects by three bits, so 4-bit codes select in both halves of the table and bit 3 chooses. */
#ifndef LQ_CODES_AVX2_H
#define LQ_CODES_AVX2_H
#include "kernels/x86/walk.h"

typedef struct lq_codes256 { __m256i shift; __m256 low, high; } lq_codes256;

static inline __m256 lq_codes256_weights(const float *grid, lq_seg g) {
    __m256 a = _mm256_sub_ps(_mm256_loadu_ps(grid), _mm256_set1_ps(g.z1));
    return _mm256_sub_ps(_mm256_mul_ps(a, _mm256_set1_ps(g.s)), _mm256_set1_ps(g.z2));
}

static inline lq_codes256 lq_codes256_make(const lq_walk *w, lq_seg g) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (lq_codes256){_mm256_mullo_epi32(lane, _mm256_set1_epi32((int)w->bits)), lq_codes256_weights(w->grid, g),
                         lq_codes256_weights(w->grid + 8, g)};
}

static inline __m256 lq_codes256_pick3(const lq_codes256 *k, const uint8_t *p) { /* up to 3 bits */
    return _mm256_permutevar8x32_ps(k->low, _mm256_srlv_epi32(_mm256_set1_epi32(lq_walk_u32(p)), k->shift));
}

static inline __m256 lq_codes256_pick4(const lq_codes256 *k, const uint8_t *p) {
    __m256i code = _mm256_srlv_epi32(_mm256_set1_epi32(lq_walk_u32(p)), k->shift);
    __m256 low = _mm256_permutevar8x32_ps(k->low, code), high = _mm256_permutevar8x32_ps(k->high, code);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
}

/* 8 bits: code - (bias + zero), exact */
static inline __m256 lq_codes256_bytes(const uint8_t *p, __m256 zero) {
    return _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p))), zero);
}

/* E4M3: the bits one field lower are a float 2^120 too small, subnormals included; 127 is NaN. */
static inline __m256 lq_codes256_e4m3(const uint8_t *p) {
    __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)), m = _mm256_and_si256(v, _mm256_set1_epi32(127));
    __m256 f = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(m, 20)), _mm256_set1_ps(0x1p120f));
    __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi32(m, _mm256_set1_epi32(127)), _mm256_set1_epi32(0x7fc00000));
    __m256i sign = _mm256_slli_epi32(_mm256_and_si256(v, _mm256_set1_epi32(128)), 24);
    return _mm256_or_ps(f, _mm256_castsi256_ps(_mm256_or_si256(nan, sign)));
}

/* The first n < 8 lanes. */
static inline __m256i lq_mask8(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif
