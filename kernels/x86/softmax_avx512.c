/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ref/softmax.c with the lanes of ref/lanes.h as two registers of eight. */
#include "kernels/ref/lanes.h"
#include "kernels/x86/exp_avx512.h"
#include "kernels/x86/x86.h"

static float largest(const float *x, size_t n) {
    float lane[16], m;
    __m512 v = _mm512_set1_ps(x[0]);
    for (size_t i = 0; i < n; i += 16) { /* NaN in x leaves v as it was */
        __mmask16 k = lq_tail16(n - i);
        v = _mm512_mask_max_ps(v, k, _mm512_maskz_loadu_ps(k, x + i), v);
    }
    _mm512_storeu_ps(lane, v);
    m = lane[0];
    for (int j = 1; j < 16; j++) m = lane[j] > m ? lane[j] : m;
    return m;
}

/* Sum of e^(x - m) in lane order; the terms go to out when there is one. Past the end +0 is added. */
static double sum_exp(const float *x, size_t n, float m, float *out) {
    __m512d low = _mm512_setzero_pd(), high = low;
    double lane[LQ_LANES];
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = lq_tail16(n - i);
        __m512 e = lq_exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(k, x + i), _mm512_set1_ps(m)));
        e = _mm512_maskz_mov_ps(k, e);
        if (out) _mm512_mask_storeu_ps(out + i, k, e);
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(e)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(e, 1)));
    }
    _mm512_storeu_pd(lane, low);
    _mm512_storeu_pd(lane + 8, high);
    return lq_lanes_sum(lane);
}

static void scale_by(float *x, size_t n, float s) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 k = lq_tail16(n - i);
        _mm512_mask_storeu_ps(x + i, k, _mm512_mul_ps(_mm512_maskz_loadu_ps(k, x + i), _mm512_set1_ps(s)));
    }
}

void lq_softmax_avx512(float *x, size_t n, float scale) {
    if (!n) return;
    scale_by(x, n, scale);
    scale_by(x, n, (float)(1 / sum_exp(x, n, largest(x, n), x)));
}

double lq_logsumexp_avx512(const float *x, size_t n) {
    if (!n) return -INFINITY;
    float m = largest(x, n);
    return (double)m + log(sum_exp(x, n, m, NULL));
}
