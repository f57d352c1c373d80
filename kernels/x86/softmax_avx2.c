/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ref/softmax.c with the lanes of ref/lanes.h as four registers of four. */
#include "kernels/ref/lanes.h"
#include "kernels/x86/exp_avx2.h"
#include "kernels/x86/x86.h"

static float largest(const float *x, size_t n) {
    float m = x[0];
    size_t i = 0;
    if (n >= 8) {
        float lane[8];
        __m256 v = _mm256_loadu_ps(x);
        for (i = 8; i + 8 <= n; i += 8) v = _mm256_max_ps(_mm256_loadu_ps(x + i), v); /* NaN in x leaves v */
        _mm256_storeu_ps(lane, v);
        m = lane[0];
        for (int j = 1; j < 8; j++) m = lane[j] > m ? lane[j] : m;
    }
    for (; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* Sum of e^(x - m) in lane order; the terms go to out when there is one. */
static double sum_exp(const float *x, size_t n, float m, float *out) {
    __m256d v[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    double lane[LQ_LANES];
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 2; j++) {
            __m256 e = lq_exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * j), _mm256_set1_ps(m)));
            if (out) _mm256_storeu_ps(out + i + 8 * j, e);
            v[2 * j] = _mm256_add_pd(v[2 * j], _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
            v[2 * j + 1] = _mm256_add_pd(v[2 * j + 1], _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
        }
    for (int j = 0; j < 4; j++) _mm256_storeu_pd(lane + 4 * j, v[j]);
    for (; i < n; i++) {
        float e = lq_exp(x[i] - m);
        if (out) out[i] = e;
        lane[i % LQ_LANES] += (double)e;
    }
    return lq_lanes_sum(lane);
}

static void scale_by(float *x, size_t n, float s) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(s)));
    for (; i < n; i++) x[i] *= s;
}

void lq_softmax_avx2(float *x, size_t n, float scale) {
    if (!n) return;
    scale_by(x, n, scale);
    scale_by(x, n, (float)(1 / sum_exp(x, n, largest(x, n), x)));
}

double lq_logsumexp_avx2(const float *x, size_t n) {
    if (!n) return -INFINITY;
    float m = largest(x, n);
    return (double)m + log(sum_exp(x, n, m, NULL));
}
