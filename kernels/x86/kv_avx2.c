/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Values of a small key-value cache as floats, eight at a time; what is left of a run by the definition. */
#include "kernels/x86/codes_avx2.h"
#include "kernels/x86/x86.h"

void lq_kv8_avx2(lq_dtype t, const void *src, float step, float *dst, size_t n) {
    const uint8_t *in = src;
    const __m256 s = _mm256_set1_ps(step);
    size_t i = 0;
    for (; t == LQ_I8 && i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_mul_ps(s, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(in + i))))));
    for (; t != LQ_I8 && i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_mul_ps(s, lq_codes256_e4m3(in + i)));
    lq_kv8_c(t, in + i, step, dst + i, n - i);
}

void lq_kv4_avx2(const void *src, float low, float step, float *dst, size_t n) {
    const uint8_t *in = src;
    const __m256 s = _mm256_set1_ps(step), z = _mm256_set1_ps(low);
    const __m128i mask = _mm_set1_epi8(15);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m128i v = _mm_loadl_epi64((const __m128i *)(const void *)(in + i / 2));
        v = _mm_unpacklo_epi8(_mm_and_si128(v, mask), _mm_and_si128(_mm_srli_epi16(v, 4), mask));
        _mm256_storeu_ps(dst + i, _mm256_add_ps(z, _mm256_mul_ps(s, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)))));
        _mm256_storeu_ps(dst + i + 8, _mm256_add_ps(z, _mm256_mul_ps(s, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))))));
    }
    lq_kv4_c(in + i / 2, low, step, dst + i, n - i);
}
