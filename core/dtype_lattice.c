/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ggml's blocks that store numbers of lattice points: 256 weights in groups of 32, a group in points of 8 (or 4) weights. Source: the
 * dequantize_row_iq* functions of ggml-quants.c and gguf-py's quants.py (ggml, August 2026). Fields in file order, bytes in brackets; d: F16.
 *
 *   IQ2_XXS  d, 8 x { number[4], word[4] }             word: signs of point l at bits 7l.., scale at 28..
 *   IQ2_XS   d, point u16[32], scale[8]                point: number bits 0-8, signs 9-15; scales: nibbles, one for 16 weights
 *   IQ2_S    d, number[32], sign[32], high[8], scale[8] high: bits 8, 9 of point l of group g at bits 2l.. of high[g]
 *   IQ3_XXS  d, number[64], word[8][4]                 words as IQ2_XXS
 *   IQ3_S    d, number[64], high[8], sign[32], scale[4] high: bit 8 of number k of group g at bit k of high[g]; scales: nibbles for 32
 *   IQ1_S    d, number[32], high u16[8]                high: bits 8-10 of number l at bits 3l.., scale at 12-14, sign of the shift at 15
 *   IQ1_M    number[32], high[16], scale u16[4]        high: nibbles, bits 8-10 and sign of the shift; scales of 16 weights: 3 bits each;
 *                                                      d: the upper nibbles of scale[0..3], lowest first
 *
 * Seven sign bits: the eighth makes their number even. */
#include "core/dtype_impl.h"
#include "core/lattices.h"
#include "core/num.h"

static uint16_t u16_at(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static uint32_t u32_at(const uint8_t *p) { return u16_at(p) | (uint32_t)u16_at(p + 2) << 16; }

static unsigned even_signs(unsigned seven) {
    unsigned odd = seven ^ seven >> 4;
    odd ^= odd >> 2;
    odd ^= odd >> 1;
    return seven | (odd & 1) << 7;
}

/* y[8] = scale times the point, signs turned */
static void put_8(unsigned point, unsigned signs, float scale, float *y) {
    static const float level[4] = {8, 25, 43, 0};
    for (int i = 0; i < 8; i++) y[i] = scale * level[point >> 2 * i & 3] * (signs >> i & 1 ? -1.0f : 1.0f);
}

/* two points of four weights */
static void put_4_4(unsigned a, unsigned b, unsigned signs, float scale, const float level[8], float *y) {
    for (int i = 0; i < 8; i++) y[i] = scale * level[(i < 4 ? a >> 3 * i : b >> 3 * (i - 4)) & 7] * (signs >> i & 1 ? -1.0f : 1.0f);
}

static void put_shifted(unsigned point, bool down, float scale, float *y) {
    for (int i = 0; i < 8; i++) y[i] = scale * ((float)(point >> 2 * i & 3) - 1 + (down ? -0.125f : 0.125f));
}

void lq_block_iq2_xxs(const uint8_t *b, float *y) {
    float d = lq_f16_f32(u16_at(b));
    for (int g = 0; g < 8; g++) {
        const uint8_t *p = b + 2 + 8 * g;
        uint32_t word = u32_at(p + 4);
        float scale = d * (0.5f + (float)(word >> 28)) * 0.25f;
        for (int l = 0; l < 4; l++, y += 8) put_8(iq2_xxs_points[p[l]], even_signs(word >> 7 * l & 127), scale, y);
    }
}

void lq_block_iq2_xs(const uint8_t *b, float *y) {
    float d = lq_f16_f32(u16_at(b));
    for (int k = 0; k < 32; k++, y += 8) {
        unsigned v = u16_at(b + 2 + 2 * k), nibble = b[66 + k / 4] >> 4 * (k / 2 % 2) & 15;
        put_8(iq2_xs_points[v & 511], even_signs(v >> 9), d * (0.5f + (float)nibble) * 0.25f, y);
    }
}

void lq_block_iq2_s(const uint8_t *b, float *y) {
    float d = lq_f16_f32(u16_at(b));
    for (int k = 0; k < 32; k++, y += 8) {
        unsigned number = b[2 + k] | (b[66 + k / 4] >> 2 * (k % 4) & 3u) << 8, nibble = b[74 + k / 4] >> 4 * (k / 2 % 2) & 15;
        put_8(iq2_s_points[number], b[34 + k], d * (0.5f + (float)nibble) * 0.25f, y);
    }
}

void lq_block_iq3_xxs(const uint8_t *b, float *y) {
    static const float level[8] = {4, 12, 20, 28, 36, 44, 52, 62};
    float d = lq_f16_f32(u16_at(b));
    for (int k = 0; k < 32; k++, y += 8) {
        uint32_t word = u32_at(b + 66 + 4 * (k / 4));
        float scale = d * (0.5f + (float)(word >> 28)) * 0.5f;
        put_4_4(iq3_xxs_points[b[2 + 2 * k]], iq3_xxs_points[b[3 + 2 * k]], even_signs(word >> 7 * (k % 4) & 127), scale, level, y);
    }
}

void lq_block_iq3_s(const uint8_t *b, float *y) {
    static const float level[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    float d = lq_f16_f32(u16_at(b));
    for (int k = 0; k < 32; k++, y += 8) {
        unsigned high = b[66 + k / 4] >> 2 * (k % 4), nibble = b[106 + k / 8] >> 4 * (k / 4 % 2) & 15;
        unsigned first = b[2 + 2 * k] | (high & 1) << 8, second = b[3 + 2 * k] | (high >> 1 & 1) << 8;
        put_4_4(iq3_s_points[first], iq3_s_points[second], b[74 + k], d * (float)(1 + 2 * nibble), level, y);
    }
}

void lq_block_iq1_s(const uint8_t *b, float *y) {
    float d = lq_f16_f32(u16_at(b));
    for (int k = 0; k < 32; k++, y += 8) {
        unsigned high = u16_at(b + 34 + 2 * (k / 4));
        put_shifted(iq1_points[b[2 + k] | (high >> 3 * (k % 4) & 7) << 8], high >> 15, d * (float)(2 * (high >> 12 & 7) + 1), y);
    }
}

void lq_block_iq1_m(const uint8_t *b, float *y) {
    uint16_t half = 0;
    for (int i = 0; i < 4; i++) half |= (uint16_t)((u16_at(b + 48 + 2 * i) >> 12) << 4 * i);
    float d = lq_f16_f32(half);
    for (int k = 0; k < 32; k++, y += 8) {
        unsigned high = b[32 + k / 2] >> 4 * (k % 2) & 15, scale = u16_at(b + 48 + 2 * (k / 8)) >> 3 * (k / 2 % 4) & 7;
        put_shifted(iq1_points[b[k] | (high & 7) << 8], high >> 3, d * (float)(2 * scale + 1), y);
    }
}
