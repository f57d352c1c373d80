/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ggml's blocks to codes and planes. Source: the dequantize_row functions of ggml-quants.c and gguf-py's quants.py (ggml, August 2026).
 * Fields in file order, bytes in brackets; d, m, dmin: F16, little-endian.
 *
 *   Q1_0    d, qs[16]                          weight i: bit i%8 of qs[i/8]
 *   Q2_0    d, qs[16]                          bits 2(i%4).. of qs[i/4]
 *   Q4_0    d, qs[16]                          nibbles: weight i < 16 the low one of qs[i], weight 16+i its high one
 *   Q4_1    d, m, qs[16]                       nibbles; the value is d q + m
 *   Q5_0    d, qh[4], qs[16]                   nibbles, bit 4 of weight i is bit i of qh
 *   Q5_1    d, m, qh[4], qs[16]
 *   Q8_0    d, qs[32]                          signed bytes
 *   IQ4_NL  d, qs[16]                          nibbles
 *   MXFP4   e[1], qs[16]                       nibbles
 *   NVFP4   scale[4], qs[32]                   16 weights at a time: 8 bytes, nibbles of 8
 *   Q2_K    sub[16], qs[64], d, dmin           sub: scale the low nibble, minimum the high one; crumbs
 *   Q3_K    hmask[32], qs[64], sub[12], d      crumbs; bit 2 of weight i is bit i/32 of hmask[i%32]; scales + 32: four bits of scale j at nibble
 *                                              j/8 of sub[j%8], two at bits 2(j/4).. of sub[8 + j%4]
 *   Q4_K    d, dmin, sub[12], qs[128]          64 weights at a time: 32 bytes, nibbles of 32; six: see six_bits
 *   Q5_K    d, dmin, sub[12], qh[32], qs[128]  as Q4_K, bit 4 of weight i is bit i/32 of qh[i%32]
 *   Q6_K    ql[128], qh[64], sub[16], d        128 weights at a time: 64 bytes of ql, nibbles of 64; bits 4, 5: crumbs of 32 bytes of qh
 *   IQ4_XS  d, high u16, low[4], qs[128]       32 weights at a time: nibbles; scales + 32: nibble j%2 of low[j/2], bits 2j.. of high
 *   TQ1_0   qs[48], qh[4], d                   base 3: digit n of a byte is that of its 3^n-fold fraction of 256; digits of 32, 16 and 4 bytes
 *   TQ2_0   qs[64], d                          crumbs
 *
 * crumbs: weight i is bits 2p.. (p = i%128/32) of qs[32(i/128) + i%32]. */
#include "formats/gguf_blocks.h"

#include "core/pack.h"

#include <string.h>

enum { MOST = 256 };

typedef struct parts {       /* of one block */
    uint16_t code[MOST];
    uint16_t d, m;           /* F16 */
    uint8_t scale[16], min[16]; /* as the planes of the scheme store them */
} parts;

static uint16_t half_at(const uint8_t *b) { return (uint16_t)(b[0] | b[1] << 8); }

static void nibbles(const uint8_t *qs, int n, uint16_t *code) {
    for (int i = 0; i < 2 * n; i++) code[i] = i < n ? qs[i] & 15 : qs[i - n] >> 4;
}

static void crumbs(const uint8_t *qs, uint16_t *code) {
    for (int i = 0; i < MOST; i++) code[i] = qs[32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3;
}

static void q1_0(const uint8_t *b, parts *p) {
    p->d = half_at(b);
    for (int i = 0; i < 128; i++) p->code[i] = b[2 + i / 8] >> i % 8 & 1;
}
static void q2_0(const uint8_t *b, parts *p) {
    p->d = half_at(b);
    for (int i = 0; i < 64; i++) p->code[i] = b[2 + i / 4] >> 2 * (i % 4) & 3;
}
static void q4_0(const uint8_t *b, parts *p) { /* IQ4_NL too */
    p->d = half_at(b);
    nibbles(b + 2, 16, p->code);
}
static void q4_1(const uint8_t *b, parts *p) {
    p->d = half_at(b);
    p->m = half_at(b + 2) ^ 0x8000;
    nibbles(b + 4, 16, p->code);
}
static void fifth_bits(const uint8_t *qh, uint16_t *code) {
    for (int i = 0; i < 32; i++) code[i] |= (uint16_t)((qh[i / 8] >> i % 8 & 1) << 4);
}
static void q5_0(const uint8_t *b, parts *p) {
    p->d = half_at(b);
    nibbles(b + 6, 16, p->code);
    fifth_bits(b + 2, p->code);
}
static void q5_1(const uint8_t *b, parts *p) {
    p->d = half_at(b);
    p->m = half_at(b + 2) ^ 0x8000;
    nibbles(b + 8, 16, p->code);
    fifth_bits(b + 4, p->code);
}
static void q8_0(const uint8_t *b, parts *p) {
    p->d = half_at(b);
    for (int i = 0; i < 32; i++) p->code[i] = b[2 + i] ^ 0x80; /* q + 128 */
}
static void mxfp4(const uint8_t *b, parts *p) {
    p->scale[0] = b[0];
    nibbles(b + 1, 16, p->code);
}
static void nvfp4(const uint8_t *b, parts *p) {
    memcpy(p->scale, b, 4);
    for (int s = 0; s < 4; s++) nibbles(b + 4 + 8 * s, 8, p->code + 16 * s);
}

static void q2_k(const uint8_t *b, parts *p) {
    for (int j = 0; j < 16; j++) {
        p->scale[j] = b[j] & 15;
        p->min[j] = b[j] >> 4;
    }
    crumbs(b + 16, p->code);
    p->d = half_at(b + 80);
    p->m = half_at(b + 82);
}
static void q3_k(const uint8_t *b, parts *p) {
    const uint8_t *sub = b + 96;
    crumbs(b + 32, p->code);
    for (int i = 0; i < MOST; i++) p->code[i] |= (uint16_t)((b[i % 32] >> i / 32 & 1) << 2);
    for (int j = 0; j < 16; j++) p->scale[j] = (uint8_t)(((sub[j % 8] >> 4 * (j / 8) & 15) | (sub[8 + j % 4] >> 2 * (j / 4) & 3) << 4) - 32);
    p->d = half_at(b + 108);
}

/* Twelve bytes: 0-3 and 4-7 hold six bits of scale and minimum j < 4; the upper two bits of each go to scale and minimum j + 4, whose
 * lower four are the nibbles of bytes 8-11. */
static void six_bits(const uint8_t *sub, parts *p) {
    for (int j = 0; j < 4; j++) {
        p->scale[j] = sub[j] & 63;
        p->min[j] = sub[4 + j] & 63;
        p->scale[4 + j] = (uint8_t)((sub[8 + j] & 15) | sub[j] >> 6 << 4);
        p->min[4 + j] = (uint8_t)(sub[8 + j] >> 4 | sub[4 + j] >> 6 << 4);
    }
}
static void q4_k(const uint8_t *b, parts *p) {
    p->d = half_at(b);
    p->m = half_at(b + 2);
    six_bits(b + 4, p);
    for (int k = 0; k < 4; k++) nibbles(b + 16 + 32 * k, 32, p->code + 64 * k);
}
static void q5_k(const uint8_t *b, parts *p) {
    p->d = half_at(b);
    p->m = half_at(b + 2);
    six_bits(b + 4, p);
    for (int k = 0; k < 4; k++) nibbles(b + 48 + 32 * k, 32, p->code + 64 * k);
    for (int i = 0; i < MOST; i++) p->code[i] |= (uint16_t)((b[16 + i % 32] >> i / 32 & 1) << 4);
}
static void q6_k(const uint8_t *b, parts *p) {
    uint16_t high[MOST];
    for (int k = 0; k < 2; k++) nibbles(b + 64 * k, 64, p->code + 128 * k);
    crumbs(b + 128, high);
    for (int i = 0; i < MOST; i++) p->code[i] |= (uint16_t)(high[i] << 4);
    memcpy(p->scale, b + 192, 16);
    p->d = half_at(b + 208);
}
static void iq4_xs(const uint8_t *b, parts *p) {
    uint16_t high = half_at(b + 2);
    p->d = half_at(b);
    for (int j = 0; j < 8; j++) {
        p->scale[j] = (uint8_t)(((b[4 + j / 2] >> 4 * (j % 2) & 15) | (high >> 2 * j & 3) << 4) - 32);
        nibbles(b + 8 + 16 * j, 16, p->code + 32 * j);
    }
}
static void thirds(const uint8_t *bytes, int n, int digits, uint16_t *code) {
    static const uint8_t power[] = {1, 3, 9, 27, 81};
    for (int k = 0; k < digits; k++)
        for (int i = 0; i < n; i++) code[k * n + i] = (uint16_t)((uint8_t)(bytes[i] * power[k]) * 3 >> 8);
}
static void tq1_0(const uint8_t *b, parts *p) {
    thirds(b, 32, 5, p->code);
    thirds(b + 32, 16, 5, p->code + 160);
    thirds(b + 48, 4, 4, p->code + 240);
    p->d = half_at(b + 52);
}
static void tq2_0(const uint8_t *b, parts *p) {
    crumbs(b, p->code);
    p->d = half_at(b + 64);
}

static void (*block_of(lq_dtype t))(const uint8_t *, parts *) {
    switch (t) {
    case LQ_Q1_0: return q1_0;
    case LQ_Q2_0: return q2_0;
    case LQ_Q4_0: case LQ_IQ4_NL: return q4_0;
    case LQ_Q4_1: return q4_1;
    case LQ_Q5_0: return q5_0;
    case LQ_Q5_1: return q5_1;
    case LQ_Q8_0: return q8_0;
    case LQ_Q2_K: return q2_k;
    case LQ_Q3_K: return q3_k;
    case LQ_Q4_K: return q4_k;
    case LQ_Q5_K: return q5_k;
    case LQ_Q6_K: return q6_k;
    case LQ_IQ4_XS: return iq4_xs;
    case LQ_TQ1_0: return tq1_0;
    case LQ_TQ2_0: return tq2_0;
    case LQ_MXFP4: return mxfp4;
    case LQ_NVFP4: return nvfp4;
    default: return NULL;
    }
}

static bool usable(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

/* Infinity or NaN in the block's scales. NVFP4's scales have no sign; ggml reads 0x7f as 0, OCP as NaN. */
static bool sound(lq_dtype t, const parts *p, bool two) {
    if (t == LQ_MXFP4) return p->scale[0] != 255;
    for (int s = 0; s < 4 && t == LQ_NVFP4; s++)
        if (p->scale[s] >= 0x7f) return false;
    return usable(p->d) && (!two || usable(p->m));
}

/* Plane elements of block k of row r, n to a block: final ones are d or m, others the block's own bytes under it. */
static void put_plane(const lq_plane_desc *d, lq_plane *p, size_t block, uint32_t n, const uint8_t *sub, uint16_t up) {
    if (d->parent == LQ_F16) ((uint16_t *)p->parent)[block] = up;
    if (d->dtype == LQ_F16) ((uint16_t *)p->v)[block] = up;
    else memcpy((uint8_t *)p->v + block * n, sub, n);
}

lq_status lq_gguf_unpack_row(lq_ctx *ctx, lq_dtype t, const void *in, lq_qtensor *q, uint32_t r) {
    void (*block)(const uint8_t *, parts *) = block_of(t);
    if (!block) return lq_fail(ctx, LQ_ERR_INTERNAL, "blocks of type %s have no scheme", lq_dtypes[t].name);
    const lq_scheme *s = &q->sch;
    uint32_t width = lq_dtypes[t].block, blocks = q->cols / width, n = width / s->scale.tile_c;
    uint8_t *row = q->codes + (size_t)r * q->row_bytes;
    for (uint32_t k = 0; k < blocks; k++) {
        parts p = {.d = 0};
        size_t at = (size_t)r * blocks + k;
        block((const uint8_t *)in + (size_t)k * lq_dtypes[t].bytes, &p);
        if (!sound(t, &p, s->zero_kind != LQ_ZERO_NONE)) return lq_fail(ctx, LQ_ERR_FORMAT, "row %u, block %u: a scale is infinite or no number", r, k);
        lq_codes_pack(row + (size_t)k * width * s->grid.bits / 8, s->grid.bits, width, p.code);
        put_plane(&s->scale, &q->scale, at, n, p.scale, p.d);
        if (s->zero_kind != LQ_ZERO_NONE) put_plane(&s->zero, &q->zero, at, n, p.min, p.m);
    }
    return LQ_OK;
}
