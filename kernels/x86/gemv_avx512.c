/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = W x with W as codes, of what no packed layout holds (kernels/packed.h): tables per row, groups that straddle rows, whole floats. Up to
 * 4 bits each weight is the finished fp32 weight, so y = sum w x with fused products; eight bits are left to C. Two times sixteen lanes of
 * partial sums. */
#include "kernels/x86/codes_avx512.h"
#include "kernels/x86/x86.h"

typedef struct sums { const float *x; uint32_t c0; lq_codes512 k; __m512 a, b; } sums;

static inline void narrow(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    sums *t = arg;
    const float *x = t->x + (c - t->c0);
    const lq_codes512 k = t->k;
    __m512 table = lq_codes512_table(w, g);
    for (; n >= 32; n -= 32, p += 4 * k.bits, x += 32) {
        t->a = _mm512_fmadd_ps(lq_codes512_pick(&k, p, table), _mm512_loadu_ps(x), t->a);
        t->b = _mm512_fmadd_ps(lq_codes512_pick(&k, p + 2 * k.bits, table), _mm512_loadu_ps(x + 16), t->b);
    }
    for (; n; n -= n < 16 ? n : 16, p += 2 * k.bits, x += 16)
        t->a = _mm512_fmadd_ps(lq_codes512_pick(&k, p, table), _mm512_maskz_loadu_ps(lq_mask16(n), x), t->a);
}

static inline float total(sums t) {
    __m512 v = _mm512_add_ps(t.a, t.b);
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

static float narrow_row(const lq_walk *w, uint32_t c0, uint32_t c1, const float *x) {
    sums t = {.x = x, .c0 = c0, .k = lq_codes512_make(w->bits)};
    lq_walk_part(w, c0, c1, narrow, &t);
    return total(t);
}

void lq_gemv_avx512(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y) {
    lq_walk w;
    lq_dtype floats = lq_qtensor_floats(q);
    if (floats != LQ_NONE) lq_gemv_fp_avx512(floats, q->codes + r0 * q->row_bytes, q->row_bytes, nr, q->cols, x, y);
    else if (lq_walk_init(&w, q) && w.bits <= 4) lq_walk_gemv(&w, r0, nr, x, y, narrow_row);
    else {
        lq_gemv_c(q, r0, nr, x, y);
        return;
    }
    if (q->sch.extra & LQ_X_ADDED) lq_gemv_extras(q, r0, nr, x, y);
}

static inline __m512 load16(lq_dtype t, const unsigned char *p, size_t i, __mmask16 m) {
    switch (t) {
    case LQ_F32: return _mm512_maskz_loadu_ps(m, p + 4 * i);
    case LQ_F16: return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p + 2 * i));
    default: return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p + 2 * i)), 16));
    }
}

LQ_WALK_INLINE float fp_row(lq_dtype t, const unsigned char *p, uint32_t n, const float *x) {
    sums s = {.x = x};
    uint32_t i = 0;
    for (; i + 32 <= n; i += 32) {
        s.a = _mm512_fmadd_ps(load16(t, p, i, 0xffff), _mm512_loadu_ps(x + i), s.a);
        s.b = _mm512_fmadd_ps(load16(t, p, i + 16, 0xffff), _mm512_loadu_ps(x + i + 16), s.b);
    }
    for (; i < n; i += 16)
        s.a = _mm512_fmadd_ps(load16(t, p, i, lq_mask16(n - i)), _mm512_maskz_loadu_ps(lq_mask16(n - i), x + i), s.a);
    return total(s);
}

void lq_gemv_fp_avx512(lq_dtype t, const void *w, size_t stride, uint32_t nr, uint32_t cols, const float *x, float *y) {
    const unsigned char *p = w;
    for (uint32_t r = 0; r < nr; r++, p += stride) {
        if (t == LQ_F32) y[r] = fp_row(LQ_F32, p, cols, x);
        else if (t == LQ_F16) y[r] = fp_row(LQ_F16, p, cols, x);
        else if (t == LQ_BF16) y[r] = fp_row(LQ_BF16, p, cols, x);
        else lq_gemv_fp_avx2(t, p, stride, 1, cols, x, y + r);
    }
}
