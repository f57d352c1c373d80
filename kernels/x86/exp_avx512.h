/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ref/exp.h, sixteen at a time: the same operations in the same order. */
#ifndef LQ_EXP_AVX512_H
#define LQ_EXP_AVX512_H
#include "kernels/ref/exp.h"

#include <immintrin.h>

static inline __m512 lq_exp16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(LQ_EXP_LO), x); /* this operand order keeps NaN */
    x = _mm512_min_ps(_mm512_set1_ps(LQ_EXP_HI), x);
    const __m512 magic = _mm512_set1_ps(LQ_EXP_ROUND);
    __m512 t = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(LQ_EXP_LOG2E)), magic), n = _mm512_sub_ps(t, magic);
    __m512 r = _mm512_sub_ps(x, _mm512_mul_ps(n, _mm512_set1_ps(LQ_EXP_LN2_HI)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(LQ_EXP_LN2_LO)));
    __m512 p = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(LQ_EXP_P4), r), _mm512_set1_ps(LQ_EXP_P3));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(LQ_EXP_P2));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(LQ_EXP_P1));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(LQ_EXP_P0));
    __m512 y = _mm512_add_ps(_mm512_add_ps(_mm512_mul_ps(p, _mm512_mul_ps(r, r)), r), _mm512_set1_ps(1.0f));
    __m512i k = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(magic)), half = _mm512_srai_epi32(k, 1);
    const __m512i bias = _mm512_set1_epi32(127);
    __m512i a = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
    __m512i b = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(k, half), bias), 23);
    return _mm512_mul_ps(_mm512_mul_ps(y, _mm512_castsi512_ps(a)), _mm512_castsi512_ps(b));
}

static inline __mmask16 lq_tail16(size_t n) { return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1); }
#endif
