/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ref/attn.c: four keys times up to four heads share their loads; an accumulator is the sixteen lanes of one product. */
#include "kernels/x86/exp_avx512.h"
#include "kernels/x86/x86.h"

enum { KEYS = 4, HEADS = 4, RUN = 4, AHEAD = 16 }; /* RUN: vectors of a value row that a pass holds; rows fetched ahead: a head's lie apart, which no hardware sees in time */

/* [sum a, sum b, sum c, sum d] in the order of quads_sum. */
LQ_INLINE __m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 1, 0)), _mm512_shuffle_ps(a, b, _MM_SHUFFLE(3, 2, 3, 2)));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_ps(c, d, _MM_SHUFFLE(1, 0, 1, 0)), _mm512_shuffle_ps(c, d, _MM_SHUFFLE(3, 2, 3, 2)));
    __m512 quads = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(2, 0, 2, 0)), _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 1, 3, 1)));
    __m256 two = _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1));
    return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

LQ_INLINE void few_scores(const float *q, int heads, uint32_t d, const float *keys, size_t ld, uint32_t n, float *score, size_t lds) {
    for (uint32_t j = 0; j < n; j += KEYS) {
        const float *k[KEYS];
        __m512 acc[HEADS][KEYS];
        for (uint32_t i = 0; i < KEYS; i++) k[i] = keys + (j + i < n ? j + i : n - 1) * ld;
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < KEYS; i++) acc[h][i] = _mm512_setzero_ps();
        for (uint32_t c = 0; c < d; c += 16) {
            __mmask16 m = lq_tail16(d - c);
            __m512 key[KEYS];
            for (int i = 0; i < KEYS; i++) {
                key[i] = _mm512_maskz_loadu_ps(m, k[i] + c);
                _mm_prefetch((const char *)((uintptr_t)(k[i] + c) + AHEAD * ld * sizeof(float)), _MM_HINT_T0);
            }
            for (int h = 0; h < heads; h++) {
                __m512 v = _mm512_maskz_loadu_ps(m, q + (size_t)h * d + c);
                for (int i = 0; i < KEYS; i++) acc[h][i] = _mm512_fmadd_ps(v, key[i], acc[h][i]);
            }
        }
        __mmask8 m = (__mmask8)(n - j < KEYS ? (1u << (n - j)) - 1 : 15);
        for (int h = 0; h < heads; h++) _mm_mask_storeu_ps(score + h * lds + j, m, sums(acc[h][0], acc[h][1], acc[h][2], acc[h][3]));
    }
}

void lq_attn_scores_avx512(const float *q, uint32_t heads, uint32_t d, const float *keys, size_t ld, uint32_t n, float *score, size_t lds) {
    for (uint32_t h = 0; h < heads; h += HEADS, q += (size_t)HEADS * d, score += HEADS * lds)
        switch (heads - h) {
        case 1: few_scores(q, 1, d, keys, ld, n, score, lds); break;
        case 2: few_scores(q, 2, d, keys, ld, n, score, lds); break;
        case 3: few_scores(q, 3, d, keys, ld, n, score, lds); break;
        default: few_scores(q, 4, d, keys, ld, n, score, lds);
        }
}

/* Columns c .. of `vectors` vectors, the last of them masked. */
LQ_INLINE void few_mix(const float *w, size_t ldw, int heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out, int vectors, __mmask16 last) {
    __m512 acc[HEADS][RUN];
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < vectors; i++) acc[h][i] = _mm512_maskz_loadu_ps(i + 1 < vectors ? (__mmask16)0xffff : last, out + (size_t)h * d + 16 * i);
    for (uint32_t j = 0; j < n; j++) {
        __m512 v[RUN];
        for (int i = 0; i < vectors; i++) {
            v[i] = _mm512_maskz_loadu_ps(i + 1 < vectors ? (__mmask16)0xffff : last, values + j * ld + 16 * i);
            _mm_prefetch((const char *)((uintptr_t)(values + j * ld + 16 * i) + AHEAD * ld * sizeof(float)), _MM_HINT_T0);
        }
        for (int h = 0; h < heads; h++) {
            __m512 s = _mm512_set1_ps(w[h * ldw + j]);
            for (int i = 0; i < vectors; i++) acc[h][i] = _mm512_fmadd_ps(s, v[i], acc[h][i]);
        }
    }
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < vectors; i++) _mm512_mask_storeu_ps(out + (size_t)h * d + 16 * i, i + 1 < vectors ? (__mmask16)0xffff : last, acc[h][i]);
}

LQ_INLINE void heads_mix(const float *w, size_t ldw, int heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out) {
    uint32_t c = 0;
    for (; c + 16 * RUN <= d; c += 16 * RUN) few_mix(w, ldw, heads, n, values + c, ld, d, out + c, RUN, 0xffff);
    for (; c < d; c += 16) few_mix(w, ldw, heads, n, values + c, ld, d, out + c, 1, lq_tail16(d - c));
}

void lq_attn_mix_avx512(const float *w, size_t ldw, uint32_t heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out) {
    for (uint32_t h = 0; h < heads; h += HEADS, w += HEADS * ldw, out += (size_t)HEADS * d)
        switch (heads - h) {
        case 1: heads_mix(w, ldw, 1, n, values, ld, d, out); break;
        case 2: heads_mix(w, ldw, 2, n, values, ld, d, out); break;
        case 3: heads_mix(w, ldw, 3, n, values, ld, d, out); break;
        default: heads_mix(w, ldw, 4, n, values, ld, d, out);
        }
}
