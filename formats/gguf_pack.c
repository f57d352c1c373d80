/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Codes and planes to ggml's blocks. Source: block structs of ggml-common.h and the quantize_row_*_ref functions of ggml-quants.c
 * (ggml, August 2026). The structs below are the layouts; q is the code of a weight as the scheme counts it, from 0.
 *
 *   pairs(n)   byte i of n holds weight i below and weight i + n above
 *   quads(n)   byte i of n holds weights i, i + n, i + 2n, i + 3n from the low bits up
 *   trits(n)   byte i of n holds weights i, i + n ... i + 4n as a fraction of 3^5, first the most significant, rounded up to 1/256 */
#include "formats/gguf_blocks.h"

#include "core/pack.h"

#include <string.h>

typedef struct half { uint8_t b[2]; } half;
typedef struct q1_0 { half d; uint8_t qs[16]; } q1_0;                                     /* 128: one bit each, lowest first */
typedef struct q2_0 { half d; uint8_t qs[16]; } q2_0;                                     /* 64: two bits each, lowest first */
typedef struct q4_0 { half d; uint8_t qs[16]; } q4_0;                                     /* 32: pairs(16); IQ4_NL too */
typedef struct q4_1 { half d, m; uint8_t qs[16]; } q4_1;                                  /* 32: the same; value d q + m */
typedef struct q5_0 { half d; uint8_t qh[4], qs[16]; } q5_0;                              /* 32: pairs(16) of the low four bits; qh: fifth bits, one after another */
typedef struct q5_1 { half d, m; uint8_t qh[4], qs[16]; } q5_1;
typedef struct q8_0 { half d; int8_t qs[32]; } q8_0;                                      /* 32 */
typedef struct mxfp4 { uint8_t e, qs[16]; } mxfp4;                                        /* 32: pairs(16) */
typedef struct nvfp4 { uint8_t d[4], qs[4][8]; } nvfp4;                                   /* 4 of 16: pairs(8) */
typedef struct q2_k { uint8_t sub[16], qs[2][32]; half d, dmin; } q2_k;                   /* 2 of 128: quads(32); sub: scale | minimum << 4 */
typedef struct q3_k { uint8_t hmask[32], qs[2][32], sub[12]; half d; } q3_k;              /* 2 of 128: quads(32) of the low two bits; hmask: bit w of byte i is the high bit of weight 32 w + i */
typedef struct q4_k { half d, dmin; uint8_t sub[12], qs[4][32]; } q4_k;                   /* 4 of 64: pairs(32) */
typedef struct q5_k { half d, dmin; uint8_t sub[12], qh[32], qs[4][32]; } q5_k;           /* the same of the low four bits; qh as hmask */
typedef struct q6_k { uint8_t ql[2][64], qh[2][32]; int8_t sub[16]; half d; } q6_k;       /* 2 of 128: pairs(64) of the low four bits, quads(32) of the high two */
typedef struct iq4_xs { half d; uint8_t sub_h[2], sub_l[4], qs[8][16]; } iq4_xs;          /* 8 of 32: pairs(16); scale + 32: low four bits in sub_l, high two in sub_h */
typedef struct tq1_0 { uint8_t q32[32], q16[16], qh[4]; half d; } tq1_0;                  /* trits(32), trits(16), trits(4) of four weights */
typedef struct tq2_0 { uint8_t qs[2][32]; half d; } tq2_0;                                /* 2 of 128: quads(32) */
_Static_assert(sizeof(q1_0) == 18 && sizeof(q2_0) == 18 && sizeof(q4_0) == 18 && sizeof(q4_1) == 20, "ggml-common.h");
_Static_assert(sizeof(q5_0) == 22 && sizeof(q5_1) == 24 && sizeof(q8_0) == 34 && sizeof(mxfp4) == 17 && sizeof(nvfp4) == 36, "ggml-common.h");
_Static_assert(sizeof(q2_k) == 84 && sizeof(q3_k) == 110 && sizeof(q4_k) == 144 && sizeof(q5_k) == 176 && sizeof(q6_k) == 210, "ggml-common.h");
_Static_assert(sizeof(iq4_xs) == 136 && sizeof(tq1_0) == 54 && sizeof(tq2_0) == 66, "ggml-common.h");

typedef struct block {       /* what a block says, from the planes */
    const uint16_t *q;
    uint16_t d, m;           /* F16: final planes or parents; m: what is subtracted */
    const uint8_t *scale, *min; /* elements under the parents */
} block;

static half half_of(uint16_t h) { return (half){{(uint8_t)(h & 255), (uint8_t)(h >> 8)}}; }
static half minus(uint16_t h) { return half_of(h ^ 0x8000); }

static void pairs(uint8_t *out, int n, const uint16_t *q) {
    for (int i = 0; i < n; i++) out[i] = (uint8_t)((q[i] & 15) | (q[i + n] & 15) << 4);
}
static void quads(uint8_t *out, int n, const uint16_t *q, int shift) {
    for (int i = 0; i < n; i++) {
        out[i] = 0;
        for (int k = 0; k < 4; k++) out[i] |= (uint8_t)((q[i + k * n] >> shift & 3) << 2 * k);
    }
}
static void trits(uint8_t *out, int n, const uint16_t *q, int digits) {
    for (int i = 0; i < n; i++) {
        unsigned v = 0;
        for (int k = 0; k < 5; k++) v = 3 * v + (k < digits ? q[i + k * n] : 0);
        out[i] = (uint8_t)((v * 256 + 242) / 243);
    }
}
static void bits_32(uint8_t out[4], const uint16_t *q, int bit) { /* of 32 weights, one after another */
    memset(out, 0, 4);
    for (int i = 0; i < 32; i++) out[i >> 3] |= (uint8_t)((q[i] >> bit & 1) << (i & 7));
}
static void bit_rows(uint8_t out[32], const uint16_t *q, int bit) { /* of 8 x 32 weights, a row per bit */
    memset(out, 0, 32);
    for (int row = 0; row < 8; row++)
        for (int i = 0; i < 32; i++) out[i] |= (uint8_t)((q[32 * row + i] >> bit & 1) << row);
}

static void put_q1_0(void *o, const block *b) {
    q1_0 *y = o;
    y->d = half_of(b->d);
    for (int i = 0; i < 4; i++) bits_32(y->qs + 4 * i, b->q + 32 * i, 0);
}
static void put_q2_0(void *o, const block *b) {
    q2_0 *y = o;
    y->d = half_of(b->d);
    for (int i = 0; i < 16; i++) quads(y->qs + i, 1, b->q + 4 * i, 0);
}
static void put_q4_0(void *o, const block *b) {
    q4_0 *y = o;
    y->d = half_of(b->d);
    pairs(y->qs, 16, b->q);
}
static void put_q4_1(void *o, const block *b) {
    q4_1 *y = o;
    y->d = half_of(b->d);
    y->m = minus(b->m);
    pairs(y->qs, 16, b->q);
}
static void put_q5_0(void *o, const block *b) {
    q5_0 *y = o;
    y->d = half_of(b->d);
    bits_32(y->qh, b->q, 4);
    pairs(y->qs, 16, b->q);
}
static void put_q5_1(void *o, const block *b) {
    q5_1 *y = o;
    y->d = half_of(b->d);
    y->m = minus(b->m);
    bits_32(y->qh, b->q, 4);
    pairs(y->qs, 16, b->q);
}
static void put_q8_0(void *o, const block *b) {
    q8_0 *y = o;
    y->d = half_of(b->d);
    for (int i = 0; i < 32; i++) y->qs[i] = (int8_t)((int)b->q[i] - 128);
}
static void put_mxfp4(void *o, const block *b) {
    mxfp4 *y = o;
    y->e = b->scale[0];
    pairs(y->qs, 16, b->q);
}
static void put_nvfp4(void *o, const block *b) {
    nvfp4 *y = o;
    memcpy(y->d, b->scale, 4);
    for (int i = 0; i < 4; i++) pairs(y->qs[i], 8, b->q + 16 * i);
}
static void put_q2_k(void *o, const block *b) {
    q2_k *y = o;
    for (int i = 0; i < 16; i++) y->sub[i] = (uint8_t)(b->scale[i] | b->min[i] << 4);
    for (int i = 0; i < 2; i++) quads(y->qs[i], 32, b->q + 128 * i, 0);
    y->d = half_of(b->d);
    y->dmin = half_of(b->m);
}

/* Sixteen six-bit scales: the low nibbles of scales 0-7 and, above them, of 8-15; then a byte for scales i, i + 4, i + 8, i + 12 with their high bits. */
static void sub_q3(uint8_t out[12], const uint8_t *scale) {
    uint16_t up[16];
    for (int i = 0; i < 16; i++) up[i] = (uint8_t)(scale[i] + 32);
    pairs(out, 8, up);
    quads(out + 8, 4, up, 4);
}
static void put_q3_k(void *o, const block *b) {
    q3_k *y = o;
    bit_rows(y->hmask, b->q, 2);
    for (int i = 0; i < 2; i++) quads(y->qs[i], 32, b->q + 128 * i, 0);
    sub_q3(y->sub, b->scale);
    y->d = half_of(b->d);
}

/* Eight scales S and minima M of six bits: S0-S3 | high bits of S4-S7 << 6, M0-M3 | high bits of M4-M7 << 6, low nibbles of S4-S7 | of M4-M7 << 4. */
static void sub_q45(uint8_t out[12], const uint8_t *scale, const uint8_t *min) {
    for (int i = 0; i < 4; i++) {
        out[i] = (uint8_t)(scale[i] | (scale[i + 4] & 48) << 2);
        out[i + 4] = (uint8_t)(min[i] | (min[i + 4] & 48) << 2);
        out[i + 8] = (uint8_t)((scale[i + 4] & 15) | (min[i + 4] & 15) << 4);
    }
}
static void put_q4_k(void *o, const block *b) {
    q4_k *y = o;
    y->d = half_of(b->d);
    y->dmin = half_of(b->m);
    sub_q45(y->sub, b->scale, b->min);
    for (int i = 0; i < 4; i++) pairs(y->qs[i], 32, b->q + 64 * i);
}
static void put_q5_k(void *o, const block *b) {
    q5_k *y = o;
    y->d = half_of(b->d);
    y->dmin = half_of(b->m);
    sub_q45(y->sub, b->scale, b->min);
    bit_rows(y->qh, b->q, 4);
    for (int i = 0; i < 4; i++) pairs(y->qs[i], 32, b->q + 64 * i);
}
static void put_q6_k(void *o, const block *b) {
    q6_k *y = o;
    for (int i = 0; i < 2; i++) {
        pairs(y->ql[i], 64, b->q + 128 * i);
        quads(y->qh[i], 32, b->q + 128 * i, 4);
    }
    memcpy(y->sub, b->scale, 16);
    y->d = half_of(b->d);
}
static void put_iq4_xs(void *o, const block *b) {
    iq4_xs *y = o;
    uint16_t up[8];
    for (int i = 0; i < 8; i++) up[i] = (uint8_t)(b->scale[i] + 32);
    y->d = half_of(b->d);
    for (int i = 0; i < 2; i++) quads(y->sub_h + i, 1, up + 4 * i, 4);
    for (int i = 0; i < 4; i++) pairs(y->sub_l + i, 1, up + 2 * i);
    for (int i = 0; i < 8; i++) pairs(y->qs[i], 16, b->q + 32 * i);
}
static void put_tq1_0(void *o, const block *b) {
    tq1_0 *y = o;
    trits(y->q32, 32, b->q, 5);
    trits(y->q16, 16, b->q + 160, 5);
    trits(y->qh, 4, b->q + 240, 4);
    y->d = half_of(b->d);
}
static void put_tq2_0(void *o, const block *b) {
    tq2_0 *y = o;
    for (int i = 0; i < 2; i++) quads(y->qs[i], 32, b->q + 128 * i, 0);
    y->d = half_of(b->d);
}

static const struct { lq_dtype type; void (*put)(void *, const block *); } packers[] = {
    {LQ_Q1_0, put_q1_0}, {LQ_Q2_0, put_q2_0}, {LQ_Q4_0, put_q4_0}, {LQ_Q4_1, put_q4_1}, {LQ_Q5_0, put_q5_0}, {LQ_Q5_1, put_q5_1},
    {LQ_Q8_0, put_q8_0}, {LQ_Q2_K, put_q2_k}, {LQ_Q3_K, put_q3_k}, {LQ_Q4_K, put_q4_k}, {LQ_Q5_K, put_q5_k}, {LQ_Q6_K, put_q6_k},
    {LQ_IQ4_NL, put_q4_0}, {LQ_IQ4_XS, put_iq4_xs}, {LQ_TQ1_0, put_tq1_0}, {LQ_TQ2_0, put_tq2_0}, {LQ_MXFP4, put_mxfp4}, {LQ_NVFP4, put_nvfp4},
};

/* The plane's part of block number at: its F16, and where its elements under it begin. */
static const uint8_t *plane_part(const lq_plane_desc *d, const lq_plane *p, size_t at, uint32_t width, uint16_t *up) {
    *up = d->dtype == LQ_F16 ? ((const uint16_t *)p->v)[at] : d->parent == LQ_F16 ? ((const uint16_t *)p->parent)[at] : 0;
    return d->dtype == LQ_NONE ? NULL : (const uint8_t *)p->v + at * (width / d->tile_c) * lq_dtypes[d->dtype].bytes;
}

static lq_status no_fourth(lq_ctx *ctx, const lq_qtensor *q, uint32_t r, uint32_t c0, const uint16_t *code, uint32_t n) {
    if (q->sch.grid.kind != LQ_GRID_INT || q->sch.grid.bias != 1) return LQ_OK;
    for (uint32_t i = 0; i < n; i++)
        if (code[i] > 2) return lq_fail(ctx, LQ_ERR_QUALITY, "row %u, column %u: code %u, ternary codes are 0 to 2", r, c0 + i, code[i]);
    return LQ_OK;
}

lq_status lq_gguf_pack_row(lq_ctx *ctx, lq_dtype t, const lq_qtensor *q, uint32_t r, void *out) {
    void (*put)(void *, const block *) = NULL;
    for (size_t i = 0; i < sizeof packers / sizeof *packers; i++)
        if (packers[i].type == t) put = packers[i].put;
    if (!put) return lq_fail(ctx, LQ_ERR_INTERNAL, "no blocks of type %s are written", lq_dtypes[t].name);
    uint32_t width = lq_dtypes[t].block, blocks = q->cols / width;
    const uint8_t *row = q->codes + (size_t)r * q->row_bytes;
    for (uint32_t k = 0; k < blocks; k++) {
        uint16_t code[256];
        block b = {.q = code};
        size_t at = (size_t)r * blocks + k;
        lq_codes_unpack(row + (size_t)k * width * q->sch.grid.bits / 8, q->sch.grid.bits, width, code);
        LQ_TRY(no_fourth(ctx, q, r, k * width, code, width));
        b.scale = plane_part(&q->sch.scale, &q->scale, at, width, &b.d);
        b.min = plane_part(&q->sch.zero, &q->zero, at, width, &b.m);
        put((uint8_t *)out + (size_t)k * lq_dtypes[t].bytes, &b);
    }
    return LQ_OK;
}
