/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Every named type through the one fitter, the one rounder and GPTQ's loop: the table of types is walked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/thread.h"
#include "matrices.h"
#include "quant/gptq_solve.h"
#include "quant/grid.h"
#include "quant/types.h"
#include "textbook.h"

#include <stdio.h>
#include <string.h>

static const lq_slot nowhere = {0};

/* Calls fn for every type that has codes to choose, integers also with whole and real zero points; groups of 32; cols, or 256 where they
 * are no whole blocks. */
static void each_type(uint32_t cols, void (*fn)(const lq_scheme *s, const char *name, uint32_t cols)) {
    static const char *const zeros[] = {"", "-asym", "-fz"};
    lq_type_defaults d = {.group = 0};
    for (const lq_type *t = lq_types; t->name; t++)
        for (int z = 0; z < 3 && (!z || t->knobs & LQ_TYPE_SYM) && !t->keep; z++) {
            char name[64];
            lq_want w;
            snprintf(name, sizeof name, "%s%s", t->name, zeros[z]);
            assert_int_equal(lq_type_parse(NULL, name, &d, &w), LQ_OK);
            if (w.open) lq_want_group(&w, 32);
            if (w.scheme.grid.kind == LQ_GRID_F32) continue;
            uint32_t width = lq_grid_accept(NULL, &w.scheme, cols) ? 256 : cols;
            assert_int_equal(lq_grid_accept(NULL, &w.scheme, width), LQ_OK);
            fn(&w.scheme, name, width);
        }
}

static lq_qtensor fitted(const lq_scheme *s, const float *w, const float *h, uint32_t rows, uint32_t cols, lq_fit how) {
    lq_qtensor q;
    assert_int_equal(lq_qtensor_init(NULL, &q, s, nowhere, rows, cols), LQ_OK);
    assert_int_equal(lq_grid_fit(NULL, &q, w, h, how), LQ_OK);
    lq_grid_round(&q, w);
    return q;
}

static double weighted_error(const lq_qtensor *q, const float *w, const float *h) {
    double sum = 0;
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) {
            double d = (double)w[(size_t)r * q->cols + c] - (double)lq_qtensor_code_weight(q, r, c);
            sum += (h ? (double)h[c] : 1) * d * d;
        }
    return sum;
}

static float scale_at(const lq_qtensor *q, size_t i) { return lq_plane_get(&q->sch.scale, &q->scale, i); }

static lq_scheme type_of(const char *name) {
    lq_type_defaults d = {0};
    lq_want w;
    assert_int_equal(lq_type_parse(NULL, name, &d, &w), LQ_OK);
    return w.scheme;
}

/* ---- grids ---- */

/* Nearest of all finite codes by exhaustion; a tie goes to the even mantissa; beyond the largest to the largest. */
static uint32_t slow_nearest(const lq_scheme *s, float x) {
    uint32_t best = 0, half = 1u << (s->grid.bits - 1);
    double least = HUGE_VAL;
    for (uint32_t code = 0; code < half; code++) {
        double v = (double)lq_grid_weight(s, code, 1, 0), d = fabs(fabs((double)x) - v);
        if (isfinite(v) && (d < least || (d == least && code % 2 == 0))) best = code, least = d;
    }
    return x < 0 && best ? best | half : best;
}

static void small_floats_take_every_half_to_the_nearest_even(void **state) {
    (void)state;
    static const lq_grid grids[] = {{LQ_GRID_E2M1, 4, 1, 0}, {LQ_GRID_E3M2, 6, 1, 0}, {LQ_GRID_E4M3, 8, 1, 0}, {LQ_GRID_E5M2, 8, 1, 0}};
    for (int g = 0; g < 4; g++) {
        lq_scheme s = {.grid = grids[g]};
        for (uint32_t h = 0; h < 65536; h++) {
            float x = lq_f16_f32((uint16_t)h);
            if (isnan(x)) continue;
            uint32_t want = isinf(x) ? slow_nearest(&s, x > 0 ? 65504 : -65504) : slow_nearest(&s, x);
            if (lq_grid_code(&s, x, 1, 0) != want) fail_msg("grid %d: %a becomes code %u, not %u", (int)grids[g].kind, (double)x, lq_grid_code(&s, x, 1, 0), want);
        }
        float last = -HUGE_VALF; /* monotone, also between the halves */
        for (float x = -70000; x < 70000; x += x < -300 || x > 300 ? 37.7f : 0.0173f) {
            float v = lq_grid_weight(&s, lq_grid_code(&s, x, 1, 0), 1, 0);
            assert_true(v >= last && fabsf(v) <= lq_grid_top(&s));
            last = v;
        }
    }
    lq_scheme e4m3 = {.grid = {LQ_GRID_E4M3, 8, 1, 0}};
    assert_int_equal(lq_grid_code(&e4m3, HUGE_VALF, 1, 0), 0x7e);
    for (uint32_t h = 0; h < 65536; h++) { /* the arithmetic is that of core/num */
        float x = lq_f16_f32((uint16_t)h);
        if (!isnan(x)) assert_true(lq_grid_weight(&e4m3, lq_grid_code(&e4m3, x, 1, 0), 1, 0) == lq_e4m3_f32(lq_f32_e4m3(x)));
    }
}

static void tables_take_every_half_to_the_nearest_value(void **state) {
    (void)state;
    for (int id = LQ_LUT_NF4; id < LQ_LUT_N; id++) {
        lq_scheme s = {.grid = {LQ_GRID_LUT, id == LQ_LUT_SIGN ? 1 : id == LQ_LUT_QUAD ? 2 : 4, 1, id}};
        for (uint32_t h = 0; h < 65536; h++) {
            float x = lq_f16_f32((uint16_t)h);
            if (!isfinite(x)) continue;
            double d = fabs((double)x - (double)lq_grid_weight(&s, lq_grid_code(&s, x, 1, 0), 1, 0));
            for (uint32_t code = 0; code < 1u << s.grid.bits; code++) assert_true(d <= fabs((double)x - (double)lq_grid_weight(&s, code, 1, 0)) * (1 + 1e-6));
        }
    }
}

static const float nf4_values[16] = {-1, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0,
                                     0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f, 1};
static const float fp4_twelfths[8] = {0, 0.0625f, 8, 12, 4, 6, 2, 3}, e2m1_values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

static void every_code_means_what_its_format_says_and_rounds_to_itself(void **state) {
    (void)state;
    lq_scheme nf4 = type_of("NF4"), fp4 = type_of("FP4"), e2m1 = type_of("MXFP4"), sign = type_of("binary"), ternary = type_of("ternary"), e4m3 = type_of("FP8-W");
    for (uint32_t i = 0; i < 16; i++) {
        float minus = i & 8 ? -1 : 1;
        assert_true(fabsf(lq_grid_weight(&nf4, i, 1, 0) - nf4_values[i]) < 1e-7f);
        assert_true(fabsf(lq_grid_weight(&fp4, i, 1, 0) - minus * fp4_twelfths[i & 7] / 12) < 1e-7f);
        assert_true(lq_grid_weight(&e2m1, i, 1, 0) == minus * e2m1_values[i & 7]);
    }
    for (uint32_t i = 0; i < 3; i++) assert_true(lq_grid_weight(&ternary, i, 1, 0) == (float)i - 1);
    for (uint32_t i = 0; i < 2; i++) assert_true(lq_grid_weight(&sign, i, 1, 0) == (i ? 1 : -1));
    const lq_scheme *all[] = {&nf4, &fp4, &e2m1, &sign, &ternary, &e4m3};
    for (int k = 0; k < 6; k++)
        for (uint32_t i = 0; i < (k == 4 ? 3 : 1u << all[k]->grid.bits); i++) {
            float v = lq_grid_weight(all[k], i, 0.25f, 0);
            if (isnan(v)) continue;
            uint32_t back = lq_grid_code(all[k], v, 0.25f, 0);
            assert_true(v == 0 ? lq_grid_weight(all[k], back, 1, 0) == 0 && !signbit(lq_grid_weight(all[k], back, 1, 0)) : back == i); /* -0 becomes +0 */
        }
    for (float x = -9; x < 9; x += 0.01f) assert_true(lq_grid_code(&ternary, x, 1, 0) <= 2);
}

/* ---- planes ---- */

static void blocks_take_the_absmax_of_their_own_weights(void **state) {
    (void)state;
    enum { ROWS = 150, COLS = 141 }; /* edges in both directions; blocks of 64 straddle rows and the last has 30 */
    float *w = random_weights(1, ROWS, COLS);
    lq_scheme nf4 = type_of("NF4"), block = type_of("FP8-block"), tensor = type_of("FP8-tensor");
    lq_qtensor a = fitted(&nf4, w, NULL, ROWS, COLS, LQ_FIT_MINMAX), b = fitted(&block, w, NULL, ROWS, COLS, LQ_FIT_MINMAX), t = fitted(&tensor, w, NULL, ROWS, COLS, LQ_FIT_MINMAX);
    float flat[(ROWS * COLS + 63) / 64] = {0}, tile[4] = {0}, all = 0;
    assert_int_equal(lq_plane_count(&nf4.scale, ROWS, COLS), sizeof flat / sizeof *flat);
    for (uint32_t i = 0; i < ROWS * COLS; i++) {
        uint32_t r = i / COLS, c = i % COLS;
        flat[i / 64] = fmaxf(flat[i / 64], fabsf(w[i]));
        tile[r / 128 * 2 + c / 128] = fmaxf(tile[r / 128 * 2 + c / 128], fabsf(w[i]));
        all = fmaxf(all, fabsf(w[i]));
    }
    for (size_t i = 0; i < sizeof flat / sizeof *flat; i++) assert_true(scale_at(&a, i) == flat[i]);
    for (size_t i = 0; i < 4; i++) assert_true(scale_at(&b, i) == tile[i] / 448);
    assert_true(scale_at(&t, 0) == all / 448);
    for (uint32_t i = 0; i < ROWS * COLS; i++) /* half the widest gap of the table */
        assert_true(fabsf(lq_qtensor_code_weight(&a, i / COLS, i % COLS) - w[i]) <= 0.1520f * flat[i / 64]);
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
    lq_qtensor_free(&t);
    lq_free(w);
}

static void powers_of_two_follow_the_rule_of_the_standard(void **state) {
    (void)state;
    enum { COLS = 32 * 40 };
    float *w = random_weights(2, 1, COLS);
    for (uint32_t i = 0; i < COLS; i++) w[i] = ldexpf(w[i], (int)(i / 32) - 20);
    lq_scheme s = type_of("MXFP4");
    lq_qtensor q = fitted(&s, w, NULL, 1, COLS, LQ_FIT_MINMAX);
    for (uint32_t k = 0; k < COLS / 32; k++) {
        float most = 0;
        for (uint32_t i = 32 * k; i < 32 * k + 32; i++) most = fmaxf(most, fabsf(w[i]));
        assert_true(scale_at(&q, k) == exp2f(floorf(log2f(most)) - 2));
    }
    lq_qtensor_free(&q);
    lq_free(w);
}

static void the_second_level_is_that_of_the_fused_matrices(void **state) {
    (void)state;
    enum { ROWS = 8, COLS = 64 };
    float *w = random_weights(3, ROWS, COLS), most = 0;
    lq_scheme s = type_of("NVFP4");
    for (uint32_t i = 0; i < ROWS * COLS; i++) most = fmaxf(most, fabsf(w[i]));
    for (int fused = 0; fused < 2; fused++) {
        lq_qtensor q;
        float top = fused ? 3 * most : most, parent = exp2f(ceilf(log2f(top / (6 * 448)))); /* a power of two */
        assert_int_equal(lq_qtensor_init(NULL, &q, &s, nowhere, ROWS, COLS), LQ_OK);
        lq_grid_fuse(&q, fused ? top : 0);
        assert_int_equal(lq_grid_fit(NULL, &q, w, NULL, LQ_FIT_MINMAX), LQ_OK);
        assert_true(*(float *)q.scale.parent == parent);
        for (uint32_t k = 0; k < ROWS * COLS / 16; k++) {
            float block = 0;
            for (uint32_t i = 16 * k; i < 16 * k + 16; i++) block = fmaxf(block, fabsf(w[i]));
            assert_int_equal(((uint8_t *)q.scale.v)[k], lq_f32_e4m3(block / 6 / parent));
        }
        lq_qtensor_free(&q);
    }
    lq_free(w);
}

static void block_scales_are_coded_about_their_mean(void **state) {
    (void)state;
    enum { ROWS = 200, COLS = 160 }; /* 500 blocks: one span of 256 and a shorter one */
    float *w = random_weights(4, ROWS, COLS);
    lq_scheme one = type_of("NF4"), two = type_of("NF4-DQ");
    lq_qtensor a = fitted(&one, w, NULL, ROWS, COLS, LQ_FIT_MINMAX), b = fitted(&two, w, NULL, ROWS, COLS, LQ_FIT_MINMAX);
    const float *map = b.scale.lut;
    double mean = 0;
    assert_non_null(map);
    for (int i = 1; i < 256; i++) assert_true(map[i] > map[i - 1]);
    assert_true(map[255] == 1 && map[127] == 0 && map[0] == -map[254]);
    for (size_t i = 0; i < 500; i++) mean += (double)scale_at(&a, i) / 500;
    assert_true(fabs(b.scale.offset - mean) < 1e-7);
    for (size_t i = 0; i < 500; i++) { /* no wider than half a step of the map at 1 */
        float parent = ((float *)b.scale.parent)[i / 256];
        assert_true(fabsf(scale_at(&a, i) - scale_at(&b, i)) <= 0.008f * parent);
    }
    assert_true(weighted_error(&b, w, NULL) < 1.01 * weighted_error(&a, w, NULL));
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
    lq_free(w);
}

/* ---- every type ---- */

static void check_search(const lq_scheme *s, const char *name, uint32_t cols) {
    enum { ROWS = 33 };
    float *w = random_weights(5, ROWS, cols), h[256 + 96];
    lq_rng rng;
    lq_rng_seed(&rng, 5, 5);
    for (uint32_t c = 0; c < cols; c++) h[c] = c == 7 ? 0 : expf(2 * lq_rng_normal(&rng));
    for (int weighted = 0; weighted < 2; weighted++) {
        double err[3];
        for (int how = LQ_FIT_MINMAX; how <= LQ_FIT_SEARCH_SIGNED; how++) {
            lq_qtensor q = fitted(s, w, weighted ? h : NULL, ROWS, cols, (lq_fit)how);
            err[how] = weighted_error(&q, w, weighted ? h : NULL);
            for (size_t i = 0; i < lq_plane_count(&s->scale, ROWS, cols); i++) {
                float v = scale_at(&q, i);
                assert_true(isfinite(v) && fabsf(v) >= 0x1p-126f && (how == LQ_FIT_SEARCH_SIGNED || v > 0));
            }
            lq_qtensor_free(&q);
        }
        if (!(err[1] <= err[0] * 1.00001 && err[2] <= err[0] * 1.00001)) fail_msg("%s: %g by search, %g signed, %g by min-max", name, err[1], err[2], err[0]);
        if (s->scale.dtype != LQ_NONE && s->grid.bits <= 4 && weighted && !(err[1] < (s->grid.bits > 1 ? 0.95 : 0.97) * err[0])) fail_msg("%s: the search gains nothing: %g, %g", name, err[1], err[0]);
    }
    lq_free(w);
}

static void a_search_is_never_worse_than_min_max_on_any_type(void **state) {
    (void)state;
    each_type(96, check_search);
}

static void check_zeros(const lq_scheme *s, const char *name, uint32_t cols) {
    enum { ROWS = 3 };
    float *w = lq_calloc((size_t)ROWS * cols, sizeof *w);
    for (int part = 0; part < 2; part++) { /* all zero; the last row not */
        for (int how = LQ_FIT_MINMAX; how <= LQ_FIT_SEARCH_SIGNED; how++) {
            lq_qtensor q = fitted(s, w, NULL, ROWS, cols, (lq_fit)how);
            bool together = s->scale.tile_r == 0 || (s->scale.tile_r > 1 && s->scale.tile_r != LQ_FLAT);
            for (uint32_t r = 0; r < 2; r++)
                for (uint32_t c = 0; c < cols; c++) {
                    float v = lq_qtensor_code_weight(&q, r, c);
                    if (v != 0 && !(part && together && s->grid.bits < 8)) fail_msg("%s: a zero among zeros becomes %g", name, (double)v);
                }
            lq_qtensor_free(&q);
        }
        for (uint32_t c = 0; c < cols; c++) w[2 * cols + c] = 0.01f * ((float)(c % 13) - 6);
    }
    lq_free(w);
}

static void zeros_stay_zeros_on_every_type(void **state) {
    (void)state;
    each_type(192, check_zeros);
}

static void check_threads(const lq_scheme *s, const char *name, uint32_t cols) {
    enum { ROWS = 301 }; /* more than is copied at once where the tile is the matrix */
    float *w = random_weights(6, ROWS, cols);
    lq_threads_set(1);
    lq_qtensor a = fitted(s, w, NULL, ROWS, cols, LQ_FIT_SEARCH_SIGNED);
    lq_threads_set(3);
    lq_qtensor b = fitted(s, w, NULL, ROWS, cols, LQ_FIT_SEARCH_SIGNED);
    lq_threads_set(0);
    if (!lq_qtensor_eq(&a, &b)) fail_msg("%s: threads change the bits", name);
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
    lq_free(w);
}

static void threads_change_no_bit_of_any_type(void **state) {
    (void)state;
    each_type(288, check_threads);
}

static void a_matrix_in_parts_is_fitted_like_one_that_is_copied(void **state) {
    (void)state;
    enum { ROWS = 128, COLS = 1024 };
    float *w = random_weights(7, ROWS, COLS);
    lq_scheme tensor = type_of("FP8-tensor"), rows = tensor;
    rows.scale = (lq_plane_desc){.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = ROWS * COLS / 2};
    lq_qtensor a = fitted(&tensor, w, NULL, ROWS / 2, COLS, LQ_FIT_SEARCH), b = fitted(&rows, w, NULL, ROWS, COLS, LQ_FIT_SEARCH);
    float whole = scale_at(&a, 0); /* 65536 weights are copied */
    assert_true(fabsf(whole - scale_at(&b, 0)) <= 1e-5f * whole);
    lq_qtensor_free(&a);
    a = fitted(&tensor, w, NULL, ROWS, COLS, LQ_FIT_MINMAX); /* 131072 are walked */
    lq_qtensor c = fitted(&tensor, w, NULL, ROWS, COLS, LQ_FIT_SEARCH);
    assert_true(weighted_error(&c, w, NULL) <= weighted_error(&a, w, NULL));
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
    lq_qtensor_free(&c);
    lq_free(w);
}

static void check_finite(const lq_scheme *s, const char *name, uint32_t cols) {
    enum { ROWS = 2 };
    const float bad[] = {NAN, HUGE_VALF, -HUGE_VALF};
    float *w = random_weights(8, ROWS, cols);
    if (s->scale.dtype == LQ_NONE) { /* nothing is fitted */
        lq_free(w);
        return;
    }
    for (int i = 0; i < 3; i++) {
        lq_ctx ctx = {0};
        lq_qtensor q;
        w[130] = bad[i];
        assert_int_equal(lq_qtensor_init(NULL, &q, s, nowhere, ROWS, cols), LQ_OK);
        if (lq_grid_fit(&ctx, &q, w, NULL, LQ_FIT_SEARCH) != LQ_ERR_FORMAT || !strstr(ctx.msg, "finite")) fail_msg("%s takes %g", name, (double)bad[i]);
        lq_qtensor_free(&q);
    }
    lq_free(w);
}

static void weights_that_are_not_finite_are_refused(void **state) {
    (void)state;
    each_type(96, check_finite);
}

/* ---- GPTQ ---- */

static lq_gptq_sums solved(const lq_stats *stats, const float *w, double damp, bool order, uint32_t block, lq_qtensor *q) {
    lq_gptq_factor f;
    lq_gptq_sums sums;
    assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats->gram, damp, order), LQ_OK);
    assert_int_equal(lq_gptq_solve(NULL, &f, w, block, false, q, &sums), LQ_OK);
    lq_gptq_factor_free(&f);
    return sums;
}

static void check_identity(const lq_scheme *s, const char *name, uint32_t cols) {
    enum { ROWS = 19 };
    float *w = random_weights(9, ROWS, cols);
    double *h = lq_calloc((size_t)cols * cols, sizeof *h);
    for (uint32_t i = 0; i < cols; i++) h[i * cols + i] = 1;
    if (s->grid.kind < LQ_GRID_F16) w[40] = -0.0f; /* a float grid keeps its sign */
    lq_stats stats = stats_of_hessian(h, cols);
    lq_qtensor rtn = fitted(s, w, NULL, ROWS, cols, LQ_FIT_SEARCH), q = fitted(s, w, NULL, ROWS, cols, LQ_FIT_SEARCH);
    memset(q.codes, 0, q.row_bytes * q.rows);
    solved(&stats, w, 0.01, true, 32, &q);
    if (!lq_qtensor_eq(&q, &rtn)) fail_msg("%s: GPTQ on an identity is not plain rounding", name);
    lq_qtensor_free(&q);
    lq_qtensor_free(&rtn);
    stats_drop(&stats);
    lq_free(h);
    lq_free(w);
}

static void gptq_on_an_identity_is_plain_rounding_on_every_type(void **state) {
    (void)state;
    each_type(96, check_identity);
}

static size_t codes_that_differ(const lq_qtensor *a, const lq_qtensor *b) {
    size_t n = 0;
    for (uint32_t r = 0; r < a->rows; r++)
        for (uint32_t c = 0; c < a->cols; c++) n += lq_qtensor_code_weight(a, r, c) != lq_qtensor_code_weight(b, r, c);
    return n;
}

/* The textbook's terms add up to the loss in fp64, the loop's codes are the textbook's, and blocks of any width give the same. */
static void check_gptq(const lq_scheme *s, const char *name, uint32_t cols) {
    enum { ROWS = 24, N = 700 };
    float *w = random_weights(10, ROWS, cols), *x = random_inputs(10, N, cols);
    lq_stats stats = stats_of(x, N, cols);
    lq_gptq_factor f;
    lq_qtensor book = fitted(s, w, NULL, ROWS, cols, LQ_FIT_SEARCH), q = fitted(s, w, NULL, ROWS, cols, LQ_FIT_SEARCH), p = fitted(s, w, NULL, ROWS, cols, LQ_FIT_SEARCH);
    double rtn = loss_of(&stats.gram, w, &q, ROWS);
    assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats.gram, 0, true), LQ_OK);
    double terms = textbook(&stats.gram, f.perm, 0, w, &book), direct = loss_of(&stats.gram, w, &book, ROWS);
    if (!(fabs(terms - direct) < 1e-9 * direct)) fail_msg("%s: the terms are %.17g, the loss is %.17g", name, terms, direct);
    lq_gptq_sums sums = solved(&stats, w, 0, true, 32, &q);
    direct = loss_of(&stats.gram, w, &q, ROWS);
    if (!(fabs(sums.damped - direct) < 1e-3 * direct && fabs(sums.gptq - direct) < 1e-3 * direct && fabs(sums.rtn - rtn) < 1e-3 * rtn))
        fail_msg("%s: the loop says %g and %g, the loss is %g", name, sums.damped, sums.gptq, direct);
    if (s->grid.bits <= 8 && (!(direct < 0.9 * rtn) || codes_that_differ(&q, &book) > ROWS * cols / 20)) fail_msg("%s: loss %g, rounding %g, %zu codes differ", name, direct, rtn, codes_that_differ(&q, &book));
    solved(&stats, w, 0, true, 7, &p);
    if (codes_that_differ(&p, &q) > ROWS * cols / 50) fail_msg("%s: the block size changes %zu codes", name, codes_that_differ(&p, &q));
    lq_gptq_factor_free(&f);
    lq_qtensor_free(&book);
    lq_qtensor_free(&q);
    lq_qtensor_free(&p);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void gptq_is_the_textbook_s_on_every_type(void **state) {
    (void)state;
    each_type(96, check_gptq);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_floats_take_every_half_to_the_nearest_even),
        cmocka_unit_test(tables_take_every_half_to_the_nearest_value),
        cmocka_unit_test(every_code_means_what_its_format_says_and_rounds_to_itself),
        cmocka_unit_test(blocks_take_the_absmax_of_their_own_weights),
        cmocka_unit_test(powers_of_two_follow_the_rule_of_the_standard),
        cmocka_unit_test(the_second_level_is_that_of_the_fused_matrices),
        cmocka_unit_test(block_scales_are_coded_about_their_mean),
        cmocka_unit_test(a_search_is_never_worse_than_min_max_on_any_type),
        cmocka_unit_test(zeros_stay_zeros_on_every_type),
        cmocka_unit_test(threads_change_no_bit_of_any_type),
        cmocka_unit_test(a_matrix_in_parts_is_fitted_like_one_that_is_copied),
        cmocka_unit_test(weights_that_are_not_finite_are_refused),
        cmocka_unit_test(gptq_on_an_identity_is_plain_rounding_on_every_type),
        cmocka_unit_test(gptq_is_the_textbook_s_on_every_type),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
