/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Four rows of 24 columns in twelve registers, then the other eight columns of eight rows. */
#include "kernels/x86/x86.h"

#include <immintrin.h>

static void add_eight(double *sum, __m256 v) {
    __m256d lo = _mm256_cvtps_pd(_mm256_castps256_ps128(v)), hi = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
    _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), lo));
    _mm256_storeu_pd(sum + 4, _mm256_add_pd(_mm256_loadu_pd(sum + 4), hi));
}

/* rows times cols (in eights) sums; both constants in every caller */
LQ_INLINE void some_sums(int rows, int eights, const float *a, const float *b, uint32_t n, double *sum, size_t ld) {
    __m256 v[12];
    for (int i = 0; i < rows * eights; i++) v[i] = _mm256_setzero_ps();
    for (uint32_t t = 0; t < n; t++, a += LQ_PANEL, b += LQ_PANEL) {
        __m256 y[3];
        for (int e = 0; e < eights; e++) y[e] = _mm256_loadu_ps(b + 8 * e);
        for (int i = 0; i < rows; i++) {
            __m256 x = _mm256_broadcast_ss(a + i);
            for (int e = 0; e < eights; e++) v[i * eights + e] = _mm256_fmadd_ps(x, y[e], v[i * eights + e]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int e = 0; e < eights; e++) add_eight(sum + (size_t)i * ld + 8 * e, v[i * eights + e]);
}

void lq_panel_sums_avx2(const float *a, const float *b, uint32_t n, double *sum, size_t ld) {
    for (uint32_t i = 0; i < LQ_PANEL; i += 4) some_sums(4, 3, a + i, b, n, sum + i * ld, ld);
    for (uint32_t i = 0; i < LQ_PANEL; i += 8) some_sums(8, 1, a + i, b + 24, n, sum + i * ld + 24, ld);
}
