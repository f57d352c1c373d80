/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Target correction between the unquantized and the quantized stream, and low-rank compensation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/thread.h"
#include "matrices.h"
#include "quant/grid.h"
#include "quant/lorc.h"
#include "quant/target.h"

#include <string.h>

enum { ROWS = 24, COLS = 72, N = 900, HELD = 100 };

/* Statistics of inputs xq that ought to be x; the last HELD tokens are held out. */
static lq_stats cross_stats(const float *x, const float *xq) {
    lq_stats s;
    float *fp = lq_calloc(N * COLS, 4);
    memcpy(fp, x, N * COLS * sizeof *fp);
    assert_int_equal(lq_stats_init(NULL, &s, LQ_NEED_GRAM | LQ_NEED_CROSS, COLS), LQ_OK);
    for (uint32_t t = 0; t < N; t += HELD) {
        assert_int_equal(lq_stats_add(NULL, &s, xq + t * COLS, HELD), LQ_OK);
        assert_int_equal(lq_stats_add_cross(NULL, &s, fp + t * COLS, xq + t * COLS, HELD, t + HELD == N), LQ_OK);
    }
    lq_free(fp);
    return s;
}

static double miss(const float *w, const float *x, const float *wq, const float *xq) { /* |W x - W' x^|^2 / |W x|^2 */
    double err = 0, all = 0;
    for (uint32_t t = 0; t < N; t++)
        for (uint32_t r = 0; r < ROWS; r++) {
            double a = 0, b = 0;
            for (uint32_t c = 0; c < COLS; c++) {
                a += (double)w[r * COLS + c] * (double)x[t * COLS + c];
                b += (double)wq[r * COLS + c] * (double)xq[t * COLS + c];
            }
            err += (a - b) * (a - b);
            all += a * a;
        }
    return err / all;
}

static void equal_streams_change_no_bit(void **state) {
    (void)state;
    float *w = random_weights(1, ROWS, COLS), *x = random_inputs(2, N, COLS), *out = lq_calloc(ROWS * COLS, 4);
    lq_stats s = cross_stats(x, x);
    lq_weights lin = {.name = "test", .rows = ROWS, .cols = COLS, .w = w};
    lq_target info;
    assert_int_equal(lq_target_correct(NULL, &lin, &s, out, &info), LQ_OK);
    assert_memory_equal(out, w, ROWS * COLS * sizeof *w);
    assert_true(info.alpha == 0);
    s.held.n = 0; /* nothing to choose by: 1/2, of nothing */
    assert_int_equal(lq_target_correct(NULL, &lin, &s, out, &info), LQ_OK);
    assert_memory_equal(out, w, ROWS * COLS * sizeof *w);
    assert_true(info.alpha == 0.5);
    stats_drop(&s);
    lq_free(w);
    lq_free(x);
    lq_free(out);
}

static void a_linear_error_of_the_input_is_undone(void **state) {
    (void)state;
    float *w = random_weights(1, ROWS, COLS), *x = random_inputs(2, N, COLS), *xq = lq_calloc(N * COLS, 4), *a = lq_calloc(ROWS * COLS, 4), *b = lq_calloc(ROWS * COLS, 4);
    lq_rng rng;
    lq_rng_seed(&rng, 3, 3);
    for (uint32_t t = 0; t < N; t++)
        for (uint32_t c = 0; c < COLS; c++) xq[t * COLS + c] = 0.8f * x[t * COLS + c] + 0.1f * x[t * COLS + (c + 1) % COLS] + 0.01f * lq_rng_normal(&rng);
    lq_stats s = cross_stats(x, xq);
    lq_weights lin = {.name = "test", .rows = ROWS, .cols = COLS, .w = w};
    lq_target info, again;
    lq_threads_set(1);
    assert_int_equal(lq_target_correct(NULL, &lin, &s, a, &info), LQ_OK);
    lq_threads_set(3);
    assert_int_equal(lq_target_correct(NULL, &lin, &s, b, &again), LQ_OK);
    lq_threads_set(0);
    assert_memory_equal(a, b, ROWS * COLS * sizeof *a);
    assert_true(info.alpha == 1 && info.held_after < 0);
    assert_true(miss(w, x, a, xq) < 0.25 * miss(w, x, w, xq));
    stats_drop(&s);
    lq_free(w);
    lq_free(x);
    lq_free(xq);
    lq_free(a);
    lq_free(b);
}

/* xq = A x, A = 1 + 0.4 shift: the target is W A^-1, off by the damping of 0.01 alone. */
static void a_known_linear_map_is_inverted(void **state) {
    (void)state;
    float *w = random_weights(1, ROWS, COLS), *x = lq_calloc(N * COLS, 4), *xq = lq_calloc(N * COLS, 4), *out = lq_calloc(ROWS * COLS, 4);
    lq_rng rng;
    lq_rng_seed(&rng, 4, 4);
    for (uint32_t i = 0; i < N * COLS; i++) x[i] = lq_rng_normal(&rng);
    for (uint32_t t = 0; t < N; t++)
        for (uint32_t c = 0; c < COLS; c++) xq[t * COLS + c] = x[t * COLS + c] + 0.4f * x[t * COLS + (c + 1) % COLS];
    lq_stats s = cross_stats(x, xq);
    lq_weights lin = {.name = "test", .rows = ROWS, .cols = COLS, .w = w};
    lq_target info;
    assert_int_equal(lq_target_correct(NULL, &lin, &s, out, &info), LQ_OK);
    assert_true(info.alpha == 1 && info.damp == 0.01);
    double off = 0, all = 0;
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t c = 0; c < COLS; c++) { /* (out A)_c = out_c + 0.4 out_(c-1) */
            double d = (double)out[r * COLS + c] + 0.4 * (double)out[r * COLS + (c + COLS - 1) % COLS] - (double)w[r * COLS + c];
            off += d * d;
            all += (double)w[r * COLS + c] * (double)w[r * COLS + c];
        }
    if (!(off < 2e-4 * all)) fail_msg("W A^-1 is missed by %g", off / all);
    assert_true(miss(w, x, out, xq) < 1e-3 * miss(w, x, w, xq));
    stats_drop(&s);
    lq_free(w), lq_free(x), lq_free(xq), lq_free(out);
}

static void noise_is_not_learnt(void **state) {
    (void)state;
    float *w = random_weights(1, ROWS, COLS), *x = random_inputs(2, N, COLS), *xq = lq_calloc(N * COLS, 4), *out = lq_calloc(ROWS * COLS, 4);
    lq_rng rng;
    lq_rng_seed(&rng, 3, 3);
    for (uint32_t i = 0; i < N * COLS; i++) xq[i] = x[i], x[i] += 2 * lq_rng_normal(&rng); /* independent of what is seen */
    lq_stats s = cross_stats(x, xq);
    lq_weights lin = {.name = "test", .rows = ROWS, .cols = COLS, .w = w};
    lq_target info;
    assert_int_equal(lq_target_correct(NULL, &lin, &s, out, &info), LQ_OK);
    assert_true(info.alpha == 0 || info.damp == 1 || -info.held_after < 0.02);
    stats_drop(&s);
    lq_free(w);
    lq_free(x);
    lq_free(xq);
    lq_free(out);
}

static void failed_allocations_are_passed_on(void **state) {
    (void)state;
    float *w = random_weights(1, ROWS, COLS), *x = random_inputs(2, N, COLS), *out = lq_calloc(ROWS * COLS, 4);
    lq_stats s = cross_stats(x, x);
    lq_weights lin = {.name = "test", .rows = ROWS, .cols = COLS, .w = w};
    lq_target info;
    lq_status st = LQ_ERR_RESOURCE;
    for (long n = 0; st; n++) {
        lq_mem_fail_after(n);
        st = lq_target_correct(NULL, &lin, &s, out, &info);
        lq_mem_fail_after(-1);
        assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
    }
    stats_drop(&s);
    lq_free(w);
    lq_free(x);
    lq_free(out);
}

/* ---- LoRC ---- */

static void fit(uint32_t rows, uint32_t cols, int rank, bool weighted, const lq_stats *s, const float *w, lq_qtensor *q) {
    lq_scheme scheme = lq_scheme_int(3, -1, true);
    lq_weights lin = {.name = "test", .rows = rows, .cols = cols, .w = w};
    if (rank) scheme.extra = LQ_X_LOWRANK;
    scheme.rank = (uint16_t)rank;
    assert_int_equal(lq_qtensor_init(NULL, q, &scheme, (lq_slot){0}, rows, cols), LQ_OK);
    assert_int_equal(lq_grid_fit(NULL, q, w, NULL, LQ_FIT_MINMAX), LQ_OK);
    lq_grid_round(q, w);
    if (rank) assert_int_equal(lq_lorc_fit(NULL, &lin, weighted ? &s->gram : NULL, q), LQ_OK);
}

static double squared(const float *w, const lq_qtensor *q) {
    float row[128];
    double sum = 0;
    for (uint32_t r = 0; r < q->rows; r++) {
        lq_qtensor_decode_row(q, r, row);
        for (uint32_t c = 0; c < q->cols; c++) sum += ((double)w[r * q->cols + c] - row[c]) * ((double)w[r * q->cols + c] - row[c]);
    }
    return sum;
}

static void each_rank_lowers_what_it_is_asked_to_lower(void **state) {
    (void)state;
    for (int tall = 0; tall < 2; tall++) {
        uint32_t rows = tall ? 96 : 40, cols = tall ? 40 : 96;
        float *w = random_weights(5, rows, cols), *x = random_inputs(6, 400, cols);
        lq_stats s = stats_of(x, 400, cols);
        double last[2] = {1e30, 1e30}, first = 0;
        for (int rank = 0; rank <= 40; rank += 8) {
            lq_qtensor plain, gram;
            fit(rows, cols, rank, false, &s, w, &plain);
            fit(rows, cols, rank, true, &s, w, &gram);
            double in_w = squared(w, &plain), in_h = loss_of(&s.gram, w, &gram, rows);
            assert_true(in_w < last[0] && in_h < last[1]);
            if (rank && rank < 40) assert_true(in_w < squared(w, &gram) && in_h < loss_of(&s.gram, w, &plain, rows)); /* each is best at its own */
            if (!rank) first = in_w;
            if (rank == 40) assert_true(in_w < 1e-6 * first); /* full rank: only F16 is left */
            last[0] = in_w, last[1] = in_h;
            lq_qtensor_free(&plain);
            lq_qtensor_free(&gram);
        }
        stats_drop(&s);
        lq_free(w);
        lq_free(x);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_streams_change_no_bit),
        cmocka_unit_test(a_linear_error_of_the_input_is_undone),
        cmocka_unit_test(a_known_linear_map_is_inverted),
        cmocka_unit_test(noise_is_not_learnt),
        cmocka_unit_test(failed_allocations_are_passed_on),
        cmocka_unit_test(each_rank_lowers_what_it_is_asked_to_lower),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
