/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "calib/act.h"

#include "core/num.h"

#include <string.h>

float lq_act_top(lq_dtype t) { return t == LQ_I8 ? 127 : t == LQ_E4M3 ? 448 : t == LQ_BOOL ? 1 : 0; }

uint32_t lq_act_tiles(const lq_act *a, uint32_t cols) { return a->tile ? (cols + a->tile - 1) / a->tile : 1; }

float lq_act_e4m3(float v) {
    float a = fabsf(v);
    uint32_t u = lq_f32_bits(a);
    if (a < 0x1p-6f) a = (a + 0x1p14f) - 0x1p14f; /* subnormals are multiples of 2^-9, the last bit of 2^14 */
    else a = lq_bits_f32((u + 0x7FFFF + (u >> 20 & 1)) & ~0xFFFFFu);
    return copysignf(a > 448 ? 448 : a, v);
}

static bool left_out(const lq_act *a, const uint8_t *apart, float x, uint32_t c) {
    return (apart && apart[c]) || (a->outlier > 0 && fabsf(x) >= a->outlier);
}

typedef struct extent { float max; double sum; uint32_t n; } extent;

/* Over [c0, c1); plain when nothing may be left out. */
static extent measure(const lq_act *a, const uint8_t *apart, const float *x, uint32_t c0, uint32_t c1) {
    extent e = {0};
    if (!apart && !(a->outlier > 0) && a->dtype != LQ_BOOL) {
        for (uint32_t c = c0; c < c1; c++) e.max = fabsf(x[c]) > e.max ? fabsf(x[c]) : e.max;
        return e;
    }
    for (uint32_t c = c0; c < c1; c++) {
        if (left_out(a, apart, x[c], c)) continue;
        e.max = fabsf(x[c]) > e.max ? fabsf(x[c]) : e.max;
        e.sum += (double)fabsf(x[c]);
        e.n++;
    }
    return e;
}

static uint32_t first_bad(const float *x, uint32_t cols) {
    uint32_t odd = 0;
    for (uint32_t c = 0; c < cols; c++) odd |= (lq_f32_bits(x[c]) & 0x7f800000u) == 0x7f800000u;
    for (uint32_t c = 0; odd && c < cols; c++)
        if ((lq_f32_bits(x[c]) & 0x7f800000u) == 0x7f800000u) return c;
    return cols;
}

static void round_tile(lq_dtype t, float inv, const float *x, uint32_t n, float *code) {
    if (t == LQ_BOOL) {
        for (uint32_t c = 0; c < n; c++) code[c] = x[c] < 0 ? -1 : 1;
    } else if (t == LQ_E4M3) {
        for (uint32_t c = 0; c < n; c++) code[c] = lq_act_e4m3(x[c] * inv);
    } else {
        for (uint32_t c = 0; c < n; c++) {
            float v = x[c] * inv;
            v = v > 127 ? 127 : v < -127 ? -127 : v;
            code[c] = (v + 0x1.8p23f) - 0x1.8p23f; /* nearest, ties to even */
        }
    }
}

/* Step and its inverse of columns whose largest magnitude is max. */
static float extent_step(const lq_act *a, float fixed, float max, float *step) {
    float top = lq_act_top(a->dtype);
    if (a->kind == LQ_ACT_STATIC) {
        *step = fixed;
        return fixed > 1e-30f ? 1 / fixed : 0;
    }
    if (a->scope == LQ_ACT_BITNET) { /* rounded twice: that decides the ties, which inputs of 8 significant bits are full of */
        max = max > 1e-5f ? max : 1e-5f;
        *step = max / top;
        return 1 / max * top;
    }
    *step = a->scope == 2 ? lq_f16_f32(lq_f32_f16(max / top)) : max / top;
    return max > 1e-30f ? top / max : 0;
}

uint32_t lq_act_quantize(const lq_act *a, float fixed, const uint8_t *apart, const float *x, uint32_t cols, float *code, float *step) {
    uint32_t bad = first_bad(x, cols), tile = a->tile ? a->tile : cols;
    if (bad < cols) return bad;
    for (uint32_t c0 = 0, i = 0; c0 < cols; c0 += tile, i++) {
        uint32_t c1 = cols - c0 < tile ? cols : c0 + tile;
        float inv = 0;
        if (a->dtype == LQ_BOOL) {
            extent e = measure(a, apart, x, c0, c1);
            step[i] = e.n ? (float)(e.sum / e.n) : 0;
        } else inv = extent_step(a, fixed, measure(a, apart, x, c0, c1).max, &step[i]);
        round_tile(a->dtype, inv, x + c0, c1 - c0, code + c0);
        for (uint32_t c = c0; (apart || a->outlier > 0) && c < c1; c++)
            if (left_out(a, apart, x[c], c)) code[c] = 0;
    }
    return cols;
}

uint32_t lq_act_pack(const lq_kernels *k, const lq_packed *p, const float *x, lq_packed_token to) {
    const lq_act *a = &p->q.sch.act;
    uint32_t cols = p->q.cols, tile = a->tile ? a->tile : cols;
    for (uint32_t c0 = 0, g = 0; c0 < cols; c0 += tile) {
        uint32_t c1 = cols - c0 < tile ? cols : c0 + tile, max = k->absmax(x + c0, c1 - c0);
        float step, inv = extent_step(a, p->q.act_scale, lq_bits_f32(max), &step);
        if (max >= 0x7f800000u) return c0 + first_bad(x + c0, c1 - c0);
        for (uint32_t c = c0; c < c1; c += p->seg, g++) {
            to.sum[g] = k->round8(x + c, inv, c1 - c < p->seg ? c1 - c : p->seg, to.x + c);
            to.step[g] = step;
        }
    }
    memset(to.x + cols, 0, lq_packed_ld(p) - cols);
    return cols;
}

uint32_t lq_act_panel(const lq_scheme *s) {
    uint32_t weight = 0, act = s->act.dtype == LQ_I8 ? 127 : s->act.dtype == LQ_BOOL ? 1 : 0;
    if (s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_SIGN) weight = 1;
    if (s->grid.kind == LQ_GRID_INT && s->grid.bits <= 8 && s->grid.bias >= 0 && s->grid.bias < 1 << s->grid.bits) {
        weight = (1u << s->grid.bits) - 1 - (uint32_t)s->grid.bias;
        if ((uint32_t)s->grid.bias > weight) weight = (uint32_t)s->grid.bias;
    }
    uint64_t product = (uint64_t)weight * act, n = product ? ((1u << 24) - 1) / product : 0;
    return (uint32_t)(n > 1024 ? 1024 : n);
}
