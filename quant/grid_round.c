/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The one rounder. Integer grids: code = clamp(round(w/s + z)). Small floats: nearest even by arithmetic on the bits, subnormals by
 * adding and taking away a power of two, saturating (OCP FP8, OCP MX 1.0). Tables: the midpoints of neighbours, walked in
 * ascending order without a branch. Loops over lanes are what the compiler vectorises. */
#include "quant/grid.h"

#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"

#include <string.h>

enum { LANES = LQ_LANES, TABLE = LQ_GRID_TABLE };

static float top_code(const lq_grid *g) { return g->bits == 2 && g->bias == 1 ? 2 : (float)((1u << g->bits) - 1); } /* ternary: 0..2 */

/* ---- small floats: sign, e bits of exponent, m bits of mantissa ---- */

typedef struct small_float { int m, least; float max; } small_float; /* least: exponent of the smallest normal */

static small_float float_of(lq_grid_kind kind) {
    switch (kind) {
    case LQ_GRID_E2M1: return (small_float){1, 0, 6};
    case LQ_GRID_E3M2: return (small_float){2, -2, 28};
    case LQ_GRID_E4M3: return (small_float){3, -6, 448};
    default: return (small_float){2, -14, 57344};
    }
}

LQ_CLONES static void small_lanes(const lq_grid *g, const float *x, uint32_t *code, float *a) {
    const small_float f = float_of(g->kind);
    const uint32_t drop = 23 - (uint32_t)f.m, half = (1u << (drop - 1)) - 1, base = (uint32_t)(126 + f.least) << f.m;
    const float normal = ldexpf(1, f.least), magic = ldexpf(1, 23 + f.least - f.m), units = ldexpf(1, f.m - f.least), max = f.max;
    const uint32_t sign = 1u << (g->bits - 1);
    for (int l = 0; l < LANES; l++) {
        float v = fabsf(x[l]);
        uint32_t u = lq_f32_bits(v);
        float wide = lq_bits_f32((u + half + (u >> drop & 1)) & ~((1u << drop) - 1)), thin = (v + magic) - magic;
        v = v < normal ? thin : wide;
        v = v < max ? v : max;
        bool minus = x[l] < 0 && v > 0;
        a[l] = minus ? -v : v;
        if (!code) continue;
        uint32_t mag = v < normal ? (uint32_t)(int32_t)(v * units) : (lq_f32_bits(v) >> drop) - base;
        code[l] = minus ? mag | sign : mag;
    }
}

/* ---- tables ---- */

LQ_CLONES static void table_lanes(const lq_rounder *r, const float *x, uint32_t *code, float *a) {
    uint32_t c[LANES];
    for (int l = 0; l < LANES; l++) {
        a[l] = r->value[0][l];
        c[l] = r->code[0][l];
    }
    for (uint32_t i = 1; i < r->n; i++)
        for (int l = 0; l < LANES; l++) {
            bool above = x[l] > r->edge[i][l];
            a[l] = above ? r->value[i][l] : a[l];
            c[l] = above ? r->code[i][l] : c[l];
        }
    if (code) memcpy(code, c, sizeof c);
}

/* The same for the one table whose edges are multiples of 1/2. */
LQ_CLONES static void halves_lanes(const lq_rounder *r, const float *x, uint32_t *code, float *a) {
    int at[LANES];
    for (int l = 0; l < LANES; l++) {
        float v = 2 * x[l];
        v = v > -256 ? v : -256; /* NaN goes down, as above */
        v = v < 255 ? v : 255;
        int down = (int)v;
        at[l] = down + (v > (float)down) + 256;
    }
    for (int l = 0; l < LANES; l++) {
        uint32_t c = r->half[at[l]];
        a[l] = r->value[c][0];
        if (code) code[l] = c;
    }
}

static void halves_init(lq_rounder *r) {
    for (int i = 0; i < 512; i++)
        for (uint32_t c = r->half[i] = 0; c < r->n; c++)
            if (c && (float)(i - 256) / 2 > r->edge[c][0]) r->half[i] = (uint8_t)c;
}

/* Values of one lane ascending; a value that two codes have goes to the lower code. Shorter than n: the rest is never reached. */
static uint32_t table_lane(lq_rounder *r, const lq_qtensor *q, uint32_t row, uint32_t lane) {
    uint32_t n = 0;
    for (uint32_t code = 0; code < 1u << q->sch.grid.bits; code++) {
        float v = lq_grid_value(q, row, code);
        uint32_t at = n;
        while (at && r->value[at - 1][lane] > v) at--;
        if (at && r->value[at - 1][lane] == v) continue;
        for (uint32_t i = n++; i > at; i--) {
            r->value[i][lane] = r->value[i - 1][lane];
            r->code[i][lane] = r->code[i - 1][lane];
        }
        r->value[at][lane] = v;
        r->code[at][lane] = code;
    }
    for (uint32_t i = 1; i < TABLE; i++) r->edge[i][lane] = i < n ? (r->value[i - 1][lane] + r->value[i][lane]) / 2 : INFINITY;
    for (uint32_t i = n; i < TABLE; i++) r->value[i][lane] = 0, r->code[i][lane] = 0;
    return n;
}

void lq_rounder_init(lq_rounder *r, const lq_qtensor *q, uint32_t row, uint32_t step) {
    const lq_scheme *s = &q->sch;
    *r = (lq_rounder){.grid = s->grid, .zero_kind = s->zero_kind, .real_zero = s->zero_kind == LQ_ZERO_MIN || (s->zero_kind == LQ_ZERO_CODE && s->zero.dtype != LQ_U8)};
    if (s->grid.kind == LQ_GRID_INT) r->top = top_code(&s->grid);
    for (uint32_t l = 0; l < LANES && s->grid.kind == LQ_GRID_LUT && s->grid.bits <= 4; l++) {
        uint32_t at = row + l * step < q->rows ? row + l * step : q->rows - 1, n = table_lane(r, q, at, l);
        r->n = n > r->n ? n : r->n;
    }
    if (s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_IQ4) halves_init(r);
}

/* ---- any grid ---- */

static void stored_float(const lq_grid *g, float x, uint32_t *code, float *a) {
    *code = g->kind == LQ_GRID_F16 ? lq_f32_f16(x) : g->kind == LQ_GRID_BF16 ? lq_f32_bf16(x) : lq_f32_bits(x);
    if (g->kind == LQ_GRID_F16 && (*code & 0x7fff) == 0x7c00) *code -= 1; /* saturates */
    *a = g->kind == LQ_GRID_F16 ? lq_f16_f32((uint16_t)*code) : g->kind == LQ_GRID_BF16 ? lq_bf16_f32((uint16_t)*code) : x;
}

void lq_round_unit(const lq_rounder *r, const float *x, uint32_t *code, float *a) {
    uint32_t unused;
    if (r->grid.kind == LQ_GRID_LUT && r->grid.bias == LQ_LUT_IQ4) halves_lanes(r, x, code, a);
    else if (r->grid.kind == LQ_GRID_LUT) table_lanes(r, x, code, a);
    else if (r->grid.kind < LQ_GRID_LUT) small_lanes(&r->grid, x, code, a);
    else
        for (int l = 0; l < LANES; l++) stored_float(&r->grid, x[l], code ? code + l : &unused, a + l);
}

LQ_CLONES static void int_lanes(const lq_rounder *r, const float *x, const float *scale, const float *zero, uint32_t *code, float *value) {
    float top = r->top, bias = (float)r->grid.bias;
    for (int l = 0; l < LANES; l++) {
        float lo = -bias - (zero ? zero[l] : 0), hi = lo + top, v = x[l] / scale[l];
        v = v > lo ? v : lo; /* NaN goes to lo */
        v = v < hi ? v : hi;
        v = lq_nearest_whole(v);
        code[l] = (uint32_t)(int32_t)(v - lo);
        value[l] = scale[l] * v;
    }
}

LQ_CLONES static void real_zero_lanes(const lq_rounder *r, const float *x, const float *scale, const float *zero, uint32_t *code, float *value) {
    float lo = -(float)r->grid.bias, hi = lo + r->top;
    bool min = r->zero_kind == LQ_ZERO_MIN;
    for (int l = 0; l < LANES; l++) {
        float v = min ? (x[l] + zero[l]) / scale[l] : x[l] / scale[l] + zero[l];
        v = v > lo ? v : lo;
        v = v < hi ? v : hi;
        v = lq_nearest_whole(v);
        code[l] = (uint32_t)(int32_t)(v - lo);
        value[l] = min ? scale[l] * v - zero[l] : scale[l] * (v - zero[l]);
    }
}

void lq_round_lanes(const lq_rounder *r, const float *x, const float *scale, const float *zero, uint32_t *code, float *value) {
    float unit[LANES];
    if (r->grid.kind == LQ_GRID_INT) {
        if (r->real_zero) real_zero_lanes(r, x, scale, zero, code, value);
        else int_lanes(r, x, scale, r->zero_kind ? zero : NULL, code, value);
        return;
    }
    if (r->grid.kind == LQ_GRID_LUT)
        for (int l = 0; l < LANES; l++) unit[l] = x[l] * (1 / scale[l]);
    else
        for (int l = 0; l < LANES; l++) unit[l] = x[l] / scale[l];
    lq_round_unit(r, unit, code, value);
    for (int l = 0; l < LANES; l++) value[l] *= scale[l];
}

/* ---- one weight ---- */

float lq_grid_top(const lq_scheme *s) {
    if (s->grid.kind == LQ_GRID_INT) return fmaxf((float)s->grid.bias, top_code(&s->grid) - (float)s->grid.bias);
    if (s->grid.kind == LQ_GRID_LUT) return s->grid.bias == LQ_LUT_DATA ? 0 : s->grid.bias == LQ_LUT_IQ4 ? 127 : s->grid.bias == LQ_LUT_QUAD ? 2 : 1;
    return s->grid.kind < LQ_GRID_LUT ? float_of(s->grid.kind).max : 1;
}

/* A rounder of the scheme alone: fixed tables need no tensor. */
static void scheme_rounder(lq_rounder *r, const lq_scheme *s, float lut[TABLE]) {
    lq_qtensor q = {.sch = *s, .rows = 1, .cols = 1, .n_lut = 1, .lut = lut};
    if (s->grid.kind == LQ_GRID_LUT) lq_lut_fill(&s->grid, lut);
    lq_rounder_init(r, &q, 0, 0);
}

uint32_t lq_grid_code(const lq_scheme *s, float w, float scale, float zero) {
    lq_rounder r;
    float lut[TABLE] = {0}, x[LANES], scales[LANES], zeros[LANES], value[LANES];
    uint32_t code[LANES];
    scheme_rounder(&r, s, lut);
    for (int l = 0; l < LANES; l++) x[l] = w, scales[l] = scale, zeros[l] = zero;
    lq_round_lanes(&r, x, scales, zeros, code, value);
    return code[0];
}

float lq_grid_weight(const lq_scheme *s, uint32_t code, float scale, float zero) {
    float lut[TABLE] = {0};
    lq_qtensor q = {.sch = *s, .rows = 1, .cols = 1, .n_lut = 1, .lut = lut};
    if (s->grid.kind == LQ_GRID_LUT) lq_lut_fill(&s->grid, lut);
    float a = lq_grid_value(&q, 0, code);
    return s->zero_kind == LQ_ZERO_MIN ? scale * a - zero : scale * (a - zero);
}

/* ---- a matrix ---- */

typedef struct round_job { lq_qtensor *q; const float *w; lq_rounder shared; } round_job;

/* A plane's values for columns [c, c + n) of a row, one per lane; c is a multiple of LANES. */
static void lane_plane(const lq_qtensor *q, const lq_plane_desc *d, const lq_plane *p, uint32_t r, uint32_t c, uint32_t n, float *v) {
    bool one = d->tile_c % LANES == 0 && (d->tile_r != LQ_FLAT || q->cols % LANES == 0);
    v[0] = lq_plane_get(d, p, lq_plane_index(d, q->cols, r, c));
    for (uint32_t l = 1; l < LANES; l++) v[l] = one || l >= n ? v[0] : lq_plane_get(d, p, lq_plane_index(d, q->cols, r, c + l));
}

static void put_codes(uint8_t *row, uint32_t bits, uint32_t c, uint32_t n, const uint32_t *code) {
    uint16_t narrow[LANES];
    for (uint32_t l = 0; l < n; l++) narrow[l] = (uint16_t)code[l];
    if (bits <= 16) lq_codes_pack(row + (size_t)c * bits / 8, bits, n, narrow); /* 16 codes begin and end at a byte */
    else memcpy(row + (size_t)c * 4, code, (size_t)n * 4);
}

static void round_row(void *arg, size_t r) {
    round_job *j = arg;
    lq_qtensor *q = j->q;
    const float *w = j->w + r * q->cols;
    const lq_scheme *s = &q->sch;
    lq_rounder own, *round = &j->shared;
    float scale[LANES], zero[LANES] = {0};
    for (int l = 0; l < LANES; l++) scale[l] = 1;
    if (q->n_lut > 1) lq_rounder_init(round = &own, q, (uint32_t)r, 0);
    for (uint32_t c = 0; c < q->cols; c += LANES) {
        uint32_t n = q->cols - c < LANES ? q->cols - c : LANES, code[LANES];
        float x[LANES] = {0}, value[LANES];
        memcpy(x, w + c, n * sizeof *x);
        if (s->scale.dtype != LQ_NONE) lane_plane(q, &s->scale, &q->scale, (uint32_t)r, c, n, scale);
        if (s->zero_kind != LQ_ZERO_NONE) lane_plane(q, &s->zero, &q->zero, (uint32_t)r, c, n, zero);
        lq_round_lanes(round, x, scale, zero, code, value);
        put_codes(q->codes + r * q->row_bytes, q->sch.grid.bits, c, n, code);
    }
}

void lq_grid_round(lq_qtensor *q, const float *w) {
    round_job j = {.q = q, .w = w};
    lq_rounder_init(&j.shared, q, 0, 0);
    lq_parallel_for(q->rows, round_row, &j);
}
