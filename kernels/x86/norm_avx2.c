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

/* Sums over x, or of (x - mean)^2, in the lanes' order. */
static double lanes_of(const float *x, uint32_t d, double mean, bool squares) {
    const __m256d m = _mm256_set1_pd(mean);
    __m256d v[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    double lane[LQ_LANES];
    uint32_t i = 0;
    for (; i + 16 <= d; i += 16)
        for (int j = 0; j < 4; j++) {
            __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4 * j)), t = _mm256_sub_pd(a, m);
            v[j] = _mm256_add_pd(v[j], squares ? _mm256_mul_pd(t, t) : a);
        }
    for (int j = 0; j < 4; j++) _mm256_storeu_pd(lane + 4 * j, v[j]);
    for (; i < d; i++) lane[i % LQ_LANES] += squares ? ((double)x[i] - mean) * ((double)x[i] - mean) : (double)x[i];
    return lq_lanes_sum(lane);
}

static __m128 normed(const float *x, __m256d mean, __m256d scale) {
    return _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(x)), mean), scale));
}

void lq_layernorm_avx2(const float *x, const float *gain, const float *shift, float eps, uint32_t d, float *y) {
    double mean = lanes_of(x, d, 0, false) / d, scale = 1 / sqrt(lanes_of(x, d, mean, true) / d + (double)eps);
    const __m256d m = _mm256_set1_pd(mean), s = _mm256_set1_pd(scale);
    uint32_t i = 0;
    for (; i + 4 <= d; i += 4) {
        __m128 v = _mm_mul_ps(normed(x + i, m, s), gain ? _mm_loadu_ps(gain + i) : _mm_set1_ps(1));
        _mm_storeu_ps(y + i, _mm_add_ps(v, shift ? _mm_loadu_ps(shift + i) : _mm_setzero_ps()));
    }
    for (; i < d; i++) y[i] = (float)(((double)x[i] - mean) * scale) * (gain ? gain[i] : 1) + (shift ? shift[i] : 0);
}

void lq_add_avx2(float *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    for (; i < n; i++) y[i] += x[i];
}
