/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Properties every method has: the table is walked, a new method is tested by being in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/pack.h"
#include "core/thread.h"
#include "matrices.h"
#include "quant/grid.h"
#include "quant/method.h"

static const lq_slot nowhere = {.block = 3, .role = LQ_R_Q, .expert = -1};

static lq_status quantize(lq_ctx *ctx, const lq_method *m, const char *flag, const float *w, uint32_t rows, uint32_t cols, const lq_scheme *s,
                          const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    void *opts = lq_alloc(m->opts_size + 1);
    lq_optset sets[] = {{m->opts, opts, NULL}, {0}};
    assert_int_equal(lq_opts_defaults(NULL, sets), LQ_OK);
    if (flag) assert_int_equal(lq_opts_set(NULL, sets, flag, NULL), LQ_OK);
    lq_weights lin = {.slot = nowhere, .name = "test", .rows = rows, .cols = cols, .w = w};
    lq_status st = m->accept(ctx, opts, rows, cols, s);
    if (!st) st = m->quantize(ctx, opts, &lin, s, stats, q, o);
    lq_free(opts);
    return st;
}

static void check(const lq_method *m, const char *flag, uint32_t rows, uint32_t cols, uint32_t n, const lq_scheme *s) {
    float *w = random_weights(rows + cols, rows, cols), *x = random_inputs(cols, n, cols), *v = lq_calloc((size_t)rows * cols, sizeof *v);
    lq_stats stats = stats_of(x, n, cols);
    lq_qtensor a, b;
    lq_outcome o, p;
    lq_threads_set(1);
    assert_int_equal(quantize(NULL, m, flag, w, rows, cols, s, &stats, &a, &o), LQ_OK);
    lq_threads_set(3);
    assert_int_equal(quantize(NULL, m, flag, w, rows, cols, s, &stats, &b, &p), LQ_OK);
    lq_threads_set(0);
    assert_true(lq_qtensor_eq(&a, &b)); /* deterministic, and at any thread count */
    assert_true(o.err_h == p.err_h && o.err_h_rtn == p.err_h_rtn && o.err_w == p.err_w);
    assert_true(lq_scheme_eq(&a.sch, s) && a.rows == rows && a.cols == cols && a.slot.block == 3);

    double all = loss_of(&stats.gram, w, NULL, rows), err = all > 0 ? loss_of(&stats.gram, w, &a, rows) / all : 0; /* what it says is true */
    assert_true(fabs(o.err_h - err) <= 1e-3 * err + 1e-7);
    assert_true(o.err_h <= o.err_h_rtn * (1 + 1e-6));
    assert_true(o.err_w >= 0 && o.method && !o.fallback[0]);

    for (uint32_t r = 0; r < rows; r++) lq_qtensor_decode_row(&a, r, v + (size_t)r * cols);
    lq_grid_round(&b, v); /* its values lie on its grid */
    assert_true(lq_qtensor_eq(&a, &b));
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
    stats_drop(&stats);
    lq_free(v);
    lq_free(x);
    lq_free(w);
}

static void every_method_is_deterministic_on_grid_and_honest(void **state) {
    (void)state;
    static const struct { uint32_t rows, cols, n; int group; } shapes[] = {
        {1, 64, 200, 32}, {17, 96, 300, 48}, {65, 128, 40, -1}, {3, 1, 5, -1}, {5, 7, 50, 1}, {2, 131, 200, 131}, {70, 192, 400, 64}};
    for (const lq_method *const *m = lq_methods; *m; m++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int bits = 2; bits <= 8; bits += bits == 4 ? 4 : 1)
                for (int sym = 0; sym < 2; sym++) {
                    lq_scheme s = lq_scheme_int(bits, shapes[i].group, sym);
                    check(*m, NULL, shapes[i].rows, shapes[i].cols, shapes[i].n, &s);
                }
}

static void every_switch_of_a_method_keeps_the_properties(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(3, 32, true);
    for (const lq_method *const *m = lq_methods; *m; m++)
        for (const lq_opt *o = (*m)->opts; o && o->name; o++)
            if (o->kind == LQ_OPT_SET) check(*m, o->name, 20, 96, 200, &s);
}

static void every_method_survives_zero_weights_and_no_signal(void **state) {
    (void)state;
    enum { ROWS = 5, COLS = 64 };
    float *zero = lq_calloc(ROWS * COLS, sizeof *zero), *w = random_weights(1, ROWS, COLS), v[COLS];
    lq_scheme s = lq_scheme_int(4, 32, true);
    lq_stats silent = stats_of(zero, ROWS, COLS), none = stats_of(zero, 0, COLS);
    for (const lq_method *const *m = lq_methods; *m; m++) {
        lq_qtensor q;
        lq_outcome o;
        assert_int_equal(quantize(NULL, *m, NULL, zero, ROWS, COLS, &s, &silent, &q, &o), LQ_OK);
        lq_qtensor_decode_row(&q, 4, v);
        for (int c = 0; c < COLS; c++) assert_true(v[c] == 0);
        lq_qtensor_free(&q);
        assert_int_equal(quantize(NULL, *m, NULL, w, ROWS, COLS, &s, &silent, &q, &o), LQ_OK);
        assert_true(o.err_w < 0.05 && o.err_h == 0);
        lq_qtensor_free(&q);
        assert_int_equal(quantize(NULL, *m, NULL, w, ROWS, COLS, &s, &none, &q, &o), LQ_OK);
        assert_true(o.err_w < 0.05 && o.err_h == -1);
        assert_true(!(*m)->needs == !o.fallback[0]); /* a method that needs data says that it had none */
        lq_qtensor_free(&q);
    }
    stats_drop(&silent);
    stats_drop(&none);
    lq_free(w);
    lq_free(zero);
}

/* A sample that never reaches a column is no reason to clip its weights. */
static void columns_the_sample_never_reached_keep_their_weights(void **state) {
    (void)state;
    enum { COLS = 32, N = 100 };
    float w[COLS], v[COLS], *x = random_inputs(3, N, COLS);
    for (int c = 0; c < COLS; c++) w[c] = (c < 16 ? 0.01f : 1) * (c % 2 ? 1 : -1) * (1 + 0.01f * (float)c);
    for (uint32_t t = 0; t < N; t++)
        for (int c = 16; c < COLS; c++) x[t * COLS + (uint32_t)c] = 0;
    lq_stats stats = stats_of(x, N, COLS);
    lq_scheme s = lq_scheme_int(4, -1, true);
    for (const lq_method *const *m = lq_methods; *m; m++) {
        lq_qtensor q;
        lq_outcome o;
        bool search = !(*m)->needs;
        assert_int_equal(quantize(NULL, *m, search ? "search" : NULL, w, 1, COLS, &s, &stats, &q, &o), LQ_OK);
        lq_qtensor_decode_row(&q, 0, v);
        for (int c = 16; c < COLS; c++) assert_true(fabsf(v[c] - w[c]) < 0.2f);
        lq_qtensor_free(&q);
    }
    stats_drop(&stats);
    lq_free(x);
}

static void every_method_refuses_what_it_cannot_make(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_scheme s = lq_scheme_int(4, 32, true), no = s;
    no.scale.dtype = LQ_I8;
    for (const lq_method *const *m = lq_methods; *m; m++) {
        void *opts = lq_alloc((*m)->opts_size + 1);
        assert_int_equal((*m)->accept(&ctx, opts, 4, 64, &s), LQ_OK);
        assert_int_equal((*m)->accept(&ctx, opts, 4, 80, &s), LQ_ERR_UNSUPPORTED);
        assert_int_equal((*m)->accept(&ctx, opts, 4, 64, &no), LQ_ERR_UNSUPPORTED);
        lq_free(opts);
    }
}

static void every_method_passes_on_a_failed_allocation(void **state) {
    (void)state;
    float *w = random_weights(9, 70, 64), *x = random_inputs(9, 100, 64);
    lq_scheme s = lq_scheme_int(4, 32, false);
    lq_stats stats = stats_of(x, 100, 64);
    for (const lq_method *const *m = lq_methods; *m; m++) {
        void *opts = lq_alloc((*m)->opts_size + 1);
        lq_optset sets[] = {{(*m)->opts, opts, NULL}, {0}};
        lq_weights lin = {.slot = nowhere, .name = "test", .rows = 70, .cols = 64, .w = w};
        lq_status st = LQ_ERR_RESOURCE;
        assert_int_equal(lq_opts_defaults(NULL, sets), LQ_OK);
        for (long n = 0; st; n++) {
            lq_qtensor q = {0};
            lq_outcome o;
            lq_mem_fail_after(n);
            st = (*m)->quantize(NULL, opts, &lin, &s, &stats, &q, &o);
            lq_mem_fail_after(-1);
            assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
            lq_qtensor_free(&q);
            assert_true(n < 200);
        }
        lq_free(opts);
    }
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void methods_are_found_by_name_and_describe_themselves(void **state) {
    (void)state;
    for (const lq_method *const *m = lq_methods; *m; m++) {
        assert_ptr_equal(lq_method_by_name((*m)->name), *m);
        assert_true((*m)->what && (*m)->paper && (*m)->accept && (*m)->quantize);
        for (const lq_opt *o = (*m)->opts; o && o->name; o++) assert_true(o->offset < (*m)->opts_size && o->help);
    }
    assert_null(lq_method_by_name("no such method"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_method_is_deterministic_on_grid_and_honest),
        cmocka_unit_test(every_switch_of_a_method_keeps_the_properties),
        cmocka_unit_test(every_method_survives_zero_weights_and_no_signal),
        cmocka_unit_test(columns_the_sample_never_reached_keep_their_weights),
        cmocka_unit_test(every_method_refuses_what_it_cannot_make),
        cmocka_unit_test(every_method_passes_on_a_failed_allocation),
        cmocka_unit_test(methods_are_found_by_name_and_describe_themselves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
