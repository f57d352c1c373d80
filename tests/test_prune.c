/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* SparseGPT and Wanda: exact sparsity, never worse than its own baseline, nothing at 0. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/thread.h"
#include "matrices.h"
#include "quant/prune.h"
#include "quant/types.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS = 70, COLS = 192, N = 400 };
static const char *const types[] = {"f32", "bf16", "int4-g64", "int4-asym-g32", "FP8-W", "NF4"};
enum { TYPES = sizeof types / sizeof *types };

static lq_scheme scheme_of(const char *type) {
    lq_want w;
    assert_int_equal(lq_type_parse(NULL, type, &(lq_type_defaults){0}, &w), LQ_OK);
    return w.scheme;
}

static void run(const char *method, const lq_prune *p, const char *type, const float *w, uint32_t rows, uint32_t cols, const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    const lq_method *m = lq_method_by_name(method);
    lq_scheme s = scheme_of(type);
    lq_weights lin = {.name = "w", .rows = rows, .cols = cols, .w = w};
    assert_int_equal(m->accept(NULL, p, rows, cols, &s), LQ_OK);
    assert_int_equal(m->quantize(NULL, p, &lin, &s, stats, q, o), LQ_OK);
}

static void every_row_and_group_has_its_exact_share_of_zeros(void **state) {
    (void)state;
    static const lq_prune asks[] = {{0.5, 0}, {0.3, 0}, {0.5, 1}, {0.5, 2}, {0.5, 3}, {0.9, 4}};
    static const char *const methods[] = {"wanda", "sparsegpt"};
    float *w = random_weights(1, ROWS, COLS), *x = random_inputs(1, N, COLS), v[COLS];
    lq_stats stats = stats_of(x, N, COLS);
    for (size_t k = 0; k < 2; k++)
        for (size_t a = 0; a < sizeof asks / sizeof *asks; a++) {
            lq_qtensor q;
            lq_outcome o;
            uint32_t m = lq_prune_group(&asks[a]);
            run(methods[k], &asks[a], "f32", w, ROWS, COLS, &stats, &q, &o);
            for (uint32_t r = 0; r < ROWS; r++) {
                uint32_t zeros = 0;
                lq_qtensor_decode_row(&q, r, v);
                for (uint32_t c = 0; c < COLS; c++) zeros += v[c] == 0;
                assert_int_equal(zeros, m ? COLS / 2 : (uint32_t)(asks[a].sparsity * COLS + 1e-9));
                for (uint32_t c = 0; m && c < COLS; c += m) {
                    uint32_t here = 0;
                    for (uint32_t i = 0; i < m; i++) here += v[c + i] == 0;
                    assert_int_equal(here, m / 2);
                }
            }
            assert_true(fabs(o.zeros - (m ? 0.5 : floor(asks[a].sparsity * COLS + 1e-9) / COLS)) < 1e-12);
            lq_qtensor_free(&q);
        }
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void sparsegpt_is_never_worse_than_wanda(void **state) {
    (void)state;
    float *w = random_weights(2, ROWS, COLS), *x = random_inputs(2, N, COLS);
    lq_stats stats = stats_of(x, N, COLS);
    double gain = 0;
    for (size_t t = 0; t < TYPES; t++)
        for (int pattern = 0; pattern < 3; pattern++) {
            lq_prune p = {0.5, pattern};
            lq_qtensor a, b;
            lq_outcome oa, ob;
            run("wanda", &p, types[t], w, ROWS, COLS, &stats, &a, &oa);
            run("sparsegpt", &p, types[t], w, ROWS, COLS, &stats, &b, &ob);
            assert_true(ob.err_h <= oa.err_h * (1 + 1e-5));
            for (uint32_t r = 0; r < ROWS; r++) assert_true(row_loss(&stats.gram, w, &b, r) <= row_loss(&stats.gram, w, &a, r) * (1 + 1e-4) + 1e-9);
            gain += ob.err_h / oa.err_h / (3 * TYPES);
            lq_qtensor_free(&a);
            lq_qtensor_free(&b);
        }
    assert_true(gain < 0.8);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void joint_codes_hold_the_zeros(void **state) {
    (void)state;
    float *w = random_weights(3, ROWS, COLS), *x = random_inputs(3, N, COLS), v[COLS];
    lq_stats stats = stats_of(x, N, COLS);
    for (size_t t = 0; t < TYPES; t++) {
        lq_prune p = {0.5, 1};
        lq_qtensor q;
        lq_outcome o;
        run("sparsegpt", &p, types[t], w, ROWS, COLS, &stats, &q, &o);
        for (uint32_t r = 0; r < ROWS; r++) {
            lq_qtensor_decode_row(&q, r, v);
            for (uint32_t c = 0; c < COLS; c += 4) assert_true((v[c] == 0) + (v[c + 1] == 0) + (v[c + 2] == 0) + (v[c + 3] == 0) >= 2);
        }
        assert_true(o.bytes_packed < lq_qtensor_bytes(&q));
        lq_qtensor_free(&q);
    }
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void nothing_pruned_is_nothing_changed(void **state) {
    (void)state;
    static const char *const methods[] = {"wanda", "sparsegpt"};
    lq_prune none = {0, 0};
    float *w = random_weights(4, 9, 50), *x = random_inputs(4, N, 50), v[50];
    lq_stats stats = stats_of(x, N, 50);
    for (size_t k = 0; k < 2; k++) {
        lq_qtensor q;
        lq_outcome o;
        run(methods[k], &none, "f32", w, 9, 50, &stats, &q, &o);
        for (uint32_t r = 0; r < 9; r++) {
            lq_qtensor_decode_row(&q, r, v);
            assert_memory_equal(v, w + r * 50, sizeof v);
        }
        assert_true(o.err_w == 0 && o.err_h == 0 && o.zeros == 0);
        lq_qtensor_free(&q);
    }
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

/* With a Hessian of one direction the loss of the optimum is small: feedback moves what is pruned to what stays. */
static void feedback_repairs_what_pruning_breaks(void **state) {
    (void)state;
    enum { K = 32 };
    double h[K * K];
    float *w = random_weights(5, 4, K);
    for (int i = 0; i < K; i++)
        for (int j = 0; j < K; j++) h[i * K + j] = 1 + (i == j ? 0.01 : 0);
    lq_stats stats = stats_of_hessian(h, K);
    lq_prune half = {0.5, 0};
    lq_qtensor a, b;
    lq_outcome oa, ob;
    run("wanda", &half, "f32", w, 4, K, &stats, &a, &oa);
    run("sparsegpt", &half, "f32", w, 4, K, &stats, &b, &ob);
    assert_true(ob.err_h < 0.5 * oa.err_h);
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
    stats_drop(&stats);
    lq_free(w);
}

static void grids_without_zero_and_odd_columns_are_refused(void **state) {
    (void)state;
    static const char *const no[] = {"int4-fz-g64", "binary-row", "lut3"};
    lq_prune half = {0.5, 0}, pattern = {0.5, 2};
    const lq_method *m = lq_method_by_name("sparsegpt");
    for (size_t i = 0; i < 3; i++) {
        lq_scheme s = scheme_of(no[i]);
        assert_int_equal(m->accept(NULL, &half, 64, 128, &s), LQ_ERR_UNSUPPORTED);
    }
    lq_scheme s = scheme_of("f32");
    assert_int_equal(m->accept(NULL, &pattern, 64, 132, &s), LQ_ERR_UNSUPPORTED);
    assert_int_equal(m->accept(NULL, &half, 64, 131, &s), LQ_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_and_group_has_its_exact_share_of_zeros),
        cmocka_unit_test(sparsegpt_is_never_worse_than_wanda),
        cmocka_unit_test(joint_codes_hold_the_zeros),
        cmocka_unit_test(nothing_pruned_is_nothing_changed),
        cmocka_unit_test(feedback_repairs_what_pruning_breaks),
        cmocka_unit_test(grids_without_zero_and_odd_columns_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
