/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = W x with W as codes, of what no packed layout holds (kernels/packed.h): tables per row, groups that straddle rows, whole floats. Up to
 * 4 bits each weight is the finished fp32 weight, so y = sum w x with fused products; eight bits are left to C. Two times eight lanes of
 * partial sums. */
#include "kernels/x86/codes_avx2.h"
#include "kernels/x86/x86.h"

typedef struct sums { const float *x; uint32_t c0; __m256 a, b; } sums;

static inline void to3(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    sums *t = arg;
    const float *x = t->x + (c - t->c0);
    lq_codes256 k = lq_codes256_make(w, g);
    for (; n >= 16; n -= 16, p += 2 * w->bits, x += 16) {
        t->a = _mm256_fmadd_ps(lq_codes256_pick3(&k, p), _mm256_loadu_ps(x), t->a);
        t->b = _mm256_fmadd_ps(lq_codes256_pick3(&k, p + w->bits), _mm256_loadu_ps(x + 8), t->b);
    }
    for (; n; n -= n < 8 ? n : 8, p += w->bits, x += 8)
        t->a = _mm256_fmadd_ps(lq_codes256_pick3(&k, p), _mm256_maskload_ps(x, lq_mask8(n)), t->a);
}

static inline void nibbles(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n) {
    sums *t = arg;
    const float *x = t->x + (c - t->c0);
    lq_codes256 k = lq_codes256_make(w, g);
    for (; n >= 16; n -= 16, p += 8, x += 16) {
        t->a = _mm256_fmadd_ps(lq_codes256_pick4(&k, p), _mm256_loadu_ps(x), t->a);
        t->b = _mm256_fmadd_ps(lq_codes256_pick4(&k, p + 4), _mm256_loadu_ps(x + 8), t->b);
    }
    for (; n; n -= n < 8 ? n : 8, p += 4, x += 8)
        t->a = _mm256_fmadd_ps(lq_codes256_pick4(&k, p), _mm256_maskload_ps(x, lq_mask8(n)), t->a);
}

static inline float total(sums t) {
    __m256 v = _mm256_add_ps(t.a, t.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

LQ_WALK_INLINE float row(const lq_walk *w, uint32_t c0, uint32_t c1, const float *x, lq_seg_fn fn) {
    sums t = {x, c0, _mm256_setzero_ps(), _mm256_setzero_ps()};
    lq_walk_part(w, c0, c1, fn, &t);
    return total(t);
}
static float to3_row(const lq_walk *w, uint32_t c0, uint32_t c1, const float *x) { return row(w, c0, c1, x, to3); }
static float nibble_row(const lq_walk *w, uint32_t c0, uint32_t c1, const float *x) { return row(w, c0, c1, x, nibbles); }

void lq_gemv_avx2(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y) {
    lq_walk w;
    lq_dtype floats = lq_qtensor_floats(q);
    if (floats != LQ_NONE) lq_gemv_fp_avx2(floats, q->codes + r0 * q->row_bytes, q->row_bytes, nr, q->cols, x, y);
    else if (lq_walk_init(&w, q) && w.bits <= 4) lq_walk_gemv(&w, r0, nr, x, y, w.bits == 4 ? nibble_row : to3_row);
    else {
        lq_gemv_c(q, r0, nr, x, y);
        return;
    }
    if (q->sch.extra & LQ_X_ADDED) lq_gemv_extras(q, r0, nr, x, y);
}

/* n weights as floats times x into the sums; n is a multiple of 8 except at the end of a row */
static inline void add_floats(sums *s, const float *v, uint32_t n, const float *x) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s->a = _mm256_fmadd_ps(_mm256_loadu_ps(v + i), _mm256_loadu_ps(x + i), s->a);
        s->b = _mm256_fmadd_ps(_mm256_loadu_ps(v + i + 8), _mm256_loadu_ps(x + i + 8), s->b);
    }
    for (; i < n; i += 8) {
        __m256i m = lq_mask8(n - i);
        s->a = _mm256_fmadd_ps(_mm256_maskload_ps(v + i, m), _mm256_maskload_ps(x + i, m), s->a);
    }
}

void lq_gemv_fp_avx2(lq_dtype t, const void *w, size_t stride, uint32_t nr, uint32_t cols, const float *x, float *y) {
    enum { PART = 512 };
    float part[PART];
    for (uint32_t r = 0; r < nr; r++) {
        const unsigned char *p = (const unsigned char *)w + r * stride;
        sums s = {x, 0, _mm256_setzero_ps(), _mm256_setzero_ps()};
        if (t == LQ_F32) add_floats(&s, (const float *)(const void *)p, cols, x);
        else
            for (uint32_t c = 0, n; c < cols; c += n) {
                n = cols - c < PART ? cols - c : PART;
                lq_decode_avx2(t, p + lq_dtype_row_bytes(t, c), part, n);
                add_floats(&s, part, n, x + c);
            }
        y[r] = total(s);
    }
}
