/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/x86/exp_avx2.h"
#include "kernels/x86/x86.h"

static inline __m256 sigmoid_times(__m256 x, __m256 minus) {
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), lq_exp8(minus)));
}

static inline __m256 silu(__m256 x) { return sigmoid_times(x, _mm256_xor_ps(x, _mm256_set1_ps(-0.0f))); }

static inline __m256 gelu_tanh(__m256 x) {
    __m256 cube = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(x, x), x), _mm256_set1_ps(0.044715f));
    return sigmoid_times(x, _mm256_mul_ps(_mm256_add_ps(x, cube), _mm256_set1_ps(-1.5957691f)));
}

static inline void store(float *y, __m256 f, const float *up) { _mm256_storeu_ps(y, _mm256_mul_ps(f, _mm256_loadu_ps(up))); }

void lq_glu_avx2(lq_actfn f, const float *gate, const float *up, float *y, size_t n) {
    size_t i = 0;
    if (f == LQ_ACTFN_SILU)
        for (; i + 8 <= n; i += 8) store(y + i, silu(_mm256_loadu_ps(gate + i)), up + i);
    else if (f == LQ_ACTFN_GELU_TANH)
        for (; i + 8 <= n; i += 8) store(y + i, gelu_tanh(_mm256_loadu_ps(gate + i)), up + i);
    lq_glu_c(f, gate + i, up + i, y + i, n - i);
}
