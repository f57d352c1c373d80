/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/x86/exp_avx512.h"
#include "kernels/x86/x86.h"

static inline __m512 sigmoid_times(__m512 x, __m512 minus) {
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), lq_exp16(minus)));
}

static inline __m512 silu(__m512 x) { return sigmoid_times(x, _mm512_xor_ps(x, _mm512_set1_ps(-0.0f))); }

static inline __m512 gelu_tanh(__m512 x) {
    __m512 cube = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), x), _mm512_set1_ps(0.044715f));
    return sigmoid_times(x, _mm512_mul_ps(_mm512_add_ps(x, cube), _mm512_set1_ps(-1.5957691f)));
}

void lq_glu_avx512(lq_actfn f, const float *gate, const float *up, float *y, size_t n) {
    if (f != LQ_ACTFN_SILU && f != LQ_ACTFN_GELU_TANH) {
        lq_glu_c(f, gate, up, y, n);
        return;
    }
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = lq_tail16(n - i);
        __m512 x = _mm512_maskz_loadu_ps(m, gate + i);
        x = f == LQ_ACTFN_SILU ? silu(x) : gelu_tanh(x);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(x, _mm512_maskz_loadu_ps(m, up + i)));
    }
}
