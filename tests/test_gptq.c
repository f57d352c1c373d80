/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GPTQ against the textbook: inverse Hessian, its Cholesky factor, one column at a time, in fp64. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/pack.h"
#include "core/thread.h"
#include "matrices.h"
#include "quant/gptq_solve.h"
#include "quant/grid.h"
#include "quant/method.h"
#include "quant/proxy.h"
#include "textbook.h"

static const lq_slot nowhere = {0};

static uint32_t code_at(const lq_qtensor *q, uint32_t r, uint32_t c) { return lq_code_get(q->codes + r * q->row_bytes, q->sch.grid.bits, c); }

static size_t codes_that_differ(const lq_qtensor *a, const lq_qtensor *b) {
    size_t n = 0;
    for (uint32_t r = 0; r < a->rows; r++)
        for (uint32_t c = 0; c < a->cols; c++) n += code_at(a, r, c) != code_at(b, r, c);
    return n;
}

static void planes_of(lq_qtensor *q, const lq_scheme *s, const float *w, uint32_t rows, uint32_t cols) {
    assert_int_equal(lq_qtensor_init(NULL, q, s, nowhere, rows, cols), LQ_OK);
    assert_int_equal(lq_grid_fit(NULL, q, w, NULL, LQ_FIT_SEARCH), LQ_OK);
}

static lq_gptq_sums solved(const lq_stats *stats, const lq_scheme *s, const float *w, uint32_t rows, double damp, bool order, uint32_t block,
                           bool guard, lq_qtensor *q) {
    lq_gptq_factor f;
    lq_gptq_sums sums;
    planes_of(q, s, w, rows, stats->cols);
    assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats->gram, damp, order), LQ_OK);
    assert_false(f.failed[0]);
    assert_int_equal(lq_gptq_solve(NULL, &f, w, block, guard, q, &sums), LQ_OK);
    lq_gptq_factor_free(&f);
    return sums;
}

static void codes_are_those_of_the_inverse_cholesky_form(void **state) {
    (void)state;
    enum { ROWS = 40, COLS = 160 };
    float *w = random_weights(1, ROWS, COLS), *x = random_inputs(1, 600, COLS);
    lq_stats stats = stats_of(x, 600, COLS);
    for (int mode = 0; mode < 4; mode++) {
        lq_scheme s = lq_scheme_int(3, 32, mode & 1);
        lq_gptq_factor f;
        lq_qtensor ours, book;
        solved(&stats, &s, w, ROWS, 0.01, mode & 2, 32, false, &ours);
        planes_of(&book, &s, w, ROWS, COLS);
        assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats.gram, 0.01, mode & 2), LQ_OK);
        textbook(&stats.gram, f.perm, 0.01, w, &book);
        /* fp32 feedback moves a tie now and then, and then the rest of that row; its loss must not move */
        double a = loss_of(&stats.gram, w, &ours, ROWS), b = loss_of(&stats.gram, w, &book, ROWS);
        assert_true(codes_that_differ(&ours, &book) < ROWS * COLS / 100);
        assert_true(fabs(a - b) < 0.003 * b);
        lq_grid_round(&book, w);
        assert_true(codes_that_differ(&ours, &book) > ROWS * COLS / 10);
        lq_gptq_factor_free(&f);
        lq_qtensor_free(&ours);
        lq_qtensor_free(&book);
    }
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void the_loss_terms_add_up_to_the_loss(void **state) {
    (void)state;
    enum { ROWS = 30, COLS = 96 };
    float *w = random_weights(2, ROWS, COLS), *x = random_inputs(2, 500, COLS);
    lq_stats stats = stats_of(x, 500, COLS);
    lq_scheme s = lq_scheme_int(4, 32, true);
    lq_gptq_factor f;
    lq_qtensor q, book;
    lq_gptq_sums sums = solved(&stats, &s, w, ROWS, 0, true, 32, false, &q);
    double direct = loss_of(&stats.gram, w, &q, ROWS);
    assert_true(fabs(sums.damped - direct) < 1e-4 * direct);
    assert_true(fabs(sums.gptq - direct) < 1e-4 * direct);
    assert_true(fabs(sums.w - loss_of(&stats.gram, w, NULL, ROWS)) < 1e-4 * sums.w);
    planes_of(&book, &s, w, ROWS, COLS);
    assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats.gram, 0, true), LQ_OK);
    double terms = textbook(&stats.gram, f.perm, 0, w, &book);
    direct = loss_of(&stats.gram, w, &book, ROWS);
    assert_true(fabs(terms - direct) < 1e-9 * direct);
    lq_gptq_factor_free(&f);
    lq_qtensor_free(&q);
    lq_qtensor_free(&book);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void uncorrelated_inputs_give_plain_rounding_bit_for_bit(void **state) {
    (void)state;
    enum { ROWS = 33, COLS = 150 };
    float *w = random_weights(3, ROWS, COLS);
    double *h = lq_calloc(COLS * COLS, sizeof *h);
    for (int identity = 0; identity < 2; identity++) {
        for (uint32_t i = 0; i < COLS; i++) h[i * COLS + i] = identity ? 1 : 1 + i % 7;
        lq_stats stats = stats_of_hessian(h, COLS);
        lq_scheme s = lq_scheme_int(3, 50, true);
        lq_qtensor q, rtn;
        solved(&stats, &s, w, ROWS, 0.01, true, 64, false, &q);
        planes_of(&rtn, &s, w, ROWS, COLS);
        lq_grid_round(&rtn, w);
        assert_true(lq_qtensor_eq(&q, &rtn));
        lq_qtensor_free(&q);
        lq_qtensor_free(&rtn);
        stats_drop(&stats);
    }
    lq_free(h);
    lq_free(w);
}

static void the_block_size_changes_no_code(void **state) {
    (void)state;
    enum { ROWS = 70, COLS = 200 };
    float *w = random_weights(4, ROWS, COLS), *x = random_inputs(4, 600, COLS);
    lq_stats stats = stats_of(x, 600, COLS);
    lq_scheme s = lq_scheme_int(4, 40, true);
    const uint32_t blocks[] = {1, 7, 32, 200};
    lq_qtensor whole, q;
    lq_gptq_sums all = solved(&stats, &s, w, ROWS, 0.01, true, 128, false, &whole);
    for (int i = 0; i < 4; i++) {
        lq_gptq_sums sums = solved(&stats, &s, w, ROWS, 0.01, true, blocks[i], false, &q);
        assert_true(codes_that_differ(&whole, &q) <= ROWS * COLS / 200); /* sums in another order: a tie may tip */
        assert_true(fabs(sums.gptq - all.gptq) < 0.002 * all.gptq);
        lq_qtensor_free(&q);
    }
    lq_qtensor_free(&whole);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void permuted_inputs_give_permuted_codes(void **state) {
    (void)state;
    enum { ROWS = 20, COLS = 130, N = 400 };
    float *w = random_weights(5, ROWS, COLS), *x = random_inputs(5, N, COLS), *pw = lq_calloc(ROWS * COLS, sizeof *pw);
    lq_stats stats = stats_of(x, N, COLS);
    double *h = lq_calloc(COLS * COLS, sizeof *h);
    uint32_t perm[COLS];
    for (uint32_t i = 0; i < COLS; i++) perm[i] = (i * 37 + 11) % COLS;
    for (uint32_t i = 0; i < COLS; i++) {
        for (uint32_t j = 0; j < COLS; j++) h[i * COLS + j] = lq_gram_at(&stats.gram, perm[i], perm[j]) / N;
        for (uint32_t r = 0; r < ROWS; r++) pw[r * COLS + i] = w[r * COLS + perm[i]];
    }
    lq_stats permuted = stats_of_hessian(h, COLS);
    lq_scheme s = lq_scheme_int(4, -1, true);
    lq_qtensor a, b;
    solved(&stats, &s, w, ROWS, 0.01, true, 32, true, &a);
    solved(&permuted, &s, pw, ROWS, 0.01, true, 32, true, &b);
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t i = 0; i < COLS; i++) assert_int_equal(code_at(&b, r, i), code_at(&a, r, perm[i]));
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
    stats_drop(&stats);
    stats_drop(&permuted);
    lq_free(h);
    lq_free(pw);
    lq_free(x);
    lq_free(w);
}

static void a_row_s_codes_do_not_depend_on_its_neighbours(void **state) {
    (void)state;
    enum { ROWS = 150, COLS = 192, FROM = 77, SOME = 9 };
    float *w = random_weights(6, ROWS, COLS), *x = random_inputs(6, 500, COLS);
    lq_stats stats = stats_of(x, 500, COLS);
    lq_scheme s = lq_scheme_int(3, 64, false);
    lq_qtensor all, some;
    solved(&stats, &s, w, ROWS, 0.01, true, 128, true, &all);
    solved(&stats, &s, w + FROM * COLS, SOME, 0.01, true, 128, true, &some);
    for (uint32_t r = 0; r < SOME; r++) assert_memory_equal(all.codes + (FROM + r) * all.row_bytes, some.codes + r * some.row_bytes, COLS * 3 / 8);
    lq_qtensor_free(&all);
    lq_qtensor_free(&some);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void gptq_beats_rtn_on_correlated_inputs(void **state) {
    (void)state;
    enum { ROWS = 64, COLS = 192 };
    float *w = random_weights(7, ROWS, COLS), *x = random_inputs(7, 800, COLS);
    lq_stats stats = stats_of(x, 800, COLS);
    for (int bits = 2; bits <= 4; bits++) {
        lq_scheme s = lq_scheme_int(bits, 64, true);
        lq_qtensor q;
        lq_gptq_sums sums = solved(&stats, &s, w, ROWS, 0.01, true, 128, false, &q);
        assert_true(sums.gptq < 0.7 * sums.rtn);
        lq_qtensor_free(&q);
    }
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

/* Two bits, min-max and outliers: clipped columns push their error into the others, and a row may lose by it. */
static void no_row_is_worse_than_plain_rounding(void **state) {
    (void)state;
    enum { ROWS = 200, COLS = 64 };
    float *w = random_weights(8, ROWS, COLS), *x = random_inputs(8, 40, COLS);
    lq_stats stats = stats_of(x, 40, COLS);
    lq_scheme s = lq_scheme_int(2, -1, true);
    lq_gptq_factor f;
    lq_gptq_sums free_sums, sums;
    lq_qtensor q, rtn;
    assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats.gram, 1, false), LQ_OK);
    planes_of(&q, &s, w, ROWS, COLS);
    planes_of(&rtn, &s, w, ROWS, COLS);
    lq_grid_round(&rtn, w);
    assert_int_equal(lq_gptq_solve(NULL, &f, w, 128, false, &q, &free_sums), LQ_OK);
    assert_int_equal(lq_gptq_solve(NULL, &f, w, 128, true, &q, &sums), LQ_OK);
    assert_true(sums.guarded > 0 && sums.gptq < free_sums.gptq);
    for (uint32_t r = 0; r < ROWS; r++)
        assert_true(row_loss(&stats.gram, w, &q, r) <= row_loss(&stats.gram, w, &rtn, r) * 1.0001 + 1e-9);
    lq_gptq_factor_free(&f);
    lq_qtensor_free(&q);
    lq_qtensor_free(&rtn);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void dead_columns_are_rounded_and_feed_nothing(void **state) {
    (void)state;
    enum { ROWS = 20, COLS = 96, N = 300 };
    float *w = random_weights(9, ROWS, COLS), *x = random_inputs(9, N, COLS), *v = lq_calloc(ROWS * COLS, sizeof *v);
    for (uint32_t t = 0; t < N; t++) x[t * COLS + 5] = x[t * COLS + 77] = 0;
    memcpy(v, w, ROWS * COLS * sizeof *v);
    for (uint32_t r = 0; r < ROWS; r++) v[r * COLS + 5] *= 0.3f, v[r * COLS + 77] *= -0.2f; /* other weights where nothing flows */
    lq_stats stats = stats_of(x, N, COLS);
    lq_scheme s = lq_scheme_int(4, 32, true);
    lq_gptq_factor f;
    lq_gptq_sums sums;
    lq_qtensor q, p, rtn;
    assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats.gram, 0.01, true), LQ_OK);
    assert_int_equal(f.dead, 2);
    planes_of(&q, &s, w, ROWS, COLS);
    planes_of(&p, &s, w, ROWS, COLS); /* the same planes */
    planes_of(&rtn, &s, w, ROWS, COLS);
    lq_grid_round(&rtn, w);
    assert_int_equal(lq_gptq_solve(NULL, &f, w, 128, false, &q, &sums), LQ_OK);
    assert_int_equal(lq_gptq_solve(NULL, &f, v, 128, false, &p, &sums), LQ_OK);
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t c = 0; c < COLS; c++) {
            if (c == 5 || c == 77) assert_int_equal(code_at(&q, r, c), code_at(&rtn, r, c));
            else assert_int_equal(code_at(&q, r, c), code_at(&p, r, c));
        }
    lq_gptq_factor_free(&f);
    lq_qtensor_free(&q);
    lq_qtensor_free(&p);
    lq_qtensor_free(&rtn);
    stats_drop(&stats);
    lq_free(v);
    lq_free(x);
    lq_free(w);
}

static lq_status run_gptq(lq_ctx *ctx, const char *key, const char *value, const float *w, uint32_t rows, const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    const lq_method *m = lq_method_by_name("gptq");
    double opts[16] = {0};
    lq_optset sets[] = {{m->opts, opts, NULL}, {0}};
    lq_scheme s = lq_scheme_int(4, 32, true);
    assert_true(m->opts_size <= sizeof opts);
    assert_int_equal(lq_opts_defaults(NULL, sets), LQ_OK);
    if (key) assert_int_equal(lq_opts_set(NULL, sets, key, value), LQ_OK);
    lq_weights lin = {.slot = nowhere, .name = "block 3 q_proj", .rows = rows, .cols = stats->cols, .w = w};
    return m->quantize(ctx, opts, &lin, &s, stats, q, o);
}

static void hessians_of_low_rank_are_damped_until_they_factor(void **state) {
    (void)state;
    enum { ROWS = 10, COLS = 160 };
    float *w = random_weights(10, ROWS, COLS), *x = random_inputs(10, 60, COLS);
    const uint32_t tokens[] = {1, 2, 60};
    for (int i = 0; i < 3; i++) {
        lq_stats stats = stats_of(x, tokens[i], COLS);
        lq_qtensor q;
        lq_outcome o;
        assert_int_equal(run_gptq(NULL, "damp-percent", "0", w, ROWS, &stats, &q, &o), LQ_OK);
        assert_true(o.damp > 0 && !o.fallback[0]); /* raised, and said */
        assert_true(o.err_h <= o.err_h_rtn);
        lq_qtensor_free(&q);
        assert_int_equal(run_gptq(NULL, NULL, NULL, w, ROWS, &stats, &q, &o), LQ_OK);
        assert_true(o.damp == 0.01 && o.err_h < 0.5 * o.err_h_rtn);
        lq_qtensor_free(&q);
        stats_drop(&stats);
    }
    lq_free(x);
    lq_free(w);
}

static void an_indefinite_hessian_falls_back_to_rtn_and_says_so(void **state) {
    (void)state;
    enum { COLS = 32 };
    float *w = random_weights(11, 4, COLS);
    double *h = lq_calloc(COLS * COLS, sizeof *h);
    for (uint32_t i = 0; i < COLS * COLS; i++) h[i] = i / COLS == i % COLS ? 1 : -40;
    lq_stats stats = stats_of_hessian(h, COLS);
    lq_qtensor q;
    lq_outcome o;
    assert_int_equal(run_gptq(NULL, NULL, NULL, w, 4, &stats, &q, &o), LQ_OK);
    assert_string_equal(o.method, "rtn");
    assert_non_null(strstr(o.fallback, "positive definite"));
    assert_true(o.err_w < 0.02 && o.damp == -1);
    lq_qtensor_free(&q);
    stats_drop(&stats);
    lq_free(h);
    lq_free(w);
}

static void a_hessian_that_is_not_finite_is_an_error_that_names_the_linear(void **state) {
    (void)state;
    enum { COLS = 32 };
    float *w = random_weights(12, 4, COLS);
    double *h = lq_calloc(COLS * COLS, sizeof *h);
    for (uint32_t i = 0; i < COLS; i++) h[i * COLS + i] = 1;
    h[7 * COLS + 3] = HUGE_VAL;
    lq_stats stats = stats_of_hessian(h, COLS);
    lq_ctx ctx = {0};
    lq_qtensor q;
    lq_outcome o;
    assert_int_equal(run_gptq(&ctx, NULL, NULL, w, 4, &stats, &q, &o), LQ_ERR_QUALITY);
    assert_non_null(strstr(ctx.msg, "block 3 q_proj"));
    assert_non_null(strstr(ctx.msg, "7"));
    stats_drop(&stats);
    lq_free(h);
    lq_free(w);
}

static void outlier_channels_of_a_thousand_leave_the_factor_sound(void **state) {
    (void)state;
    enum { ROWS = 32, COLS = 256, N = 600 };
    float *w = random_weights(13, ROWS, COLS), *x = random_inputs(13, N, COLS);
    for (uint32_t t = 0; t < N; t++) x[t * COLS + 9] *= 1000;
    lq_stats stats = stats_of(x, N, COLS);
    lq_scheme s = lq_scheme_int(4, 64, true);
    lq_gptq_factor f;
    lq_qtensor q, book;
    lq_gptq_sums sums = solved(&stats, &s, w, ROWS, 1e-6, true, 128, false, &q);
    assert_true(sums.gptq < sums.rtn);
    planes_of(&book, &s, w, ROWS, COLS);
    assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats.gram, 1e-6, true), LQ_OK);
    textbook(&stats.gram, f.perm, 1e-6, w, &book);
    double a = loss_of(&stats.gram, w, &q, ROWS), b = loss_of(&stats.gram, w, &book, ROWS);
    assert_true(fabs(a - b) < 0.01 * b); /* fp32 feedback costs nothing */
    lq_gptq_factor_free(&f);
    lq_qtensor_free(&q);
    lq_qtensor_free(&book);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void columns_are_processed_by_falling_diagonal_and_ties_keep_their_order(void **state) {
    (void)state;
    double h[16] = {0};
    const double diag[4] = {1, 4, 0, 1};
    const uint32_t ordered[4] = {1, 0, 3, 2};
    for (int i = 0; i < 4; i++) h[i * 5] = diag[i];
    lq_stats stats = stats_of_hessian(h, 4);
    for (int order = 0; order < 2; order++) {
        lq_gptq_factor f;
        assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats.gram, 0.01, order), LQ_OK);
        for (uint32_t i = 0; i < 4; i++) assert_int_equal(f.perm[i], order ? ordered[i] : i);
        lq_gptq_factor_free(&f);
    }
    stats_drop(&stats);
}

static void act_order_signed_scales_and_one_percent_are_the_defaults(void **state) {
    (void)state;
    enum { ROWS = 40, COLS = 128 };
    float *w = random_weights(14, ROWS, COLS), *x = random_inputs(14, 500, COLS);
    lq_stats stats = stats_of(x, 500, COLS);
    lq_scheme s = lq_scheme_int(4, 32, true);
    const char *const other[][2] = {{"no-desc-act", NULL}, {"scales", "minmax"}, {"scales", "positive"}, {"percdamp", "0.1"}};
    lq_gptq_factor f;
    lq_gptq_sums sums;
    lq_outcome o;
    lq_qtensor q, same, changed;
    assert_int_equal(lq_gptq_factor_init(NULL, &f, &stats.gram, 0.01, true), LQ_OK);
    assert_int_equal(lq_qtensor_init(NULL, &q, &s, nowhere, ROWS, COLS), LQ_OK);
    assert_int_equal(lq_grid_fit(NULL, &q, w, f.weight, LQ_FIT_SEARCH_SIGNED), LQ_OK);
    assert_int_equal(lq_gptq_solve(NULL, &f, w, 128, true, &q, &sums), LQ_OK);
    assert_int_equal(run_gptq(NULL, NULL, NULL, w, ROWS, &stats, &same, &o), LQ_OK);
    assert_true(lq_qtensor_eq(&q, &same));
    assert_true(o.damp == 0.01 && !strcmp(o.method, "gptq"));
    for (int i = 0; i < 4; i++) {
        assert_int_equal(run_gptq(NULL, other[i][0], other[i][1], w, ROWS, &stats, &changed, &o), LQ_OK);
        assert_false(lq_qtensor_eq(&q, &changed));
        lq_qtensor_free(&changed);
    }
    lq_gptq_factor_free(&f);
    lq_qtensor_free(&q);
    lq_qtensor_free(&same);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_those_of_the_inverse_cholesky_form),
        cmocka_unit_test(the_loss_terms_add_up_to_the_loss),
        cmocka_unit_test(uncorrelated_inputs_give_plain_rounding_bit_for_bit),
        cmocka_unit_test(the_block_size_changes_no_code),
        cmocka_unit_test(permuted_inputs_give_permuted_codes),
        cmocka_unit_test(a_row_s_codes_do_not_depend_on_its_neighbours),
        cmocka_unit_test(gptq_beats_rtn_on_correlated_inputs),
        cmocka_unit_test(no_row_is_worse_than_plain_rounding),
        cmocka_unit_test(dead_columns_are_rounded_and_feed_nothing),
        cmocka_unit_test(hessians_of_low_rank_are_damped_until_they_factor),
        cmocka_unit_test(an_indefinite_hessian_falls_back_to_rtn_and_says_so),
        cmocka_unit_test(a_hessian_that_is_not_finite_is_an_error_that_names_the_linear),
        cmocka_unit_test(outlier_channels_of_a_thousand_leave_the_factor_sound),
        cmocka_unit_test(columns_are_processed_by_falling_diagonal_and_ties_keep_their_order),
        cmocka_unit_test(act_order_signed_scales_and_one_percent_are_the_defaults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
