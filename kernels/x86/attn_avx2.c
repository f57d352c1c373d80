/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ref/attn.c: two keys times up to two heads share their loads; the sixteen lanes of a product are two registers. */
#include "kernels/x86/x86.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

enum { KEYS = 2, HEADS = 2, RUN = 4 }; /* RUN: vectors of a value row that a pass holds */

typedef struct lanes { __m256 low, high; } lanes;

LQ_INLINE __m256 part(const float *x, uint32_t left) { /* what is there of eight */
    float v[8] = {0};
    if (left >= 8) return _mm256_loadu_ps(x);
    memcpy(v, x, left * sizeof *v);
    return _mm256_loadu_ps(v);
}
LQ_INLINE lanes load(const float *x, uint32_t left) { return (lanes){part(x, left), left > 8 ? part(x + 8, left - 8) : _mm256_setzero_ps()}; }

LQ_INLINE float sum(lanes a) { /* in the order of quads_sum */
    __m256 low = _mm256_add_ps(a.low, _mm256_permute_ps(a.low, _MM_SHUFFLE(1, 0, 3, 2))), high = _mm256_add_ps(a.high, _mm256_permute_ps(a.high, _MM_SHUFFLE(1, 0, 3, 2)));
    low = _mm256_add_ps(low, _mm256_permute_ps(low, _MM_SHUFFLE(2, 3, 0, 1)));
    high = _mm256_add_ps(high, _mm256_permute_ps(high, _MM_SHUFFLE(2, 3, 0, 1)));
    __m256 two = _mm256_add_ps(low, high);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1)));
}

LQ_INLINE void few_scores(const float *q, int heads, uint32_t d, const float *keys, size_t ld, uint32_t n, float *score, size_t lds) {
    for (uint32_t j = 0; j < n; j += KEYS) {
        const float *k[KEYS] = {keys + j * ld, keys + (j + 1 < n ? j + 1 : j) * ld};
        lanes acc[HEADS][KEYS];
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < KEYS; i++) acc[h][i] = (lanes){_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (uint32_t c = 0; c < d; c += 16) {
            lanes key[KEYS];
            for (int i = 0; i < KEYS; i++) key[i] = load(k[i] + c, d - c);
            for (int h = 0; h < heads; h++) {
                lanes v = load(q + (size_t)h * d + c, d - c);
                for (int i = 0; i < KEYS; i++) {
                    acc[h][i].low = _mm256_fmadd_ps(v.low, key[i].low, acc[h][i].low);
                    acc[h][i].high = _mm256_fmadd_ps(v.high, key[i].high, acc[h][i].high);
                }
            }
        }
        for (int h = 0; h < heads; h++)
            for (uint32_t i = 0; i < KEYS && j + i < n; i++) score[h * lds + j + i] = sum(acc[h][i]);
    }
}

void lq_attn_scores_avx2(const float *q, uint32_t heads, uint32_t d, const float *keys, size_t ld, uint32_t n, float *score, size_t lds) {
    for (uint32_t h = 0; h < heads; h += HEADS, q += (size_t)HEADS * d, score += HEADS * lds)
        if (heads - h > 1) few_scores(q, 2, d, keys, ld, n, score, lds);
        else few_scores(q, 1, d, keys, ld, n, score, lds);
}

LQ_INLINE void few_mix(const float *w, size_t ldw, int heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out) {
    __m256 acc[HEADS][RUN];
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < RUN; i++) acc[h][i] = _mm256_loadu_ps(out + (size_t)h * d + 8 * i);
    for (uint32_t j = 0; j < n; j++)
        for (int i = 0; i < RUN; i++) {
            __m256 v = _mm256_loadu_ps(values + j * ld + 8 * i);
            for (int h = 0; h < heads; h++) acc[h][i] = _mm256_fmadd_ps(_mm256_set1_ps(w[h * ldw + j]), v, acc[h][i]);
        }
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < RUN; i++) _mm256_storeu_ps(out + (size_t)h * d + 8 * i, acc[h][i]);
}

LQ_INLINE void heads_mix(const float *w, size_t ldw, int heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out) {
    uint32_t c = 0;
    for (; c + 8 * RUN <= d; c += 8 * RUN) few_mix(w, ldw, heads, n, values + c, ld, d, out + c);
    for (; c < d; c++)
        for (int h = 0; h < heads; h++)
            for (uint32_t j = 0; j < n; j++) out[(size_t)h * d + c] = fmaf(w[h * ldw + j], values[j * ld + c], out[(size_t)h * d + c]);
}

void lq_attn_mix_avx2(const float *w, size_t ldw, uint32_t heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out) {
    for (uint32_t h = 0; h < heads; h += HEADS, w += HEADS * ldw, out += (size_t)HEADS * d)
        if (heads - h > 1) heads_mix(w, ldw, 2, n, values, ld, d, out);
        else heads_mix(w, ldw, 1, n, values, ld, d, out);
}
