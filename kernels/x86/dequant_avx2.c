/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/x86/codes_avx2.h"
#include "kernels/x86/x86.h"

LQ_WALK_INLINE void to3(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    const lq_walk_out *o = arg;
    float *out = o->v + (c - o->c0);
    lq_codes256 k = lq_codes256_make(w, g);
    for (; n >= 8; n -= 8, p += w->bits, out += 8) _mm256_storeu_ps(out, lq_codes256_pick3(&k, p));
    if (n) _mm256_maskstore_ps(out, lq_mask8(n), lq_codes256_pick3(&k, p));
}

LQ_WALK_INLINE void nibbles(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    const lq_walk_out *o = arg;
    float *out = o->v + (c - o->c0);
    lq_codes256 k = lq_codes256_make(w, g);
    for (; n >= 8; n -= 8, p += 4, out += 8) _mm256_storeu_ps(out, lq_codes256_pick4(&k, p));
    if (n) _mm256_maskstore_ps(out, lq_mask8(n), lq_codes256_pick4(&k, p));
}

LQ_WALK_INLINE void bytes(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    const lq_walk_out *o = arg;
    float *out = o->v + (c - o->c0);
    __m256 zero = _mm256_set1_ps(w->bias + g.z1), s = _mm256_set1_ps(g.s);
    for (; n >= 8; n -= 8, p += 8, out += 8) _mm256_storeu_ps(out, _mm256_mul_ps(lq_codes256_bytes(p, zero), s));
    if (n) _mm256_maskstore_ps(out, lq_mask8(n), _mm256_mul_ps(lq_codes256_bytes(p, zero), s));
}

LQ_WALK_INLINE void e4m3s(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    const lq_walk_out *o = arg;
    float *out = o->v + (c - o->c0);
    __m256 s = _mm256_set1_ps(g.s);
    (void)w;
    for (; n >= 8; n -= 8, p += 8, out += 8) _mm256_storeu_ps(out, _mm256_mul_ps(lq_codes256_e4m3(p), s));
    if (n) _mm256_maskstore_ps(out, lq_mask8(n), _mm256_mul_ps(lq_codes256_e4m3(p), s));
}

static bool codes(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out) {
    lq_walk w;
    lq_dtype floats = lq_qtensor_floats(q);
    if (floats == LQ_NONE && !lq_walk_init(&w, q)) return false;
    if (floats != LQ_NONE)
        for (uint32_t r = 0; r < nr; r++) lq_decode_avx2(floats, q->codes + (r0 + r) * q->row_bytes, out + (size_t)r * q->cols, q->cols);
    else if (w.bits == 8 && w.e4m3) lq_walk_dequant(&w, r0, nr, out, e4m3s);
    else if (w.bits == 8) lq_walk_dequant(&w, r0, nr, out, bytes);
    else if (w.bits == 4) lq_walk_dequant(&w, r0, nr, out, nibbles);
    else lq_walk_dequant(&w, r0, nr, out, to3);
    return true;
}

void lq_dequant_avx2(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out) {
    if (!codes(q, r0, nr, out)) lq_dequant_c(q, r0, nr, out);
    else if (q->sch.extra & LQ_X_ADDED) lq_dequant_extras(q, r0, nr, out, lq_decode_avx2);
}
