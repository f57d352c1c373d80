/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The packed layout: unpacking gives back every bit; each variant decodes the definition's bits, multiplies within its bound and
 * agrees with the others bit for bit on rounded activations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern.h"
#include "core/pack.h"
#include "kernels/ref/ref.h"
#include "kernels/spans.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 4 }; /* & 1: permuted; & 2: hostile values */

typedef void (*body)(const ck_probe *p, const lq_packed *m, const lq_qtensor *q, lq_rng *rng, bool hostile);

static lq_scheme bare(const ck_scheme *c, bool perm) {
    lq_scheme s = c->s;
    s.extra &= ~(uint32_t)LQ_X_PERM;
    if (perm) s.extra |= LQ_X_PERM;
    return s;
}

static void over_shapes(const ck_probe *p, lq_act act, body fn) {
    static const uint32_t heights[] = {1, 16, 37};
    lq_rng rng = ck_start(p->name);
    for (int round = 0; round < ROUNDS; round++)
        for (size_t i = 0; i < ck_n_widths; i++) {
            uint32_t cols = ck_widths[i], rows = cols > 1000 ? 17 : heights[(i + (size_t)round) % 3];
            lq_scheme s = bare(p->scheme, round & 1);
            lq_qtensor q;
            lq_packed m;
            if (act.kind) s.act = act;
            if (!ck_fits_cols(&s, cols) || !lq_packed_fits(&s, rows, cols)) continue;
            ck_fill(&q, &s, rows, cols, &rng, round > 1);
            lq_ctx ctx = {0};
            assert_int_equal(lq_pack(&ctx, &q, &m), LQ_OK);
            fn(p, &m, &q, &rng, round > 1);
            lq_packed_free(&m);
            lq_qtensor_free(&q);
        }
}

/* Bits behind the last column mean nothing and are not kept. */
static void clear_padding(const lq_qtensor *q) {
    uint16_t *code = ck_exact(2 * (size_t)q->cols);
    for (uint32_t r = 0; r < q->rows; r++) {
        uint8_t *row = q->codes + r * q->row_bytes;
        lq_codes_unpack(row, q->sch.grid.bits, q->cols, code);
        memset(row, 0, q->row_bytes);
        lq_codes_pack(row, q->sch.grid.bits, q->cols, code);
    }
    free(code);
}

static void unpacks(const ck_probe *p, const lq_packed *m, const lq_qtensor *q, lq_rng *rng, bool hostile) {
    lq_qtensor back;
    lq_ctx ctx = {0};
    (void)rng, (void)hostile;
    clear_padding(q);
    assert_int_equal(lq_unpack(&ctx, m, &back), LQ_OK);
    if (!lq_qtensor_eq(q, &back)) fail_msg("%s, %u x %u: unpacked differs", p->name, q->rows, q->cols);
    lq_qtensor_free(&back);
}

static void unpacking_gives_back_every_bit(void **state) { over_shapes(*state, (lq_act){0}, unpacks); }

static uint32_t rows_from(const lq_packed *m, uint32_t t0) { return m->q.rows - t0 * LQ_TILE; }

static void decodes(const ck_probe *p, const lq_packed *m, const lq_qtensor *q, lq_rng *rng, bool hostile) {
    uint32_t t0 = m->tiles - 1 - lq_rng_below(rng, m->tiles), rows = rows_from(m, t0);
    size_t n = (size_t)rows * q->cols;
    lq_qtensor plain = *q;
    float *want = ck_exact(4 * n), *got = ck_guarded(4 * n);
    (void)hostile;
    plain.sch.extra &= LQ_X_PERM;
    for (uint32_t r = 0; r < rows; r++) lq_qtensor_decode_row(&plain, t0 * LQ_TILE + r, want + (size_t)r * q->cols);
    p->v->k.packed_dequant(m, t0, m->tiles - t0, got);
    ck_same_bits(got, want, n, p->name, q->cols);
    ck_release(got, 4 * n);
    free(want);
}

/* Whole bytes and an F16 to every span of them: nothing wider is read for GGUF's K types. */
static void two_levels_stay_two_levels(void **state) {
    const ck_probe *p = *state;
    const lq_scheme *s = &p->scheme->s;
    enum { ROWS = 64, COLS = 2048 };
    lq_scheme one = *s;
    uint32_t planes = s->zero_kind == LQ_ZERO_MIN ? 2 : 1, seg = s->scale.tile_c;
    uint64_t codes = lq_packed_bytes(s, ROWS, COLS), weights = (uint64_t)ROWS * COLS;
    one.scale = one.zero = (lq_plane_desc){0};
    one.zero_kind = LQ_ZERO_NONE;
    codes -= lq_packed_bytes(&one, ROWS, COLS);
    assert_int_equal(codes, planes * (weights / seg + 2 * weights / seg / s->scale.span));
}

static void packed_dequant_is_the_definition(void **state) { over_shapes(*state, (lq_act){0}, decodes); }

/* A lane adds up to two hundred and fifty-six products at a time, and then their sums; a segment ends with one scaled sum. */
static double factor(const lq_packed *m) { return 256 + m->q.cols / 256.0 + 3.0 * m->segs + 12; }

static void one_product(const ck_probe *p, const lq_packed *m, uint32_t r, const float *x, float got) {
    bool min = m->q.sch.zero_kind == LQ_ZERO_MIN;
    double sum = 0, mass = 0;
    for (uint32_t c = 0; c < m->q.cols; c++) {
        double a = lq_grid_value(&m->q, r, lq_packed_code(m, r, c)), s = lq_packed_scale(m, r, c / m->seg), z = lq_packed_zero(m, r, c / m->seg), v = x[c];
        sum += (min ? a * s - z : (a - z) * s) * v;
        mass += (fabs(a * s) + fabs(min ? z : z * s)) * fabs(v) + fabs(s) * FLT_MIN / 2; /* A x may be subnormal before it is scaled */
    }
    ck_near_exact(p, got, sum, mass, strcmp(p->v->name, "c") ? factor(m) : 1.01, m->q.cols);
}

static void multiplies(const ck_probe *p, const lq_packed *m, const lq_qtensor *q, lq_rng *rng, bool hostile) {
    uint32_t n = 1 + lq_rng_below(rng, q->cols > 300 ? 2 : 11), t0 = m->tiles - 1 - lq_rng_below(rng, m->tiles), rows = q->rows;
    size_t ny = (size_t)n * rows, at = (size_t)t0 * LQ_TILE;
    float *x = ck_exact(4 * (size_t)n * q->cols), *y = ck_guarded(4 * (ny - at));
    void *scratch = lq_alloc(lq_packed_x_bytes(m, n));
    assert_non_null(scratch);
    ck_floats(x, (size_t)n * q->cols, rng, hostile);
    lq_packed_x px = lq_packed_x_make(m, x, n, scratch);
    p->v->k.packed_gemv(m, t0, m->tiles - t0, &px, y - at, rows); /* rows of the first token before t0 lie before y: not to be touched */
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t r = (uint32_t)at; r < rows; r++) one_product(p, m, r, px.x + (size_t)t * lq_packed_ld(m), y[(size_t)t * rows + r - at]);
    ck_release(y, 4 * (ny - at));
    lq_free(scratch);
    free(x);
}

static void packed_gemv_is_within_its_bound(void **state) {
    const ck_probe *p = *state;
    ck_worst = 0;
    over_shapes(p, (lq_act){0}, multiplies);
    print_message("    %s: worst error %.2f eps sum|wx|\n", p->name, ck_worst);
}

static void fill_codes(float *code, size_t n, lq_rng *rng, bool extreme) {
    for (size_t i = 0; i < n; i++) code[i] = extreme ? (lq_rng_below(rng, 2) ? 127.0f : -127.0f) : (float)((int)lq_rng_below(rng, 255) - 127);
}

static void multiplies_whole(const ck_probe *p, const lq_packed *m, const lq_qtensor *q, lq_rng *rng, bool hostile) {
    uint32_t n = 1 + lq_rng_below(rng, q->cols > 600 ? 3 : lq_spans_whole(m) ? 12 : q->cols > 300 ? 3 : 70), t0 = m->tiles - 1 - lq_rng_below(rng, m->tiles), tile = q->sch.act.tile;
    uint32_t tiles = tile ? (q->cols + tile - 1) / tile : 1;
    size_t na = (size_t)n * (m->tiles - t0) * LQ_TILE;
    float *code = ck_exact(4 * (size_t)n * q->cols), *step = ck_exact(4 * (size_t)n * tiles);
    double *want = ck_exact(8 * na), *got = ck_guarded(8 * na);
    void *scratch = lq_alloc(lq_packed_i_bytes(m, n));
    assert_non_null(scratch);
    fill_codes(code, (size_t)n * q->cols, rng, hostile);
    ck_floats(step, (size_t)n * tiles, rng, hostile);
    lq_packed_i x = lq_packed_i_make(m, code, step, n, scratch);
    lq_packed_idot_c(m, t0, m->tiles - t0, &x, want);
    p->v->k.packed_idot(m, t0, m->tiles - t0, &x, got);
    for (size_t i = 0; i < na; i++) {
        if (memcmp(got + i, want + i, 8) && !(isnan(got[i]) && isnan(want[i])))
            fail_msg("%s, %u x %u x %u: element %zu is %a, the definition says %a", p->name, q->rows, q->cols, n, i, got[i], want[i]);
        if (!isnan(got[i])) ck_note(got + i, 8);
    }
    ck_release(got, 8 * na);
    lq_free(scratch);
    free(want);
    free(step);
    free(code);
}

static void packed_idot_has_the_bits_of_c(void **state) {
    over_shapes(*state, (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8}, multiplies_whole);
    over_shapes(*state, (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .tile = 128}, multiplies_whole);
    over_shapes(*state, (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .tile = 256}, multiplies_whole);
}

static double byte_at(const lq_plane_desc *d, const lq_plane *p, size_t i) { return d->dtype == LQ_I8 ? (double)((const int8_t *)p->v)[i] : (double)((const uint8_t *)p->v)[i]; }
static double half_at(const lq_plane *p, size_t i) { return (double)lq_f16_f32(((const uint16_t *)p->parent)[i]); }

static double sum_of(const float *v, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += (double)v[i];
    return sum;
}

/* A row by whole spans, read off the qtensor's own planes. */
static double by_spans(const lq_packed *m, const lq_qtensor *q, uint32_t r, const float *code) {
    const lq_scheme *s = &q->sch;
    uint32_t seg = s->scale.tile_c, span = s->scale.span, segs = q->cols / seg;
    double total = 0;
    assert_int_equal(m->seg, seg);
    for (uint32_t g = 0; g < segs; g += span) {
        double whole = 0, zero = 0;
        for (uint32_t k = g; k < g + span; k++) {
            whole += byte_at(&s->scale, &q->scale, (size_t)r * segs + k) * (double)lq_codes_dot_c(q, r, k * seg, seg, code);
            if (s->zero_kind) zero += byte_at(&s->zero, &q->zero, (size_t)r * segs + k) * sum_of(code + k * seg, seg);
        }
        whole *= half_at(&q->scale, ((size_t)r * segs + g) / span);
        total += s->zero_kind ? whole - half_at(&q->zero, ((size_t)r * segs + g) / span) * zero : whole;
    }
    return total;
}

/* The C code itself, segment by segment against whole numbers of the qtensor. */
static void sums_are_whole(const ck_probe *p, const lq_packed *m, const lq_qtensor *q, lq_rng *rng, bool hostile) {
    float *code = ck_exact(4 * (size_t)q->cols), step = 1;
    double *acc = ck_guarded(8 * (size_t)m->tiles * LQ_TILE);
    void *scratch = lq_alloc(lq_packed_i_bytes(m, 1));
    assert_non_null(scratch);
    fill_codes(code, q->cols, rng, hostile);
    lq_packed_i x = lq_packed_i_make(m, code, &step, 1, scratch);
    lq_packed_idot_c(m, 0, m->tiles, &x, acc);
    for (uint32_t r = 0; r < q->rows; r++) {
        double sum = lq_spans_whole(m) ? by_spans(m, q, r, code) : 0;
        for (uint32_t g = 0; !lq_spans_whole(m) && g < m->segs; g++) {
            uint32_t c0 = g * m->seg, n = q->cols - c0 < m->seg ? q->cols - c0 : m->seg;
            double s = (double)lq_packed_scale(m, r, g), z = (double)lq_packed_zero(m, r, g), ones = 0;
            for (uint32_t c = c0; c < c0 + n; c++) ones += (double)code[c];
            if (q->sch.zero_kind == LQ_ZERO_CODE) z *= s;
            sum += s * (double)lq_codes_dot_c(q, r, c0, n, code) - z * ones;
        }
        if (memcmp(acc + r, &sum, 8) && !isnan(sum)) fail_msg("%s, cols %u: row %u is %a, expected %a", p->name, q->cols, r, acc[r], sum);
    }
    ck_release(acc, 8 * (size_t)m->tiles * LQ_TILE);
    lq_free(scratch);
    free(code);
}

static void packed_idot_sums_whole_numbers(void **state) { over_shapes(*state, (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8}, sums_are_whole); }

/* ---- activations in digits ---- */

typedef struct digits { float *x; void *scratch; lq_packed_d d; } digits;

static digits digits_of(const ck_probe *p, const lq_packed *m, uint32_t n, lq_rng *rng, bool hostile) {
    digits v = {.x = ck_exact(4 * (size_t)n * m->q.cols), .scratch = lq_alloc(lq_packed_d_bytes(m, n))};
    assert_non_null(v.scratch);
    ck_floats(v.x, (size_t)n * m->q.cols, rng, hostile);
    v.d = lq_packed_d_make(m, p->v->k.digits, v.x, n, v.scratch);
    return v;
}
static void digits_free(digits *v) { lq_free(v->scratch), free(v->x); }

static void multiplies_digits(const ck_probe *p, const lq_packed *m, const lq_qtensor *q, lq_rng *rng, bool hostile) {
    uint32_t n = 1 + lq_rng_below(rng, 3), t0 = m->tiles - 1 - lq_rng_below(rng, m->tiles), rows = q->rows;
    if (lq_packed_whole(m) <= 0) return;
    size_t at = (size_t)t0 * LQ_TILE, ny = (size_t)n * rows - at;
    digits v = digits_of(p, m, n, rng, hostile);
    float *want = lq_calloc(ny, 4), *got = ck_guarded(4 * ny);
    assert_non_null(want);
    lq_packed_digits_c(m, t0, m->tiles - t0, &v.d, want - at, rows);
    p->v->k.packed_digits(m, t0, m->tiles - t0, &v.d, got - at, rows);
    for (uint32_t t = 0; t < n; t++) ck_same_bits(got + (size_t)t * rows, want + (size_t)t * rows, rows - at, p->name, q->cols);
    ck_release(got, 4 * ny);
    lq_free(want);
    digits_free(&v);
}

static void packed_digits_has_the_bits_of_c(void **state) { over_shapes(*state, (lq_act){0}, multiplies_digits); }

/* The definition itself: every operation rounds once, and what the digits leave out of x is at most half a step. */
static void digits_are_near(const ck_probe *p, const lq_packed *m, const lq_qtensor *q, lq_rng *rng, bool hostile) {
    bool min = q->sch.zero_kind == LQ_ZERO_MIN;
    if (lq_packed_whole(m) <= 0) return;
    digits v = digits_of(p, m, 1, rng, hostile);
    float *y = ck_exact(4 * (size_t)q->rows);
    lq_packed_digits_c(m, 0, m->tiles, &v.d, y, q->rows);
    for (uint32_t r = 0; r < q->rows; r++) {
        double sum = 0, mass = 0, rest = 0;
        for (uint32_t b = 0, c; b < v.d.blocks; b++) {
            uint32_t end = lq_packed_block(m, v.d.per, b, &c);
            double s = lq_packed_scale(m, r, c / m->seg), z = lq_packed_zero(m, r, c / m->seg);
            for (uint32_t i = c; i < end; i++) {
                double x = v.x[q->perm ? q->perm[i] : i], a = lq_grid_value(&m->q, r, lq_packed_code(m, r, i)), w = fabs(a * s) + fabs(min ? z : z * s);
                sum += (min ? a * s - z : (a - z) * s) * x;
                mass += w * fabs(x) + fabs(s) * FLT_MIN / 2;
                rest += w * (double)v.d.step[b] / 2;
            }
        }
        double bound = (3 + 3.0 * v.d.blocks) * FLT_EPSILON * mass + rest + q->cols * 0x1p-149;
        if (mass < FLT_MAX && !(fabs((double)y[r] - sum) <= bound)) fail_msg("%s, cols %u: %.9g, want %.9g within %.3g", p->name, q->cols, (double)y[r], sum, bound);
        if (mass > 1e-30) ck_worst = fmax(ck_worst, fabs((double)y[r] - sum) / (FLT_EPSILON / 2 * mass));
    }
    free(y);
    digits_free(&v);
}

static void packed_digits_is_within_its_bound(void **state) {
    const ck_probe *p = *state;
    ck_worst = 0;
    over_shapes(p, (lq_act){0}, digits_are_near);
    print_message("    %s: worst error %.2f eps sum|wx|\n", p->name, ck_worst);
}

static void rest_is_small(const float *x, uint32_t n, float step) {
    double sum = 0, most = 0, others = -1;
    for (uint32_t i = 0; i < n; i++) {
        sum += fabs((double)x[i]);
        most = fmax(most, fabs((double)x[i]));
        others += x[i] != 0;
    }
    assert_true(others < 1 || (double)step / 2 <= 0x1.01p-16 * (sum - most) / others);
}

static void digits_have_the_bits_of_c(void **state) {
    enum { MOST = LQ_DIGIT_BLOCK + 48 };
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    for (int round = 0; round < 400; round++) {
        uint32_t n = 16 + 16 * lq_rng_below(&rng, MOST / 16);
        float *x = ck_exact(4 * (size_t)n), want_step, step, most = 0;
        int8_t *want = ck_exact((size_t)4 * n), *got = ck_guarded((size_t)4 * n);
        int32_t want_sum[LQ_DIGITS], sum[LQ_DIGITS];
        ck_floats(x, n, &rng, round & 1);
        for (uint32_t i = 0; i < n; i++) x[i] = ldexpf(x[i], round % 7 * 40 - 120);
        if (round % 29 == 1) x[lq_rng_below(&rng, n)] = round % 2 ? INFINITY : NAN;
        if (round % 5 == 1) x[0] = ldexpf(0x1.fffffep0f - (float)lq_rng_below(&rng, 256) * 0x1p-20f, round % 100); /* near the next step */
        bool want_near = lq_digits_c(x, n, want, want_sum, &want_step), near = p->v->k.digits(x, n, got, sum, &step);
        assert_int_equal(near, want_near);
        ck_same_bits(&step, &want_step, 1, p->name, n);
        assert_memory_equal(got, want, (size_t)4 * n);
        assert_memory_equal(sum, want_sum, sizeof sum);
        for (uint32_t i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
        for (uint32_t i = 0; i < n && !isnan(step); i++) {
            const int8_t *four = got + i / 4 * 16 + i % 4;
            double back = (double)step * (65536.0 * four[0] + 256.0 * four[4] + four[8]);
            assert_true(fabs(back - (double)x[i]) <= (double)step / 2);
        }
        assert_true(near || isnan(step) || round & 1 || round % 5 == 1 || most < 0x1p-80f);
        if (near) rest_is_small(x, n, step);
        assert_true(isnan(step) || (double)step <= fmax(0x1.02p-22 * (double)most, 0x1p-126));
        ck_release(got, (size_t)4 * n);
        free(want), free(x);
    }
}

static bool in_digits(const lq_scheme *s) { return (s->grid.kind == LQ_GRID_INT || s->grid.kind == LQ_GRID_E2M1 || s->grid.kind == LQ_GRID_LUT); }

static bool whole(const lq_scheme *s) {
    lq_scheme a = *s;
    a.act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8};
    return lq_packed_fits(&a, 16, 3840); /* a multiple of the tiles in use */
}

void ck_packed_add(const ck_variant *v) {
    const lq_kernels *k = &v->k, *b = &v->below;
    if (k->digits != b->digits || !strcmp(v->name, "c")) ck_add(digits_have_the_bits_of_c, "digits", v, NULL, LQ_NONE);
    for (const ck_scheme *s = ck_all_schemes(); s->name; s++) {
        if (!lq_packed_fits(&s->s, 16, 3840)) continue;
        if (!strcmp(v->name, "c") && s->s.scale.parent == LQ_F16 && s->s.scale.tile_r == 1) ck_add(two_levels_stay_two_levels, "two_levels", v, s, LQ_NONE);
        if (!strcmp(v->name, "c")) ck_add(unpacking_gives_back_every_bit, "unpack", v, s, LQ_NONE);
        if (!strcmp(v->name, "c") && whole(&s->s)) ck_add(packed_idot_sums_whole_numbers, "whole_sums", v, s, LQ_NONE);
        if (in_digits(&s->s) && !strcmp(v->name, "c")) ck_add(packed_digits_is_within_its_bound, "packed_digits", v, s, LQ_NONE);
        if (in_digits(&s->s) && k->packed_digits != b->packed_digits && strcmp(v->name, "c")) ck_add(packed_digits_has_the_bits_of_c, "packed_digits", v, s, LQ_NONE);
        if (k->packed_dequant != b->packed_dequant) ck_add(packed_dequant_is_the_definition, "packed_dequant", v, s, LQ_NONE);
        if (k->packed_gemv != b->packed_gemv) ck_add(packed_gemv_is_within_its_bound, "packed_gemv", v, s, LQ_NONE);
        if (k->packed_idot != b->packed_idot && whole(&s->s) && strcmp(v->name, "c")) ck_add(packed_idot_has_the_bits_of_c, "packed_idot", v, s, LQ_NONE);
    }
}
