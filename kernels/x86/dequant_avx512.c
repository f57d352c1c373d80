/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/x86/codes_avx512.h"
#include "kernels/x86/x86.h"

LQ_WALK_INLINE void narrow(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    const lq_walk_out *o = arg;
    float *out = o->v + (c - o->c0);
    lq_codes512 k = lq_codes512_make(w->bits);
    __m512 table = lq_codes512_table(w, g);
    for (; n >= 16; n -= 16, p += 2 * k.bits, out += 16) _mm512_storeu_ps(out, lq_codes512_pick(&k, p, table));
    if (n) _mm512_mask_storeu_ps(out, lq_mask16(n), lq_codes512_pick(&k, p, table));
}

LQ_WALK_INLINE void bytes(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    const lq_walk_out *o = arg;
    float *out = o->v + (c - o->c0);
    __m512 zero = _mm512_set1_ps(w->bias + g.z1), s = _mm512_set1_ps(g.s);
    for (; n >= 16; n -= 16, p += 16, out += 16) _mm512_storeu_ps(out, _mm512_mul_ps(lq_codes512_bytes(p, zero), s));
    if (n) _mm512_mask_storeu_ps(out, lq_mask16(n), _mm512_mul_ps(lq_codes512_bytes(p, zero), s));
}

LQ_WALK_INLINE void e4m3s(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    const lq_walk_out *o = arg;
    float *out = o->v + (c - o->c0);
    __m512 s = _mm512_set1_ps(g.s);
    (void)w;
    for (; n >= 16; n -= 16, p += 16, out += 16) _mm512_storeu_ps(out, _mm512_mul_ps(lq_codes512_e4m3(p), s));
    if (n) _mm512_mask_storeu_ps(out, lq_mask16(n), _mm512_mul_ps(lq_codes512_e4m3(p), s));
}

static bool codes(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out) {
    lq_walk w;
    lq_dtype floats = lq_qtensor_floats(q);
    if (floats == LQ_NONE && !lq_walk_init(&w, q)) return false;
    if (floats != LQ_NONE)
        for (uint32_t r = 0; r < nr; r++) lq_decode_avx2(floats, q->codes + (r0 + r) * q->row_bytes, out + (size_t)r * q->cols, q->cols);
    else if (w.bits == 8 && w.e4m3) lq_walk_dequant(&w, r0, nr, out, e4m3s);
    else if (w.bits == 8) lq_walk_dequant(&w, r0, nr, out, bytes);
    else lq_walk_dequant(&w, r0, nr, out, narrow);
    return true;
}

void lq_dequant_avx512(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out) {
    if (!codes(q, r0, nr, out)) lq_dequant_c(q, r0, nr, out);
    else if (q->sch.extra & LQ_X_ADDED) lq_dequant_extras(q, r0, nr, out, lq_decode_avx2);
}
