/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/dtype.h"

#include "core/dtype_impl.h"
#include "core/num.h"

const lq_dtype_info lq_dtypes[LQ_DTYPE_N] = {
#define X(name, text, elems, bytes, gguf) {text, elems, bytes, gguf},
    LQ_DTYPE_LIST(X)
#undef X
};

lq_dtype lq_dtype_by_name(const char *name) {
    for (int t = 1; t < LQ_DTYPE_N; t++)
        if (!strcmp(lq_dtypes[t].name, name)) return (lq_dtype)t;
    return LQ_NONE;
}

lq_dtype lq_dtype_by_gguf(uint32_t id) {
    for (int t = 1; t < LQ_DTYPE_N; t++)
        if (lq_dtypes[t].gguf >= 0 && (uint32_t)lq_dtypes[t].gguf == id) return (lq_dtype)t;
    return LQ_NONE;
}

int lq_dtype_is_weight(lq_dtype t) { return t == LQ_F32 || t == LQ_F16 || t == LQ_BF16 || t == LQ_F64 || t >= LQ_Q4_0; }

size_t lq_dtype_row_bytes(lq_dtype t, uint64_t cols) {
    if (cols % lq_dtypes[t].block) return 0;
    return (size_t)(cols / lq_dtypes[t].block * lq_dtypes[t].bytes);
}

void lq_dtype_encode(lq_dtype t, const float *src, void *dst, size_t n) {
    uint16_t *h = dst;
    if (t == LQ_F32) memcpy(dst, src, n * 4);
    else if (t == LQ_F16)
        for (size_t i = 0; i < n; i++) h[i] = lq_f32_f16(src[i]);
    else
        for (size_t i = 0; i < n; i++) h[i] = lq_f32_bf16(src[i]);
}

/* The definition is lq_f16_f32; this form has no branch, so that rows of halves are converted by vector instructions. */
static inline float half(uint16_t h) {
    uint32_t a = (uint32_t)(h & 0x7fff) << 13, wide = lq_f32_bits(lq_bits_f32(a) * 0x1p112f), special = a >= 0x0f800000u ? 0x7f800000u : 0;
    return lq_bits_f32(wide | special | (uint32_t)(h & 0x8000) << 16);
}
static float half_at(const uint8_t *p) { return half((uint16_t)(p[0] | p[1] << 8)); }
static uint32_t u32_at(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }

/* qs[j]: element j in the low nibble, element j + 16 in the high one */
static void q4_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)((b[2 + j] & 15) - 8);
        y[j + 16] = d * (float)((b[2 + j] >> 4) - 8);
    }
}
static void q4_1(const uint8_t *b, float *y) {
    float d = half_at(b), m = half_at(b + 2);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)(b[4 + j] & 15) + m;
        y[j + 16] = d * (float)(b[4 + j] >> 4) + m;
    }
}
static void q5_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    uint32_t high = u32_at(b + 2);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)(((b[6 + j] & 15) | (int)(high >> j & 1) << 4) - 16);
        y[j + 16] = d * (float)((b[6 + j] >> 4 | (int)(high >> (j + 16) & 1) << 4) - 16);
    }
}
static void q5_1(const uint8_t *b, float *y) {
    float d = half_at(b), m = half_at(b + 2);
    uint32_t high = u32_at(b + 4);
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)((b[8 + j] & 15) | (int)(high >> j & 1) << 4) + m;
        y[j + 16] = d * (float)(b[8 + j] >> 4 | (int)(high >> (j + 16) & 1) << 4) + m;
    }
}
static void q8_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    for (int j = 0; j < 32; j++) y[j] = d * (float)(int8_t)b[2 + j];
}

/* Q2_K, Q3_K: sub-block j of 16; its 2-bit codes are bits 2p, 2p+1 (p = j/2 mod 4) of 16 bytes of qs */
static const uint8_t *two_bits(const uint8_t *qs, int j) { return qs + 32 * (j / 8) + 16 * (j % 2); }

static void q2_k(const uint8_t *b, float *y) {
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int j = 0; j < 16; j++, y += 16) {
        const uint8_t *q = two_bits(b + 16, j);
        float scale = d * (float)(b[j] & 15), min = dmin * (float)(b[j] >> 4);
        for (int l = 0, p = 2 * (j / 2 % 4); l < 16; l++) y[l] = scale * (float)(q[l] >> p & 3) - min;
    }
}

static void q3_k(const uint8_t *b, float *y) {
    const uint8_t *sc = b + 96;
    float d = half_at(b + 108);
    for (int j = 0; j < 16; j++, y += 16) {
        const uint8_t *q = two_bits(b + 32, j), *hmask = b + 16 * (j % 2);
        int low = j < 8 ? sc[j] & 15 : sc[j - 8] >> 4, high = sc[8 + j % 4] >> 2 * (j / 4) & 3;
        float scale = d * (float)((low | high << 4) - 32);
        for (int l = 0, p = 2 * (j / 2 % 4); l < 16; l++) y[l] = scale * (float)((q[l] >> p & 3) - 4 + 4 * (hmask[l] >> (j / 2) & 1));
    }
}

/* the twelve bytes of Q4_K and Q5_K: eight 6-bit scales and eight 6-bit mins */
static void scale_min(const uint8_t *b, int j, float *sc, float *m) {
    if (j < 4) {
        *sc = (float)(b[j] & 63);
        *m = (float)(b[j + 4] & 63);
    } else {
        *sc = (float)((b[j + 4] & 15) | (b[j - 4] >> 6) << 4);
        *m = (float)((b[j + 4] >> 4) | (b[j] >> 6) << 4);
    }
}

static void q45_k(const uint8_t *b, const uint8_t *qh, const uint8_t *qs, float *y) {
    float d = half_at(b), dmin = half_at(b + 2);
    for (int j = 0; j < 8; j++) {
        float sc, m;
        scale_min(b + 4, j, &sc, &m);
        float scale = d * sc, min = dmin * m;
        for (int l = 0; l < 32; l++) {
            int q = j % 2 ? qs[32 * (j / 2) + l] >> 4 : qs[32 * (j / 2) + l] & 15;
            if (qh) q += 16 * (qh[l] >> j & 1);
            y[32 * j + l] = scale * (float)q - min;
        }
    }
}
static void q4_k(const uint8_t *b, float *y) { q45_k(b, NULL, b + 16, y); }
static void q5_k(const uint8_t *b, float *y) { q45_k(b, b + 16, b + 48, y); }

static void q6_k(const uint8_t *b, float *y) {
    float d = half_at(b + 208);
    for (int j = 0; j < 16; j++, y += 16) { /* sub-blocks of 16; 32 weights share bytes of ql, 128 those of qh */
        const uint8_t *ql = b + 64 * (j / 8) + 16 * (j % 4), *qh = b + 128 + 32 * (j / 8) + 16 * (j % 2);
        float scale = d * (float)(int8_t)b[192 + j];
        for (int l = 0, up = j / 4 % 2, p = 2 * (j / 2 % 4); l < 16; l++)
            y[l] = scale * (float)(((ql[l] >> 4 * up & 15) | (qh[l] >> p & 3) << 4) - 32);
    }
}

static const int8_t uneven[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t twice_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static void table16(const uint8_t *qs, int n, const int8_t *table, float d, float *y) {
    for (int j = 0; j < n; j++) {
        y[j] = d * (float)table[qs[j] & 15];
        y[j + n] = d * (float)table[qs[j] >> 4];
    }
}
static void iq4_nl(const uint8_t *b, float *y) { table16(b + 2, 16, uneven, half_at(b), y); }
static void iq4_xs(const uint8_t *b, float *y) {
    float d = half_at(b);
    for (int j = 0; j < 8; j++) {
        int scale = (b[4 + j / 2] >> 4 * (j % 2) & 15) | ((b[2] | b[3] << 8) >> 2 * j & 3) << 4;
        table16(b + 8 + 16 * j, 16, uneven, d * (float)(scale - 32), y + 32 * j);
    }
}
static void mxfp4(const uint8_t *b, float *y) { /* 2^(e - 128) of doubled values; a NaN exponent is one more, as in ggml */
    float d = b[0] < 2 ? lq_bits_f32(0x00200000u << b[0]) : lq_bits_f32((uint32_t)(b[0] - 1) << 23);
    table16(b + 1, 16, twice_e2m1, d, y);
}
static void nvfp4(const uint8_t *b, float *y) { /* E4M3 without sign; 0x7f is 0 */
    for (int j = 0; j < 4; j++) {
        int e = b[j] >> 3 & 15, m = b[j] & 7;
        float d = e ? ldexpf((float)(8 + m), e - 11) : ldexpf((float)m, -10);
        table16(b + 4 + 8 * j, 8, twice_e2m1, b[j] == 0x7f ? 0 : d, y + 16 * j);
    }
}

static void tq1_0(const uint8_t *b, float *y) { /* a byte is a fraction of 256 in base 3; qs: five digits of 32, then of 16 bytes; qh: four of 4 */
    float d = half_at(b + 52);
    const struct { uint8_t at, n, digits; } runs[] = {{0, 32, 5}, {32, 16, 5}, {48, 4, 4}};
    for (int k = 0; k < 3; k++) {
        unsigned rest[32];
        for (int l = 0; l < runs[k].n; l++) rest[l] = b[runs[k].at + l];
        for (int digit = 0; digit < runs[k].digits; digit++)
            for (int l = 0; l < runs[k].n; l++) {
                rest[l] *= 3;
                *y++ = d * (float)((int)(rest[l] >> 8) - 1);
                rest[l] &= 255;
            }
    }
}
static void tq2_0(const uint8_t *b, float *y) {
    float d = half_at(b + 64);
    for (int j = 0; j < 16; j++, y += 16)
        for (int l = 0; l < 16; l++) y[l] = d * (float)((two_bits(b, j)[l] >> 2 * (j / 2 % 4) & 3) - 1);
}
static void q1_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    for (int j = 0; j < 128; j++) y[j] = b[2 + j / 8] >> j % 8 & 1 ? d : -d;
}
static void q2_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    for (int j = 0; j < 64; j++) y[j] = d * (float)((b[2 + j / 4] >> 2 * (j % 4) & 3) - 1);
}

void lq_dtype_decode(lq_dtype t, const void *src, float *dst, size_t n) {
    const uint16_t *h = src;
    const double *f64 = src;
    void (*block)(const uint8_t *, float *) = NULL;
    switch (t) {
    case LQ_F32: memcpy(dst, src, n * 4); return;
    case LQ_F16:
        for (size_t i = 0; i < n; i++) dst[i] = half(h[i]);
        return;
    case LQ_BF16:
        for (size_t i = 0; i < n; i++) dst[i] = lq_bf16_f32(h[i]);
        return;
    case LQ_F64:
        for (size_t i = 0; i < n; i++) dst[i] = (float)f64[i];
        return;
    case LQ_Q4_0: block = q4_0; break;
    case LQ_Q4_1: block = q4_1; break;
    case LQ_Q5_0: block = q5_0; break;
    case LQ_Q5_1: block = q5_1; break;
    case LQ_Q8_0: block = q8_0; break;
    case LQ_Q2_K: block = q2_k; break;
    case LQ_Q3_K: block = q3_k; break;
    case LQ_Q4_K: block = q4_k; break;
    case LQ_Q5_K: block = q5_k; break;
    case LQ_Q6_K: block = q6_k; break;
    case LQ_IQ4_NL: block = iq4_nl; break;
    case LQ_IQ4_XS: block = iq4_xs; break;
    case LQ_TQ1_0: block = tq1_0; break;
    case LQ_TQ2_0: block = tq2_0; break;
    case LQ_MXFP4: block = mxfp4; break;
    case LQ_NVFP4: block = nvfp4; break;
    case LQ_Q1_0: block = q1_0; break;
    case LQ_Q2_0: block = q2_0; break;
    case LQ_IQ1_S: block = lq_block_iq1_s; break;
    case LQ_IQ1_M: block = lq_block_iq1_m; break;
    case LQ_IQ2_XXS: block = lq_block_iq2_xxs; break;
    case LQ_IQ2_XS: block = lq_block_iq2_xs; break;
    case LQ_IQ2_S: block = lq_block_iq2_s; break;
    case LQ_IQ3_XXS: block = lq_block_iq3_xxs; break;
    case LQ_IQ3_S: block = lq_block_iq3_s; break;
    default: memset(dst, 0, n * 4); return;
    }
    for (size_t i = 0; i < n / lq_dtypes[t].block; i++)
        block((const uint8_t *)src + i * lq_dtypes[t].bytes, dst + i * lq_dtypes[t].block);
}
