/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Products of bytes by vpmaddubsw, whose sums of two are 16 bits wide and saturate: up to 31 times 127 four pairs fit before they are
 * widened, up to 127 times 127 one does; larger weights are taken less 128, |w| times x with the sign of w, at most 2 * 128 * 127. */
#include "kernels/x86/packed_avx2.h"

enum { LQ_DOT_SHIFT = 128 };

LQ_INLINE __m256i pairs(__m256i w, __m256i x, int form) {
    if (form < 2) return _mm256_maddubs_epi16(w, x);
    w = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

LQ_INLINE __m256i lq_dot256(__m256i acc, const __m256i w[4], const __m256i x[4], int form) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i a = pairs(w[0], x[0], form), b = pairs(w[1], x[1], form), c = pairs(w[2], x[2], form), d = pairs(w[3], x[3], form);
    if (form == 0) return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d)), ones));
    a = _mm256_add_epi32(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones));
    c = _mm256_add_epi32(_mm256_madd_epi16(c, ones), _mm256_madd_epi16(d, ones));
    return _mm256_add_epi32(acc, _mm256_add_epi32(a, c));
}

#include "kernels/x86/packed_idot256.h"

void lq_packed_idot_avx2(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) { packed_idot256(p, t0, nt, x, acc); }
