/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A packed tile (kernels/packed.h) in 128-bit vectors: four of its rows, sixteen columns at a step. A quad is four adjacent columns of a
 * step as bytes: dword = row, byte = column, whatever fields the code is cut into. Little-endian machines only. */
#ifndef LQ_PACKED_NEON_H
#define LQ_PACKED_NEON_H
#include "kernels/arm/arm.h"

#include <arm_neon.h>
#include <string.h>

#define LQ_INLINE static inline __attribute__((always_inline)) /* fields are constants in every caller */
enum { LQ_STEP = 16, LQ_QUARTERS = 4 };

typedef struct lq_step { const uint8_t *lo, *hi; uint32_t half; } lq_step; /* where the fields of sixteen columns lie */

LQ_INLINE lq_step lq_step_at(const uint8_t *tile, uint32_t c, int f0, int f1) {
    uint32_t half = c >> 4 & 1;
    const uint8_t *unit = tile + (size_t)(c / LQ_UNIT) * 64 * (uint32_t)(f0 + f1);
    return (lq_step){unit + (f0 > 1 ? half * 32 * (uint32_t)f0 : 0), unit + 64 * f0 + (f1 > 1 ? half * 64 : 0), half};
}

/* Field f of quad q moved up by `up` bits; rows 4 h .. 4 h + 3. A shift by a negative number is one to the right. */
LQ_INLINE uint8x16_t lq_field128(const uint8_t *at, uint32_t half, int f, int up, int h, int q) {
    int per = 8 / f, down = f * (q % per) - up + (f == 1 ? (int)half * 4 : 0);
    uint8x16_t v = vld1q_u8(at + 64 * (q / per) + 16 * h);
    return f == 8 ? v : vandq_u8(vshlq_u8(v, vdupq_n_s8((int8_t)-down)), vdupq_n_u8((uint8_t)(((1 << f) - 1) << up)));
}

LQ_INLINE uint8x16_t lq_quad128(lq_step s, int f0, int f1, int h, int q) {
    uint8x16_t lo = lq_field128(s.lo, s.half, f0, 0, h, q);
    return f1 ? vorrq_u8(lo, lq_field128(s.hi, s.half, f1, f0, h, q)) : lo;
}

typedef struct lq_scales128 { float s[LQ_TILE], z[LQ_TILE]; } lq_scales128;

/* Rows behind the last have params of zero bytes, which are read and come to nothing. */
LQ_INLINE lq_scales128 lq_scales128_at(const lq_packed *p, uint32_t tile, uint32_t g) {
    lq_scales128 v;
    for (uint32_t i = 0; i < LQ_TILE; i++) {
        v.s[i] = lq_packed_scale(p, tile * LQ_TILE + i, g);
        v.z[i] = lq_packed_zero(p, tile * LQ_TILE + i, g);
    }
    return v;
}

/* Last column of segment g rounded up to a step: codes and activations behind the columns are 0. */
LQ_INLINE uint32_t lq_seg_end(const lq_packed *p, uint32_t g) {
    uint32_t end = p->q.cols - g * p->seg < p->seg ? p->q.cols : (g + 1) * p->seg;
    return (end + LQ_STEP - 1) / LQ_STEP * LQ_STEP;
}
LQ_INLINE uint32_t lq_tile_rows(const lq_packed *p, uint32_t tile) { return p->q.rows - tile * LQ_TILE < LQ_TILE ? p->q.rows - tile * LQ_TILE : LQ_TILE; }

/* A() of the grid: a table of up to sixteen, an integer, or E4M3. */
typedef struct lq_grid128 { uint8x16x4_t table; float32x4_t bias; } lq_grid128;
enum { LQ_A_TABLE, LQ_A_INT, LQ_A_E4M3 };

LQ_INLINE lq_grid128 lq_grid128_make(const lq_packed *p) {
    const lq_grid *g = &p->q.sch.grid;
    float t[16];
    uint8_t bytes[64];
    for (uint32_t i = 0; i < 16; i++) t[i] = g->bits > 4 ? 0 : lq_grid_value(&p->q, 0, i & ((1u << g->bits) - 1));
    memcpy(bytes, t, sizeof t);
    return (lq_grid128){{{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}}, vdupq_n_f32((float)g->bias)};
}

/* A(byte j of every dword), four rows. */
LQ_INLINE float32x4_t lq_value128(const lq_grid128 *a, uint8x16_t w, int j, int how) {
    uint32x4_t c = vandq_u32(vshlq_u32(vreinterpretq_u32_u8(w), vdupq_n_s32(-8 * j)), vdupq_n_u32(255));
    if (how == LQ_A_TABLE) { /* the four bytes of float c */
        uint32x4_t at = vmlaq_u32(vdupq_n_u32(0x03020100), c, vdupq_n_u32(0x04040404));
        return vreinterpretq_f32_u8(vqtbl4q_u8(a->table, vreinterpretq_u8_u32(at)));
    }
    if (how == LQ_A_INT) return vsubq_f32(vcvtq_f32_u32(c), a->bias);
    uint32x4_t m = vandq_u32(c, vdupq_n_u32(127)), nan = vandq_u32(vceqq_u32(m, vdupq_n_u32(127)), vdupq_n_u32(0x7fc00000));
    float32x4_t f = vmulq_f32(vreinterpretq_f32_u32(vshlq_n_u32(m, 20)), vdupq_n_f32(0x1p120f)); /* one field lower: 2^120 too small */
    return vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(vreinterpretq_u32_f32(f), nan), vshlq_n_u32(vshrq_n_u32(c, 7), 31)));
}

/* name, the two fields, how */
#define LQ_PACKED_KINDS(X)                                                                                                              \
    X(t1, 1, 0, LQ_A_TABLE) X(t2, 2, 0, LQ_A_TABLE) X(t3, 2, 1, LQ_A_TABLE) X(t4, 4, 0, LQ_A_TABLE) X(i5, 4, 1, LQ_A_INT)               \
    X(i6, 4, 2, LQ_A_INT) X(i8, 8, 0, LQ_A_INT) X(e4m3, 8, 0, LQ_A_E4M3)
enum {
#define X(name, f0, f1, how) LQ_KIND_##name,
    LQ_PACKED_KINDS(X)
#undef X
};

LQ_INLINE int lq_packed_kind(const lq_packed *p) {
    const lq_grid *g = &p->q.sch.grid;
    if (g->kind == LQ_GRID_E4M3) return LQ_KIND_e4m3;
    return LQ_KIND_t1 + (g->bits < 7 ? g->bits : 7) - 1;
}
#endif
