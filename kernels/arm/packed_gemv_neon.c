/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = W x over packed tiles, activations as they are: A(code) x summed per row, times the scale every 256 columns; a zero takes its
 * product with the segment's sum of x at the end. Each code becomes a float once for up to four tokens. */
#include "kernels/arm/packed_neon.h"

enum { PIECE = 256, MOST = 4 };

typedef struct job { const lq_packed *p; lq_grid128 a; const float *x, *sum; uint32_t ld; } job; /* x and sum of the first token at hand */

/* Columns [c, stop) of four rows times n tokens; one or two sums for a token. */
LQ_INLINE void columns(const job *j, const uint8_t *codes, uint32_t c, uint32_t stop, int h, float32x4_t *sum, int f0, int f1, int how, int n) {
    float32x4_t acc[2 * MOST];
    for (int i = 0; i < 2 * n; i++) acc[i] = vdupq_n_f32(0);
    for (; c < stop; c += LQ_STEP) {
        lq_step s = lq_step_at(codes, c, f0, f1);
        for (int q = 0; q < 4; q++) {
            uint8x16_t w = lq_quad128(s, f0, f1, h, q);
            for (int i = 0; i < 4; i++) {
                float32x4_t v = lq_value128(&j->a, w, i, how);
                for (int t = 0; t < n; t++) acc[2 * t + i % 2] = vfmaq_n_f32(acc[2 * t + i % 2], v, j->x[(size_t)t * j->ld + c + 4 * (uint32_t)q + (uint32_t)i]);
            }
        }
    }
    for (int t = 0; t < n; t++) sum[t] = vaddq_f32(acc[2 * t], acc[2 * t + 1]);
}

/* y[n][16] */
LQ_INLINE void whole_tile(const job *j, uint32_t tile, float *y, int f0, int f1, int how, int n) {
    const lq_packed *p = j->p;
    const uint8_t *codes = p->codes + (size_t)tile * p->tile_bytes;
    bool min = p->q.sch.zero_kind == LQ_ZERO_MIN;
    memset(y, 0, (size_t)n * LQ_TILE * sizeof *y);
    for (uint32_t g = 0; g < p->segs; g++) {
        lq_scales128 k = lq_scales128_at(p, tile, g);
        for (int h = 0; h < LQ_QUARTERS; h++) {
            float32x4_t s = vld1q_f32(k.s + 4 * h), z = vld1q_f32(k.z + 4 * h), part[MOST];
            for (uint32_t c = g * p->seg, end = lq_seg_end(p, g), stop; c < end; c = stop) {
                stop = end - c < PIECE ? end : c + PIECE;
                columns(j, codes, c, stop, h, part, f0, f1, how, n);
                for (int t = 0; t < n; t++) vst1q_f32(y + LQ_TILE * t + 4 * h, vfmaq_f32(vld1q_f32(y + LQ_TILE * t + 4 * h), part[t], s));
            }
            if (!min) z = vmulq_f32(z, s);
            for (int t = 0; p->zero != LQ_NONE && t < n; t++)
                vst1q_f32(y + LQ_TILE * t + 4 * h, vfmsq_n_f32(vld1q_f32(y + LQ_TILE * t + 4 * h), z, j->sum[(size_t)t * p->segs + g]));
        }
    }
}

typedef void (*tile_fn)(const job *j, uint32_t tile, float *y, uint32_t n);

#define X(name, f0, f1, how)                                              \
    static void name(const job *j, uint32_t tile, float *y, uint32_t n) { \
        if (n == 1) whole_tile(j, tile, y, f0, f1, how, 1);               \
        else if (n == 2) whole_tile(j, tile, y, f0, f1, how, 2);          \
        else whole_tile(j, tile, y, f0, f1, how, 4);                      \
    }
LQ_PACKED_KINDS(X)
#undef X
#define X(name, f0, f1, how) name,
static const tile_fn by_kind[] = {LQ_PACKED_KINDS(X)};
#undef X

void lq_packed_gemv_neon(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_x *x, float *y, size_t ldy) {
    float out[MOST * LQ_TILE];
    int kind = lq_packed_kind(p);
    job j = {.p = p, .a = lq_grid128_make(p), .ld = lq_packed_ld(p)};
    for (uint32_t t = 0, n; t < x->n; t += n) {
        n = x->n - t >= 4 ? 4 : x->n - t >= 2 ? 2 : 1;
        j.x = x->x + (size_t)t * j.ld;
        j.sum = x->sum ? x->sum + (size_t)t * p->segs : NULL;
        for (uint32_t tile = t0; tile < t0 + nt; tile++) {
            by_kind[kind](&j, tile, out, n);
            for (uint32_t i = 0; i < n; i++) memcpy(y + (t + i) * ldy + (size_t)tile * LQ_TILE, out + i * LQ_TILE, lq_tile_rows(p, tile) * sizeof *y);
        }
    }
}
