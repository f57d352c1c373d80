/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Exact one-dimensional k-means, selection, and the codebooks of squeezellm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/num.h"
#include "core/thread.h"
#include "matrices.h"
#include "quant/kmeans.h"
#include "quant/method.h"
#include "quant/select.h"
#include "quant/types.h"

#include <stdlib.h>
#include <string.h>

/* ---- the optimum ---- */

/* Every assignment of n points to k clusters. */
static double brute_force(const lq_kmeans_point *p, size_t n, uint32_t k) {
    double best = INFINITY;
    size_t all = 1;
    for (size_t i = 0; i < n; i++) all *= k;
    for (size_t code = 0; code < all; code++) {
        double h[4] = {0}, x[4] = {0}, cost = 0;
        size_t rest = code;
        for (size_t i = 0; i < n; i++, rest /= k) {
            h[rest % k] += (double)p[i].h;
            x[rest % k] += (double)p[i].h * (double)p[i].x;
        }
        rest = code;
        for (size_t i = 0; i < n; i++, rest /= k) {
            double c = h[rest % k] > 0 ? x[rest % k] / h[rest % k] : 0, d = (double)p[i].x - c;
            cost += (double)p[i].h * d * d;
        }
        if (cost < best) best = cost;
    }
    return best;
}

static double cost_of(const lq_kmeans_point *p, size_t n, const double *center, uint32_t k) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double least = INFINITY;
        for (uint32_t c = 0; c < k; c++) least = fmin(least, ((double)p[i].x - center[c]) * ((double)p[i].x - center[c]));
        sum += (double)p[i].h * least;
    }
    return sum;
}

static double lloyd(lq_rng *rng, const lq_kmeans_point *p, size_t n, uint32_t k) {
    double center[16];
    for (uint32_t c = 0; c < k; c++) center[c] = (double)p[lq_rng_below(rng, (uint32_t)n)].x;
    for (int round = 0; round < 60; round++) {
        double h[16] = {0}, x[16] = {0};
        for (size_t i = 0; i < n; i++) {
            uint32_t best = 0;
            for (uint32_t c = 1; c < k; c++)
                if (fabs((double)p[i].x - center[c]) < fabs((double)p[i].x - center[best])) best = c;
            h[best] += (double)p[i].h;
            x[best] += (double)p[i].h * (double)p[i].x;
        }
        for (uint32_t c = 0; c < k; c++)
            if (h[c] > 0) center[c] = x[c] / h[c];
    }
    return cost_of(p, n, center, k);
}

static void random_points(lq_rng *rng, lq_kmeans *m, size_t n, bool ties) {
    for (size_t i = 0; i < n; i++) {
        float x = ties ? (float)lq_rng_below(rng, 4) : lq_rng_normal(rng) + 3;
        m->p[i] = (lq_kmeans_point){x, lq_rng_below(rng, 5) ? lq_rng_unit(rng) : 0, (uint32_t)i};
    }
}

static void the_optimum_is_that_of_brute_force(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 1, 1);
    for (int round = 0; round < 300; round++) {
        lq_kmeans m;
        uint32_t k = 1 + lq_rng_below(&rng, 4), n = 1 + lq_rng_below(&rng, k == 4 ? 7 : 9);
        double center[4];
        assert_int_equal(lq_kmeans_init(NULL, &m, n, k), LQ_OK);
        random_points(&rng, &m, n, round % 3 == 0);
        double h = 0;
        for (size_t i = 0; i < n; i++) h += (double)m.p[i].h;
        double got = lq_kmeans_run(&m, n, k, center), want = brute_force(m.p, n, k);
        if (h > 0 && fabs(got - want) > 1e-10 * (1 + want)) fail_msg("round %d: n %u k %u: %.12g, brute force %.12g", round, n, k, got, want);
        if (h > 0) assert_true(fabs(cost_of(m.p, n, center, k) - want) <= 1e-9 * (1 + want));
        for (uint32_t c = 1; c < k; c++) assert_true(center[c] >= center[c - 1]);
        lq_kmeans_free(&m);
    }
}

static void lloyd_from_any_start_does_not_do_better(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 2, 1);
    for (int round = 0; round < 40; round++) {
        lq_kmeans m;
        uint32_t k = 2u << lq_rng_below(&rng, 4), n = 50 + lq_rng_below(&rng, 400);
        double center[16];
        assert_int_equal(lq_kmeans_init(NULL, &m, n, k), LQ_OK);
        random_points(&rng, &m, n, false);
        double got = lq_kmeans_run(&m, n, k, center);
        assert_true(fabs(cost_of(m.p, n, center, k) - got) <= 1e-9 * (1 + got));
        for (int start = 0; start < 5; start++) assert_true(lloyd(&rng, m.p, n, k) >= got * (1 - 1e-9));
        lq_kmeans_free(&m);
    }
}

/* ---- selection ---- */

static int falling(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x > y ? -1 : x < y;
}

static void selection_agrees_with_sorting(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 3, 1);
    for (int round = 0; round < 200; round++) {
        float key[300], sorted[300];
        uint8_t mark[300] = {0};
        size_t n = 1 + lq_rng_below(&rng, 300), k = lq_rng_below(&rng, (uint32_t)n + 1), marked = 0;
        bool largest = round & 1;
        for (size_t i = 0; i < n; i++) sorted[i] = key[i] = round % 4 < 2 ? fabsf(lq_rng_normal(&rng)) : (float)lq_rng_below(&rng, 5);
        qsort(sorted, n, sizeof *sorted, falling);
        lq_select(key, n, k, largest, 7, mark);
        for (size_t i = 0; i < n; i++) marked += mark[i] == 7;
        assert_int_equal(marked, k);
        for (size_t i = 0; i < n && k; i++)
            if (mark[i]) assert_true(largest ? key[i] >= sorted[k - 1] : key[i] <= sorted[n - k]);
            else assert_true(largest ? key[i] <= sorted[k - 1] : key[i] >= sorted[n - k]);
    }
}

/* ---- squeezellm ---- */

static const lq_type *type_named(const char *name) {
    const lq_type *t = lq_types;
    while (strcmp(t->name, name)) t++;
    return t;
}

static void run(const char *type, double sparse, double sensitive, const lq_weights *w, const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    const lq_method *m = lq_method_by_name("squeezellm");
    struct { double sparse, sensitive; } opts = {sparse, sensitive};
    lq_scheme s = type_named(type)->scheme;
    assert_int_equal(m->opts_size, sizeof opts);
    m->refine(&opts, &s);
    assert_int_equal(m->accept(NULL, &opts, w->rows, w->cols, &s), LQ_OK);
    assert_int_equal(m->quantize(NULL, &opts, w, &s, stats, q, o), LQ_OK);
}

static void a_row_of_few_values_is_kept_exactly(void **state) {
    (void)state;
    float *w = lq_calloc(3 * 64, sizeof *w), *x = random_inputs(4, 100, 64), v[64];
    for (int i = 0; i < 3 * 64; i++) w[i] = (float)(i * 7 % 8 - 3) * 0.25f * (float)(1 + i / 64);
    lq_stats stats = stats_of(x, 100, 64);
    lq_weights lin = {.name = "w", .rows = 3, .cols = 64, .w = w};
    lq_qtensor q;
    lq_outcome o;
    run("lut3", 0, 0, &lin, &stats, &q, &o);
    for (uint32_t r = 0; r < 3; r++) {
        lq_qtensor_decode_row(&q, r, v);
        assert_memory_equal(v, w + r * 64, sizeof v);
    }
    lq_qtensor_free(&q);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

static void more_bits_and_more_sparse_values_lose_less(void **state) {
    (void)state;
    static const char *const types[] = {"lut2", "lut3", "lut4"};
    float *w = random_weights(5, 24, 128), *x = random_inputs(5, 200, 128);
    lq_stats stats = stats_of(x, 200, 128);
    lq_weights lin = {.name = "w", .rows = 24, .cols = 128, .w = w};
    double last = INFINITY;
    for (size_t t = 0; t < 3; t++)
        for (int sparse = 0; sparse < 2; sparse++) {
            lq_qtensor q;
            lq_outcome o;
            run(types[t], sparse ? 2 : 0, sparse ? 0.5 : 0, &lin, &stats, &q, &o);
            assert_true(o.err_h < last);
            last = o.err_h;
            assert_int_equal(q.outliers.n, sparse ? 24 * 128 * 250 / 10000 : 0);
            lq_qtensor_free(&q);
        }
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

/* With everything in the sparse matrix only F16 rounding of what the codebook leaves is lost. */
static void dense_and_sparse_in_the_limit_are_the_weights(void **state) {
    (void)state;
    float *w = random_weights(6, 8, 64), v[64];
    lq_weights lin = {.name = "w", .rows = 8, .cols = 64, .w = w};
    lq_qtensor q;
    lq_outcome o;
    run("lut4", 50, 50, &lin, NULL, &q, &o);
    assert_int_equal(q.outliers.n, 8 * 64);
    for (uint32_t r = 0; r < 8; r++) {
        lq_qtensor_decode_row(&q, r, v);
        for (uint32_t c = 0; c < 64; c++) assert_true(fabsf(v[c] - w[r * 64 + c]) <= 0x1p-11f * fabsf(w[r * 64 + c]) + 1e-7f);
    }
    lq_qtensor_free(&q);
    lq_free(w);
}

/* gptq --scheme lut3: the same tables, codes with feedback. */
static void feedback_on_tables_per_row_loses_less(void **state) {
    (void)state;
    static const char *const types[] = {"lut2", "lut3", "lut4"};
    float *w = random_weights(8, 24, 128), *x = random_inputs(8, 300, 128);
    lq_stats stats = stats_of(x, 300, 128);
    lq_weights lin = {.name = "w", .rows = 24, .cols = 128, .w = w};
    const lq_method *m = lq_method_by_name("gptq");
    void *opts = lq_alloc(m->opts_size);
    assert_int_equal(lq_opts_defaults(NULL, (lq_optset[]){{m->opts, opts, NULL}, {0}}), LQ_OK);
    for (size_t t = 0; t < 3; t++) {
        lq_qtensor a, b;
        lq_outcome oa, ob;
        lq_scheme s = type_named(types[t])->scheme;
        run(types[t], 0, 0, &lin, &stats, &a, &oa);
        assert_int_equal(m->accept(NULL, opts, 24, 128, &s), LQ_OK);
        assert_int_equal(m->quantize(NULL, opts, &lin, &s, &stats, &b, &ob), LQ_OK);
        assert_true(ob.err_h < 0.8 * oa.err_h && ob.err_h <= ob.err_h_rtn);
        lq_qtensor_free(&a);
        lq_qtensor_free(&b);
    }
    lq_free(opts);
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

/* A weight that the Fisher information calls dear gets a table entry near it. */
static void fisher_information_moves_the_codebook(void **state) {
    (void)state;
    float *w = random_weights(7, 1, 64), *f = lq_calloc(64, sizeof *f), v[64];
    lq_weights lin = {.name = "w", .rows = 1, .cols = 64, .w = w};
    lq_qtensor q;
    lq_outcome o;
    for (uint32_t dear = 0; dear < 64; dear += 9) {
        for (uint32_t c = 0; c < 64; c++) f[c] = c == dear ? 1000 : 0.001f;
        lin.fisher = f;
        run("lut2", 0, 0, &lin, NULL, &q, &o);
        lq_qtensor_decode_row(&q, 0, v);
        assert_true(fabsf(v[dear] - w[dear]) <= 0x1p-9f * fabsf(w[dear]));
        assert_true(!o.fallback[0]);
        lq_qtensor_free(&q);
    }
    lq_free(f);
    lq_free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_optimum_is_that_of_brute_force),
        cmocka_unit_test(lloyd_from_any_start_does_not_do_better),
        cmocka_unit_test(selection_agrees_with_sorting),
        cmocka_unit_test(a_row_of_few_values_is_kept_exactly),
        cmocka_unit_test(more_bits_and_more_sparse_values_lose_less),
        cmocka_unit_test(dense_and_sparse_in_the_limit_are_the_weights),
        cmocka_unit_test(feedback_on_tables_per_row_loses_less),
        cmocka_unit_test(fisher_information_moves_the_codebook),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
