/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* How the x86 kernels walk a row of codes: in segments over which scale and zero are constant. In a segment
 *
 *   w = (A(code) - z1) * s - z2        one of z1, z2 is 0, so this has the roundings of both forms of core/qtensor.h
 *
 * Up to 4 bits A, s, z become a table of 16 finished weights that a code selects from, whatever the grid; codes of 8 bits, INT and
 * E4M3, are computed. Where tiles of the flattened matrix straddle rows, a segment is what divides both. */
#ifndef LQ_WALK_H
#define LQ_WALK_H
#include "kernels/ref/ref.h"

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#define LQ_WALK_INLINE static inline __attribute__((always_inline)) /* so that the per-segment function is inlined too */
enum { LQ_WALK_PART = 512 }; /* columns handled at once where weights are permuted */

typedef enum lq_walk_kind { LQ_WALK_ABSENT, LQ_WALK_HALF, LQ_WALK_BYTE, LQ_WALK_FLOAT, LQ_WALK_E8M0, LQ_WALK_E4M3, LQ_WALK_TABLE, LQ_WALK_OTHER } lq_walk_kind;
typedef struct lq_walk_plane {
    lq_walk_kind kind;
    uint32_t segs; /* per tile */
    size_t base;   /* segments before the row, as the plane counts them: element i of the row is (base + i) / segs */
    const lq_plane_desc *d;
    const lq_plane *p;
} lq_walk_plane;

typedef struct lq_walk {
    const lq_qtensor *q;
    uint32_t bits, seg, row;
    bool ready, min; /* grid is filled; the zero is subtracted after scaling */
    bool e4m3;       /* 8 bits: E4M3, else INT */
    float grid[16]; /* A(code), repeated when there are fewer than 16 codes */
    float bias;     /* 8 bits: A(code) = code - bias */
    lq_walk_plane scale, zero;
} lq_walk;

typedef struct lq_seg { float s, z1, z2; } lq_seg;

static inline uint32_t lq_walk_gcd(uint32_t a, uint32_t b) {
    while (b) {
        uint32_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* Columns over which the plane is constant in every row. */
static inline uint32_t lq_walk_tile(const lq_plane_desc *d, uint32_t cols) {
    if (d->dtype == LQ_NONE || (!d->tile_c && d->tile_r != LQ_FLAT)) return cols;
    return d->tile_r == LQ_FLAT ? lq_walk_gcd(d->tile_c, cols) : d->tile_c;
}

static inline lq_walk_kind lq_walk_kind_of(const lq_plane_desc *d, const lq_plane *p) {
    bool final = d->parent == LQ_NONE;
    if (d->divides) return LQ_WALK_OTHER;
    if (d->dtype == LQ_U8 && p->lut) return d->parent == LQ_F32 ? LQ_WALK_TABLE : LQ_WALK_OTHER;
    if (d->dtype == LQ_E4M3) return final || d->parent == LQ_F32 ? LQ_WALK_E4M3 : LQ_WALK_OTHER;
    if (!final) return LQ_WALK_OTHER;
    return d->dtype == LQ_F16 ? LQ_WALK_HALF : d->dtype == LQ_U8 ? LQ_WALK_BYTE : d->dtype == LQ_F32 ? LQ_WALK_FLOAT : d->dtype == LQ_E8M0 ? LQ_WALK_E8M0 : LQ_WALK_OTHER;
}

static inline lq_walk_plane lq_walk_plane_make(const lq_plane_desc *d, const lq_plane *p, bool present, uint32_t seg, uint32_t cols) {
    uint32_t tile = lq_walk_tile(d, cols), segs = d->tile_r == LQ_FLAT ? d->tile_c / seg : tile >= cols ? UINT32_MAX : tile / seg;
    return (lq_walk_plane){present ? lq_walk_kind_of(d, p) : LQ_WALK_ABSENT, segs, 0, d, p};
}

/* The codes alone; what LQ_X_ADDED names comes after. false: the scheme is none of the kernel's; decode by the definition. */
static inline bool lq_walk_init(lq_walk *w, const lq_qtensor *q) {
    const lq_scheme *s = &q->sch;
    bool has_zero = s->zero_kind != LQ_ZERO_NONE;
    bool whole = s->zero.dtype == LQ_U8 && s->zero.parent == LQ_NONE && !q->zero.lut;
    uint32_t st = lq_walk_tile(&s->scale, q->cols), zt = has_zero ? lq_walk_tile(&s->zero, q->cols) : st;
    if (!q->cols || s->grid.vec > 1) return false;
    if ((s->scale.tile_r == LQ_FLAT && !s->scale.tile_c) || (s->zero.tile_r == LQ_FLAT && !s->zero.tile_c)) return false;
    if (abs(s->grid.bias) > 1 << 20 || s->extra & ~(uint32_t)(LQ_X_PERM | LQ_X_LUT_PER_ROW | LQ_X_ADDED)) return false;
    bool e4m3 = s->grid.kind == LQ_GRID_E4M3 && !has_zero;
    if (s->grid.bits > 4 && (s->grid.bits != 8 || (s->grid.kind != LQ_GRID_INT && !e4m3))) return false;
    /* 8 bits: code - bias - z1 must be exact */
    if (s->grid.bits == 8 && has_zero && (s->zero_kind != LQ_ZERO_CODE || !whole)) return false;
    *w = (lq_walk){.q = q, .bits = s->grid.bits, .seg = st < zt ? st : zt, .bias = (float)s->grid.bias};
    w->min = s->zero_kind == LQ_ZERO_MIN;
    w->e4m3 = e4m3;
    if ((st > zt ? st : zt) % w->seg && (st < q->cols && zt < q->cols)) return false;
    if (w->seg % 8 && w->seg < q->cols) return false; /* a segment starts at a whole byte */
    w->scale = lq_walk_plane_make(&s->scale, &q->scale, s->scale.dtype != LQ_NONE, w->seg, q->cols);
    w->zero = lq_walk_plane_make(&s->zero, &q->zero, has_zero, w->seg, q->cols);
    return true;
}

static inline size_t lq_walk_base(const lq_walk *w, const lq_walk_plane *p, uint32_t r) {
    uint32_t cols = w->q->cols;
    return p->d->tile_r == LQ_FLAT ? (size_t)r * (cols / w->seg) : lq_plane_index(p->d, cols, r, 0) * p->segs;
}

static inline void lq_walk_row(lq_walk *w, uint32_t r) {
    const lq_qtensor *q = w->q;
    if (w->bits <= 4 && (!w->ready || q->n_lut > 1))
        for (uint32_t i = 0; i < 16; i++) w->grid[i] = lq_grid_value(q, r, i & ((1u << w->bits) - 1));
    if (w->scale.kind) w->scale.base = lq_walk_base(w, &w->scale, r);
    if (w->zero.kind) w->zero.base = lq_walk_base(w, &w->zero, r);
    w->row = r;
    w->ready = true;
}

static inline float lq_walk_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

/* The bits one field lower are a float 2^120 too small, subnormals included. */
static inline float lq_walk_e4m3(uint8_t v) {
    uint32_t m = v & 127, sign = (uint32_t)(v & 128) << 24;
    float f = m == 127 ? lq_walk_bits(0x7fc00000) : lq_walk_bits(m << 20) * 0x1p120f;
    return sign ? -f : f;
}

static inline float lq_walk_up(const lq_walk_plane *p, size_t at, float v) { /* the second level of a plane */
    if (p->d->parent == LQ_NONE) return v;
    return v * ((const float *)p->p->parent)[p->d->span ? at / p->d->span : 0] + p->p->offset;
}

static inline float lq_walk_value(const lq_walk_plane *p, uint32_t i) {
    size_t at = p->segs == 1 ? p->base + i : (p->base + i) / p->segs;
    const uint8_t *byte = (const uint8_t *)p->p->v + at;
    switch (p->kind) {
    case LQ_WALK_HALF: return _cvtsh_ss(((const uint16_t *)p->p->v)[at]);
    case LQ_WALK_BYTE: return (float)*byte;
    case LQ_WALK_FLOAT: return ((const float *)p->p->v)[at];
    case LQ_WALK_E8M0: return lq_walk_bits(*byte == 255 ? 0x7fc00000 : *byte ? (uint32_t)*byte << 23 : 0x400000);
    case LQ_WALK_E4M3: return lq_walk_up(p, at, lq_walk_e4m3(*byte));
    case LQ_WALK_TABLE: return lq_walk_up(p, at, p->p->lut[*byte]);
    default: return lq_plane_get(p->d, p->p, at);
    }
}

/* Parameters of segment i of the current row. */
static inline lq_seg lq_walk_seg(const lq_walk *w, uint32_t i) {
    float s = w->scale.kind ? lq_walk_value(&w->scale, i) : 1, z = w->zero.kind ? lq_walk_value(&w->zero, i) : 0;
    return w->min ? (lq_seg){s, 0, z} : (lq_seg){s, z, 0};
}

typedef struct lq_walk_out { float *v; uint32_t c0; } lq_walk_out; /* column c goes to v[c - c0] */

/* n codes at p, stored columns c.. of one segment. */
typedef void (*lq_seg_fn)(const lq_walk *w, void *arg, lq_seg g, const uint8_t *p, uint32_t c, uint32_t n);

/* Stored columns [c0, c1) of the current row; c0 is a multiple of 8. */
LQ_WALK_INLINE void lq_walk_part(const lq_walk *w, uint32_t c0, uint32_t c1, lq_seg_fn fn, void *arg) {
    const uint8_t *codes = w->q->codes + (size_t)w->row * w->q->row_bytes;
    for (uint32_t c = c0, i = c0 / w->seg, n; c < c1; c += n, i++) {
        n = c1 - c < (i + 1) * w->seg - c ? c1 - c : (i + 1) * w->seg - c;
        fn(w, arg, lq_walk_seg(w, i), codes + (size_t)c * w->bits / 8, c, n);
    }
}

/* dequant with fn writing column c to v[c - c0] of an lq_walk_out. */
LQ_WALK_INLINE void lq_walk_dequant(lq_walk *w, uint32_t r0, uint32_t nr, float *out, lq_seg_fn fn) {
    float buf[LQ_WALK_PART];
    uint32_t cols = w->q->cols;
    const uint32_t *perm = w->q->perm;
    for (uint32_t r = r0; r < r0 + nr; r++, out += cols) {
        lq_walk_row(w, r);
        if (!perm) {
            lq_walk_part(w, 0, cols, fn, &(lq_walk_out){out, 0});
            continue;
        }
        for (uint32_t c0 = 0; c0 < cols; c0 += LQ_WALK_PART) {
            uint32_t c1 = cols - c0 < LQ_WALK_PART ? cols : c0 + LQ_WALK_PART;
            lq_walk_part(w, c0, c1, fn, &(lq_walk_out){buf, c0});
            for (uint32_t c = c0; c < c1; c++) out[perm[c]] = buf[c - c0];
        }
    }
}

/* Dot product of stored columns [c0, c1) of the current row and x[c1 - c0]. */
typedef float (*lq_row_fn)(const lq_walk *w, uint32_t c0, uint32_t c1, const float *x);

/* gemv; where weights are permuted, x is gathered part by part and each part's dot product is rounded to float. */
LQ_WALK_INLINE void lq_walk_gemv(lq_walk *w, uint32_t r0, uint32_t nr, const float *x, float *y, lq_row_fn fn) {
    enum { PART = 4 * LQ_WALK_PART };
    float buf[PART];
    uint32_t cols = w->q->cols, step = w->q->perm ? PART : cols;
    for (uint32_t c0 = 0, c1; c0 < cols; c0 = c1) {
        c1 = cols - c0 < step ? cols : c0 + step;
        for (uint32_t c = c0; w->q->perm && c < c1; c++) buf[c - c0] = x[w->q->perm[c]];
        for (uint32_t r = 0; r < nr; r++) {
            lq_walk_row(w, r0 + r);
            float sum = fn(w, c0, c1, w->q->perm ? buf : x);
            y[r] = c0 ? y[r] + sum : sum;
        }
    }
}

static inline int32_t lq_walk_u32(const uint8_t *p) { int32_t v; memcpy(&v, p, 4); return v; }
#endif
