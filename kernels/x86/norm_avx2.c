/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The lanes of ref/lanes.h as four registers of four. The product of two floats is exact in fp64, so a fused one is too. */
#include "kernels/ref/lanes.h"
#include "kernels/x86/x86.h"

#include <immintrin.h>
#include <math.h>

double lq_dot_avx2(const float *a, const float *b, size_t n) {
    __m256d v[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    double lane[LQ_LANES];
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 4; j++)
            v[j] = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(a + i + 4 * j)), _mm256_cvtps_pd(_mm_loadu_ps(b + i + 4 * j)),
                                   v[j]);
    for (int j = 0; j < 4; j++) _mm256_storeu_pd(lane + 4 * j, v[j]);
    for (; i < n; i++) lane[i % LQ_LANES] += (double)a[i] * (double)b[i];
    return lq_lanes_sum(lane);
}

void lq_rmsnorm_avx2(const float *x, const float *gain, float eps, uint32_t d, float *y) {
    float scale = (float)(1 / sqrt(lq_dot_avx2(x, x, d) / d + (double)eps));
    const __m256 s = _mm256_set1_ps(scale);
    uint32_t i = 0;
    for (; i + 8 <= d; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), s), _mm256_loadu_ps(gain + i)));
    for (; i < d; i++) y[i] = x[i] * scale * gain[i];
}
