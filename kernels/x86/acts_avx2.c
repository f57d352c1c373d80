/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/x86/x86.h"

#include <immintrin.h>
#include <string.h>

uint32_t lq_absmax_avx2(const float *x, size_t n) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i a = _mm256_setzero_si256(), b = a;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        a = _mm256_max_epu32(a, _mm256_and_si256(mask, _mm256_loadu_si256((const __m256i *)(const void *)(x + i))));
        b = _mm256_max_epu32(b, _mm256_and_si256(mask, _mm256_loadu_si256((const __m256i *)(const void *)(x + i + 8))));
    }
    uint32_t lane[8], most = lq_absmax_c(x + i, n - i);
    _mm256_storeu_si256((__m256i *)(void *)lane, _mm256_max_epu32(a, b));
    for (int j = 0; j < 8; j++) most = lane[j] > most ? lane[j] : most;
    return most;
}

static __m256i rounded(const float *x, __m256 inv) { /* cvtps: nearest, ties to even */
    const __m256 top = _mm256_set1_ps(127), low = _mm256_set1_ps(-127);
    return _mm256_cvtps_epi32(_mm256_max_ps(low, _mm256_min_ps(top, _mm256_mul_ps(_mm256_loadu_ps(x), inv))));
}

int32_t lq_round8_avx2(const float *x, float inv, size_t n, int8_t *code) {
    const __m256 v = _mm256_set1_ps(inv);
    __m256i sum = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i a = rounded(x + i, v), b = rounded(x + i + 8, v), c = rounded(x + i + 16, v), d = rounded(x + i + 24, v);
        sum = _mm256_add_epi32(sum, _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d)));
        __m256i all = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)); /* fours of both halves in turn */
        _mm256_storeu_si256((__m256i *)(void *)(code + i), _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    }
    int32_t lane[8], total = lq_round8_c(x + i, inv, n - i, code + i);
    _mm256_storeu_si256((__m256i *)(void *)lane, sum);
    for (int j = 0; j < 8; j++) total += lane[j];
    return total;
}

void lq_narrow_avx2(const double *x, float *y, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) _mm_storeu_ps(y + i, _mm256_cvtpd_ps(_mm256_loadu_pd(x + i)));
    lq_narrow_c(x + i, y + i, n - i);
}
