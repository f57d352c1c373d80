/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Eight rows of sums in sixteen registers: for a token two loads and eight broadcasts feed sixteen products. */
#include "kernels/x86/x86.h"

#include <immintrin.h>

enum { ROWS = 8 };

static void add_row(double *sum, __m512 v) {
    __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(v)), hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    _mm512_storeu_pd(sum, _mm512_add_pd(_mm512_loadu_pd(sum), lo));
    _mm512_storeu_pd(sum + 8, _mm512_add_pd(_mm512_loadu_pd(sum + 8), hi));
}

static void some_rows(const float *a, const float *b, uint32_t n, double *sum, size_t ld) {
    __m512 v[ROWS][2];
    for (int i = 0; i < ROWS; i++) {
        v[i][0] = v[i][1] = _mm512_setzero_ps();
        for (int j = 0; j < LQ_PANEL; j += 8) _mm_prefetch((const char *)(sum + i * ld + j), _MM_HINT_T0); /* wanted when the tokens are through */
    }
    for (uint32_t t = 0; t < n; t++, a += LQ_PANEL, b += LQ_PANEL) {
        __m512 lo = _mm512_loadu_ps(b), hi = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            __m512 x = _mm512_set1_ps(a[i]);
            v[i][0] = _mm512_fmadd_ps(x, lo, v[i][0]);
            v[i][1] = _mm512_fmadd_ps(x, hi, v[i][1]);
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int h = 0; h < 2; h++) add_row(sum + i * ld + (size_t)h * 16, v[i][h]);
}

void lq_panel_sums_avx512(const float *a, const float *b, uint32_t n, double *sum, size_t ld) {
    for (uint32_t i = 0; i < LQ_PANEL; i += ROWS) some_rows(a + i, b, n, sum + i * ld, ld);
}
