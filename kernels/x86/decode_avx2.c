/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Stored weights to float: halves by F16C, bfloat16 by a shift, the ggml blocks of 32 with one scale by widening; the
 * other types by their definition. */
#include "core/num.h"
#include "kernels/x86/x86.h"

#include <immintrin.h>
#include <string.h>

static void halves(const uint16_t *h, float *dst, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h + i))));
    for (; i < n; i++) dst[i] = _cvtsh_ss(h[i]);
}

static void bfloats(const uint16_t *h, float *dst, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(h + i)));
        _mm256_storeu_ps(dst + i, _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)));
    }
    for (; i < n; i++) dst[i] = lq_bf16_f32(h[i]);
}

static float half_at(const uint8_t *p) { uint16_t h; memcpy(&h, p, 2); return _cvtsh_ss(h); }

/* 16 integers of one byte, times d, plus m */
static inline void put16(__m128i q, __m256 d, __m256 m, float *y) {
    __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
    __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8)));
    _mm256_storeu_ps(y, _mm256_add_ps(_mm256_mul_ps(low, d), m));
    _mm256_storeu_ps(y + 8, _mm256_add_ps(_mm256_mul_ps(high, d), m));
}

static inline void put_nibbles(const uint8_t *qs, int offset, float d, float m, float *y) {
    const __m128i mask = _mm_set1_epi8(15), off = _mm_set1_epi8((char)offset);
    __m128i v = _mm_loadu_si128((const __m128i *)qs);
    put16(_mm_sub_epi8(_mm_and_si128(v, mask), off), _mm256_set1_ps(d), _mm256_set1_ps(m), y);
    put16(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(v, 4), mask), off), _mm256_set1_ps(d), _mm256_set1_ps(m), y + 16);
}

static void q4_0(const uint8_t *b, float *y, size_t blocks) {
    for (; blocks--; b += 18, y += 32) put_nibbles(b + 2, 8, half_at(b), -0.0f, y);
}
static void q4_1(const uint8_t *b, float *y, size_t blocks) {
    for (; blocks--; b += 20, y += 32) put_nibbles(b + 4, 0, half_at(b), half_at(b + 2), y);
}
static void q8_0(const uint8_t *b, float *y, size_t blocks) {
    for (; blocks--; b += 34, y += 32)
        for (int i = 0; i < 32; i += 16)
            put16(_mm_loadu_si128((const __m128i *)(b + 2 + i)), _mm256_set1_ps(half_at(b)), _mm256_set1_ps(-0.0f), y + i);
}

void lq_decode_avx2(lq_dtype t, const void *src, float *dst, size_t n) {
    switch (t) {
    case LQ_F16: halves(src, dst, n); break;
    case LQ_BF16: bfloats(src, dst, n); break;
    case LQ_Q4_0: q4_0(src, dst, n / 32); break;
    case LQ_Q4_1: q4_1(src, dst, n / 32); break;
    case LQ_Q8_0: q8_0(src, dst, n / 32); break;
    default: lq_dtype_decode(t, src, dst, n);
    }
}
