/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/x86/x86.h"

#include <immintrin.h>

static __mmask16 first(size_t n) { return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffff); }

uint32_t lq_absmax_avx512(const float *x, size_t n) {
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    __m512i a = _mm512_setzero_si512(), b = a;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        a = _mm512_max_epu32(a, _mm512_and_si512(mask, _mm512_loadu_si512((const void *)(x + i))));
        b = _mm512_max_epu32(b, _mm512_and_si512(mask, _mm512_loadu_si512((const void *)(x + i + 16))));
    }
    for (; i < n; i += 16) a = _mm512_max_epu32(a, _mm512_and_si512(mask, _mm512_maskz_loadu_epi32(first(n - i), (const void *)(x + i))));
    return _mm512_reduce_max_epu32(_mm512_max_epu32(a, b));
}

int32_t lq_round8_avx512(const float *x, float inv, size_t n, int8_t *code) {
    const __m512 v = _mm512_set1_ps(inv), top = _mm512_set1_ps(127), low = _mm512_set1_ps(-127);
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = first(n - i);
        __m512i c = _mm512_cvtps_epi32(_mm512_max_ps(low, _mm512_min_ps(top, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), v)))); /* nearest, ties to even */
        c = _mm512_maskz_mov_epi32(m, c); /* 0 times an infinite factor */
        sum = _mm512_add_epi32(sum, c);
        if (m == 0xffff) _mm_storeu_si128((__m128i *)(void *)(code + i), _mm512_cvtepi32_epi8(c));
        else _mm_mask_storeu_epi8(code + i, m, _mm512_cvtepi32_epi8(c));
    }
    return _mm512_reduce_add_epi32(sum);
}

void lq_narrow_avx512(const double *x, float *y, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm512_cvtpd_ps(_mm512_loadu_pd(x + i)));
    lq_narrow_c(x + i, y + i, n - i);
}
