/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Packed tiles to floats: four rows of four columns are scaled, then turned round. */
#include "kernels/arm/packed_neon.h"

typedef struct block { float v[4][4]; } block; /* [row][column] */

LQ_INLINE float32x4_t scaled(float32x4_t a, float32x4_t s, float32x4_t z, bool min) {
    return min ? vsubq_f32(vmulq_f32(a, s), z) : vmulq_f32(vsubq_f32(a, z), s);
}

LQ_INLINE block block_of(const lq_grid128 *a, uint8x16_t w, const lq_scales128 *k, int h, bool min, int how) {
    float32x4_t s = vld1q_f32(k->s + 4 * h), z = vld1q_f32(k->z + 4 * h);
    float32x4x4_t columns;
    block b;
    for (int i = 0; i < 4; i++) columns.val[i] = scaled(lq_value128(a, w, i, how), s, z, min);
    vst4q_f32(&b.v[0][0], columns); /* interleaves: column i of a row becomes its element i */
    return b;
}

LQ_INLINE void put(const lq_packed *p, const block *b, uint32_t rows, uint32_t c, float *out) {
    uint32_t n = p->q.cols - c < 4 ? p->q.cols - c : 4;
    for (uint32_t i = 0; i < rows; i++, out += p->q.cols)
        for (uint32_t k = 0; k < n; k++) out[p->q.perm ? p->q.perm[c + k] : c + k] = b->v[i][k];
}

/* Sixteen columns of the four rows of quarter h. */
LQ_INLINE void step(const lq_packed *p, const lq_grid128 *a, lq_step at, const lq_scales128 *k, int h, uint32_t rows, uint32_t c, float *out, int f0, int f1, int how) {
    for (int q = 0; q < 4 && c < p->q.cols; q++, c += 4) {
        block b = block_of(a, lq_quad128(at, f0, f1, h, q), k, h, p->q.sch.zero_kind == LQ_ZERO_MIN, how);
        put(p, &b, rows, c, out);
    }
}

LQ_INLINE void whole_tile(const lq_packed *p, const lq_grid128 *a, uint32_t tile, float *out, int f0, int f1, int how) {
    const uint8_t *codes = p->codes + (size_t)tile * p->tile_bytes;
    uint32_t rows = lq_tile_rows(p, tile);
    for (uint32_t g = 0; g < p->segs; g++) {
        lq_scales128 k = lq_scales128_at(p, tile, g);
        for (uint32_t c = g * p->seg; c < lq_seg_end(p, g); c += LQ_STEP)
            for (uint32_t h = 0; 4 * h < rows; h++)
                step(p, a, lq_step_at(codes, c, f0, f1), &k, (int)h, rows - 4 * h < 4 ? rows - 4 * h : 4, c, out + (size_t)4 * h * p->q.cols, f0, f1, how);
    }
}

typedef void (*tile_fn)(const lq_packed *p, const lq_grid128 *a, uint32_t tile, float *out);

#define X(name, f0, f1, how) \
    static void name(const lq_packed *p, const lq_grid128 *a, uint32_t tile, float *out) { whole_tile(p, a, tile, out, f0, f1, how); }
LQ_PACKED_KINDS(X)
#undef X
#define X(name, f0, f1, how) name,
static const tile_fn by_kind[] = {LQ_PACKED_KINDS(X)};
#undef X

void lq_packed_dequant_neon(const lq_packed *p, uint32_t t0, uint32_t nt, float *out) {
    int kind = lq_packed_kind(p);
    lq_grid128 a = lq_grid128_make(p);
    for (uint32_t tile = t0; tile < t0 + nt; tile++) by_kind[kind](p, &a, tile, out + (size_t)(tile - t0) * LQ_TILE * p->q.cols);
}
