/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Sixteen codes at a time. Codes of up to 4 bits: the dwords at bytes 0 and `bits` hold codes 0-7 and 8-15 in their low
 * bits; a shift by bits * (lane mod 8) brings each to the bottom, and vpermps ignores all but four bits of it. */
#ifndef LQ_CODES_AVX512_H
#define LQ_CODES_AVX512_H
#include "kernels/x86/walk.h"

typedef struct lq_codes512 { __m512i shift; uint32_t bits; } lq_codes512;

static inline lq_codes512 lq_codes512_make(uint32_t bits) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
    return (lq_codes512){_mm512_mullo_epi32(lane, _mm512_set1_epi32((int)bits)), bits};
}

static inline __m512 lq_codes512_pick(const lq_codes512 *k, const uint8_t *p, __m512 table) {
    __m512i low = _mm512_set1_epi32(lq_walk_u32(p)), both = _mm512_mask_set1_epi32(low, 0xff00, lq_walk_u32(p + k->bits));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(both, k->shift), table);
}

static inline __m512 lq_codes512_table(const lq_walk *w, lq_seg g) {
    __m512 a = _mm512_sub_ps(_mm512_loadu_ps(w->grid), _mm512_set1_ps(g.z1));
    return _mm512_sub_ps(_mm512_mul_ps(a, _mm512_set1_ps(g.s)), _mm512_set1_ps(g.z2));
}

/* 8 bits: code - (bias + zero), exact */
static inline __m512 lq_codes512_bytes(const uint8_t *p, __m512 zero) {
    return _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p))), zero);
}

static inline __mmask16 lq_mask16(size_t n) { return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1); }
#endif
