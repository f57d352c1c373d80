/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The rotary turn of ref/rope.c, eight angles at a time (four for pairs side by side): products are rounded before they meet. */
#include "kernels/x86/x86.h"

#include <immintrin.h>

static void turn(float *a, float *b, const float *cos, const float *sin, uint32_t n) {
    uint32_t j = 0;
    for (; j + 8 <= n; j += 8) {
        __m256 u = _mm256_loadu_ps(a + j), v = _mm256_loadu_ps(b + j), c = _mm256_loadu_ps(cos + j), s = _mm256_loadu_ps(sin + j);
        _mm256_storeu_ps(a + j, _mm256_sub_ps(_mm256_mul_ps(u, c), _mm256_mul_ps(v, s)));
        _mm256_storeu_ps(b + j, _mm256_add_ps(_mm256_mul_ps(v, c), _mm256_mul_ps(u, s)));
    }
    for (; j < n; j++) {
        float u = a[j], v = b[j];
        a[j] = u * cos[j] - v * sin[j];
        b[j] = v * cos[j] + u * sin[j];
    }
}

void lq_rope_avx2(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin) {
    for (uint32_t h = 0; h < heads; h++) turn(x + (size_t)h * dim, x + (size_t)h * dim + rot / 2, cos, sin, rot / 2);
}

void lq_rope_pairs_avx2(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin) {
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    for (uint32_t h = 0; h < heads; h++) {
        float *a = x + (size_t)h * dim;
        uint32_t j = 0;
        for (; j + 4 <= rot / 2; j += 4) {
            __m256 v = _mm256_loadu_ps(a + 2 * j), c = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cos + j)), twice);
            __m256 s = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(sin + j)), twice);
            _mm256_storeu_ps(a + 2 * j, _mm256_addsub_ps(_mm256_mul_ps(v, c), _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), s)));
        }
        lq_rope_pairs_c(a + 2 * j, 1, dim, rot - 2 * j, cos + j, sin + j);
    }
}
