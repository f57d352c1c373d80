/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Sixteen codes at a time. Codes of up to 4 bits: eight bytes hold them all; vpmultishiftqb brings the bits from
 * bits * lane on to the bottom of each lane, and vpermps ignores all but four of them. */
#ifndef LQ_CODES_AVX512_H
#define LQ_CODES_AVX512_H
#include "kernels/x86/walk.h"

/* from: the first bit of each lane's code, in the lane's lowest byte */
typedef struct lq_codes512 { __m512i from; uint32_t bits; } lq_codes512;

static inline lq_codes512 lq_codes512_make(uint32_t bits) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return (lq_codes512){_mm512_mullo_epi32(lane, _mm512_set1_epi32((int)bits)), bits};
}

static inline __m512 lq_codes512_pick(const lq_codes512 *k, const uint8_t *p, __m512 table) {
    int64_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm512_permutexvar_ps(_mm512_multishift_epi64_epi8(k->from, _mm512_set1_epi64(codes)), table);
}

static inline __m512 lq_codes512_table(const lq_walk *w, lq_seg g) {
    __m512 a = _mm512_sub_ps(_mm512_loadu_ps(w->grid), _mm512_set1_ps(g.z1));
    return _mm512_sub_ps(_mm512_mul_ps(a, _mm512_set1_ps(g.s)), _mm512_set1_ps(g.z2));
}

/* 8 bits: code - (bias + zero), exact */
static inline __m512 lq_codes512_bytes(const uint8_t *p, __m512 zero) {
    return _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p))), zero);
}

/* E4M3 as in codes_avx2.h */
static inline __m512 lq_codes512_e4m3(const uint8_t *p) {
    __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)), m = _mm512_and_si512(v, _mm512_set1_epi32(127));
    __m512 f = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(m, 20)), _mm512_set1_ps(0x1p120f));
    __mmask16 nan = _mm512_cmpeq_epi32_mask(m, _mm512_set1_epi32(127));
    __m512i bits = _mm512_mask_mov_epi32(_mm512_castps_si512(f), nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_castsi512_ps(_mm512_or_si512(bits, _mm512_slli_epi32(_mm512_and_si512(v, _mm512_set1_epi32(128)), 24)));
}

static inline __mmask16 lq_mask16(size_t n) { return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1); }
#endif
