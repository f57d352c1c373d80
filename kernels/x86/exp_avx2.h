/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ref/exp.h, eight at a time: the same operations in the same order. */
#ifndef LQ_EXP_AVX2_H
#define LQ_EXP_AVX2_H
#include "kernels/ref/exp.h"

#include <immintrin.h>

static inline __m256 lq_exp8(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(LQ_EXP_LO), x); /* this operand order keeps NaN */
    x = _mm256_min_ps(_mm256_set1_ps(LQ_EXP_HI), x);
    const __m256 magic = _mm256_set1_ps(LQ_EXP_ROUND);
    __m256 t = _mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(LQ_EXP_LOG2E)), magic), n = _mm256_sub_ps(t, magic);
    __m256 r = _mm256_sub_ps(x, _mm256_mul_ps(n, _mm256_set1_ps(LQ_EXP_LN2_HI)));
    r = _mm256_sub_ps(r, _mm256_mul_ps(n, _mm256_set1_ps(LQ_EXP_LN2_LO)));
    __m256 p = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(LQ_EXP_P4), r), _mm256_set1_ps(LQ_EXP_P3));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(LQ_EXP_P2));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(LQ_EXP_P1));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(LQ_EXP_P0));
    __m256 y = _mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(p, _mm256_mul_ps(r, r)), r), _mm256_set1_ps(1.0f));
    __m256i k = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic)), half = _mm256_srai_epi32(k, 1);
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(k, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}
#endif
