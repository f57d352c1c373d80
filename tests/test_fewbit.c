/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Ternary, binary and hqq against brute force and against what they promise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/num.h"
#include "core/thread.h"
#include "matrices.h"
#include "quant/fewbit.h"
#include "quant/grid.h"
#include "quant/proxy.h"
#include "quant/rescale.h"
#include "quant/types.h"

#include <string.h>

static double best_for(const float *w, const float *h, const int *t, size_t n) { /* error of the best scale for given codes */
    double wt = 0, tt = 0, ww = 0;
    for (size_t i = 0; i < n; i++) {
        double x = h ? (double)h[i] : 1;
        wt += x * (double)w[i] * t[i];
        tt += x * t[i] * t[i];
        ww += x * (double)w[i] * (double)w[i];
    }
    return tt > 0 && wt > 0 ? ww - wt * wt / tt : ww;
}

static double brute_force(const float *w, const float *h, size_t n, int base) {
    double best = INFINITY;
    size_t all = 1;
    for (size_t i = 0; i < n; i++) all *= (size_t)base;
    for (size_t code = 0; code < all; code++) {
        int t[12];
        size_t rest = code;
        for (size_t i = 0; i < n; i++, rest /= (size_t)base) t[i] = base == 3 ? (int)(rest % 3) - 1 : rest % 2 ? 1 : -1;
        best = fmin(best, best_for(w, h, t, n));
    }
    return best;
}

static double loss_at(const float *w, const float *h, size_t n, double s, bool zero) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double a = fabs((double)w[i]), t = zero && a < s / 2 ? 0 : s;
        sum += (h ? (double)h[i] : 1) * (a - t) * (a - t);
    }
    return sum;
}

static void scales_of_one_tile_are_those_of_brute_force(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 1, 1);
    for (int round = 0; round < 120; round++) {
        float w[12], h[12];
        uint32_t order[24];
        size_t n = 1 + lq_rng_below(&rng, round % 20 ? 8 : 12);
        for (size_t i = 0; i < n; i++) {
            w[i] = lq_rng_below(&rng, 6) ? lq_rng_normal(&rng) : 0;
            h[i] = 0.01f + lq_rng_unit(&rng);
        }
        for (int weighted = 0; weighted < 2; weighted++) {
            const float *x = weighted ? h : NULL;
            double t = loss_at(w, x, n, lq_ternary_scale(w, x, n, order), true), tb = brute_force(w, x, n, 3);
            double s = loss_at(w, x, n, lq_sign_scale(w, x, n), false), sb = brute_force(w, x, n, 2);
            if (fabs(t - tb) > 1e-9 || fabs(s - sb) > 1e-9) fail_msg("round %d: ternary %.12g for %.12g, sign %.12g for %.12g", round, t, tb, s, sb);
        }
    }
}

static double loss2(const float *w, size_t n, double a, double b) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double v = fabs((double)w[i]), d = fmin(fabs(v - a - b), fabs(v - a + b));
        sum += d * d;
    }
    return sum;
}

static void two_planes_lose_less_than_the_greedy_ones_and_one(void **state) {
    (void)state;
    float *w = random_weights(3, 40, 64);
    double joint = 0, greedy = 0, one = 0;
    for (uint32_t r = 0; r < 40; r++) {
        const float *row = w + r * 64;
        double a, b, s = lq_sign_scale(row, NULL, 64), rest = 0;
        for (int i = 0; i < 64; i++) rest += fabs(fabs((double)row[i]) - s) / 64;
        lq_sign_scales2(row, NULL, 64, &a, &b);
        assert_true(a >= b && b >= 0);
        assert_true(loss2(row, 64, a, b) <= loss2(row, 64, s, rest) * (1 + 1e-12));
        joint += loss2(row, 64, a, b), greedy += loss2(row, 64, s, rest), one += loss_at(row, NULL, 64, s, false);
    }
    assert_true(joint < greedy && greedy < one);
    lq_free(w);
}

static lq_status run(lq_ctx *ctx, const char *method, const char *type, const char *const *settings, const lq_weights *w, const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    const lq_method *m = lq_method_by_name(method);
    void *opts = lq_alloc(m->opts_size);
    lq_optset sets[] = {{m->opts, opts, NULL}, {0}};
    lq_want want;
    assert_int_equal(lq_opts_defaults(NULL, sets), LQ_OK);
    for (; settings && *settings; settings += 2) assert_int_equal(lq_opts_set(NULL, sets, settings[0], settings[1]), LQ_OK);
    assert_int_equal(lq_type_parse(NULL, type, &(lq_type_defaults){.group = 32}, &want), LQ_OK);
    if (m->refine) m->refine(opts, &want.scheme);
    assert_int_equal(m->accept(NULL, opts, w->rows, w->cols, &want.scheme), LQ_OK);
    lq_status st = m->quantize(ctx, opts, w, &want.scheme, stats, q, o);
    lq_free(opts);
    return st;
}

/* What a model trained at 1.58 bits has in its file comes back bit for bit, without --force. */
static void ternary_weights_are_repacked_exactly(void **state) {
    (void)state;
    static const float scales[] = {0.0123456789f, 1.0f, 3.1e-6f, 0.75f};
    static const char *const fits[][3] = {{"fit", "absmean", NULL}, {"fit", "optimal", NULL}};
    for (size_t k = 0; k < 4; k++)
        for (size_t f = 0; f < 2; f++) {
            float w[7 * 64], v[64];
            lq_rng rng;
            lq_qtensor q;
            lq_outcome o;
            if (f && k != 1 && k != 3) continue; /* F16 scales hold only some */
            lq_rng_seed(&rng, k, 1);
            for (size_t i = 0; i < 7 * 64; i++) w[i] = scales[k] * (float)((int)lq_rng_below(&rng, 3) - 1) + 0.0f;
            lq_weights lin = {.name = "w", .rows = 7, .cols = 64, .w = w};
            assert_int_equal(run(NULL, "ternary", "ternary", fits[f], &lin, NULL, &q, &o), LQ_OK);
            for (uint32_t r = 0; r < 7; r++) {
                lq_qtensor_decode_row(&q, r, v);
                for (int c = 0; c < 64; c++) assert_true(v[c] == w[r * 64 + (uint32_t)c]);
            }
            assert_true(o.err_w == 0);
            lq_qtensor_free(&q);
        }
}

static void ordinary_weights_want_force_and_hear_the_price(void **state) {
    (void)state;
    static const char *const methods[] = {"ternary", "binary"}, *const force[] = {"force", NULL, NULL};
    float *w = random_weights(4, 8, 64);
    lq_weights lin = {.name = "w", .rows = 8, .cols = 64, .w = w};
    for (size_t i = 0; i < 2; i++) {
        lq_ctx ctx = {0};
        lq_qtensor q;
        lq_outcome o;
        assert_int_equal(run(&ctx, methods[i], methods[i], NULL, &lin, NULL, &q, &o), LQ_ERR_UNSUPPORTED);
        assert_non_null(strstr(ctx.msg, "--force"));
        assert_non_null(strstr(ctx.msg, "%"));
        assert_int_equal(run(&ctx, methods[i], methods[i], force, &lin, NULL, &q, &o), LQ_OK);
        lq_qtensor_free(&q);
    }
    lq_free(w);
}

static void absmean_is_the_mean_of_the_whole_matrix(void **state) {
    (void)state;
    static const char *const force[] = {"force", NULL, NULL};
    float *w = random_weights(5, 8, 64), v[64];
    lq_weights lin = {.name = "w", .rows = 8, .cols = 64, .w = w};
    lq_qtensor q;
    lq_outcome o;
    double sum = 0;
    for (int i = 0; i < 8 * 64; i++) sum += fabs((double)w[i]);
    assert_int_equal(run(NULL, "ternary", "ternary", force, &lin, NULL, &q, &o), LQ_OK);
    float s = (float)(sum / 512);
    assert_true(lq_plane_get(&q.sch.scale, &q.scale, 0) == s);
    for (uint32_t r = 0; r < 8; r++) {
        lq_qtensor_decode_row(&q, r, v);
        for (int c = 0; c < 64; c++) {
            float t = rintf(w[r * 64 + (uint32_t)c] / s);
            assert_true(v[c] == s * (t > 1 ? 1 : t < -1 ? -1 : t));
        }
    }
    lq_qtensor_free(&q);
    lq_free(w);
}

static void better_fits_lose_less(void **state) {
    (void)state;
    static const char *const t[][5] = {{"force", NULL, "fit", "absmean", NULL}, {"force", NULL, "fit", "optimal", NULL}, {"force", NULL, "fit", "gptq", NULL}};
    static const char *const b[][5] = {{"force", NULL, "fit", "mean", NULL}, {"force", NULL, "fit", "weighted", NULL}, {"force", NULL, "fit", "gptq", NULL}};
    float *w = random_weights(6, 48, 128), *x = random_inputs(6, 400, 128);
    lq_stats stats = stats_of(x, 400, 128);
    lq_weights lin = {.name = "w", .rows = 48, .cols = 128, .w = w};
    double last[2] = {INFINITY, INFINITY};
    for (size_t i = 0; i < 3; i++) {
        lq_qtensor q;
        lq_outcome o;
        assert_int_equal(run(NULL, "ternary", "ternary", t[i], &lin, &stats, &q, &o), LQ_OK);
        assert_true(o.err_h < last[0]);
        last[0] = o.err_h;
        lq_qtensor_free(&q);
        assert_int_equal(run(NULL, "binary", "binary", b[i], &lin, &stats, &q, &o), LQ_OK);
        assert_true(o.err_h < last[1]);
        last[1] = o.err_h;
        lq_qtensor_free(&q);
    }
    stats_drop(&stats);
    lq_free(x);
    lq_free(w);
}

enum { G_ROWS = 70, G_COLS = 128, GROUP = 32, G_N = G_ROWS * G_COLS / GROUP };

static void take_scales(const lq_qtensor *q, float *out) {
    for (size_t i = 0; i < G_N; i++) out[i] = lq_plane_get(&q->sch.scale, &q->scale, i);
}

/* A scale a tenth larger or smaller does not make it less, but at the bound of an eighth of what it was. */
static void refitted_scales_are_a_minimum_on_any_threads(void **state) {
    (void)state;
    static const char *const plain[] = {"force", NULL, "fit", "mean", NULL};
    float *w = random_weights(9, G_ROWS, G_COLS), *x = random_inputs(9, 600, G_COLS), *h = lq_calloc(G_COLS * G_COLS, 4), was[G_N], now[G_N], again[G_N];
    lq_stats stats = stats_of(x, 600, G_COLS);
    lq_weights lin = {.name = "w", .rows = G_ROWS, .cols = G_COLS, .w = w};
    lq_qtensor q;
    lq_outcome o;
    double before, after, moved;
    int better = 0, tried = 0;
    lq_proxy_hessian(&stats.gram, h);
    assert_int_equal(run(NULL, "binary", "binary", plain, &lin, &stats, &q, &o), LQ_OK);
    take_scales(&q, was);
    assert_int_equal(lq_proxy_error(NULL, w, &q, &stats.gram, &before), LQ_OK);
    assert_int_equal(lq_rescale(NULL, w, h, 0, &q), LQ_OK);
    assert_int_equal(lq_proxy_error(NULL, w, &q, &stats.gram, &after), LQ_OK);
    take_scales(&q, now);
    assert_true(after < 0.97 * before);
    for (size_t i = 0; i < G_N; i += 7)
        for (int way = -1; way <= 1; way += 2) {
            lq_plane_set(&q.sch.scale, &q.scale, i, now[i] * (1 + 0.1f * (float)way));
            assert_int_equal(lq_proxy_error(NULL, w, &q, &stats.gram, &moved), LQ_OK);
            better += moved < after && now[i] > 0.13f * was[i];
            tried++;
            lq_plane_set(&q.sch.scale, &q.scale, i, now[i]);
        }
    if (better * 50 > tried) fail_msg("%d of %d moved scales lose less", better, tried);
    for (size_t i = 0; i < G_N; i++) lq_plane_set(&q.sch.scale, &q.scale, i, was[i]);
    lq_threads_set(3);
    assert_int_equal(lq_rescale(NULL, w, h, 0, &q), LQ_OK);
    lq_threads_set(0);
    take_scales(&q, again);
    assert_memory_equal(now, again, sizeof now);
    assert_int_equal(lq_rescale(NULL, w, h, 1e12, &q), LQ_OK); /* the weights alone: the mean again */
    take_scales(&q, again);
    for (size_t i = 0; i < G_N; i++) assert_true(fabsf(again[i] / was[i] - 1) < 0.01f);
    lq_qtensor_free(&q);
    stats_drop(&stats);
    lq_free(w), lq_free(x), lq_free(h);
}

/* ---- hqq ---- */

static double measure_of(const float *w, const lq_qtensor *q) {
    float v[256];
    double sum = 0;
    for (uint32_t r = 0; r < q->rows; r++) {
        lq_qtensor_decode_row(q, r, v);
        for (uint32_t c = 0; c < q->cols; c++)
            sum += pow(fabs((double)w[r * q->cols + c] - (double)v[c]), 1.5);
    }
    return sum;
}

static void hqq_never_loses_to_rounding_in_its_own_measure(void **state) {
    (void)state;
    static const char *const types[] = {"int2-fz", "int3-fz", "int4-fz", "int8-fz"}, *const refit[] = {"refit", NULL, NULL};
    for (size_t t = 0; t < 4; t++)
        for (uint64_t seed = 0; seed < 3; seed++) {
            float *w = random_weights(seed, 16, 128);
            for (int i = 0; i < 32; i++) w[i] = 0.3f;          /* a group of equal weights */
            for (int i = 32; i < 64; i++) w[i] = 1 + 0.01f * w[i]; /* one far from 0 */
            lq_weights lin = {.name = "w", .rows = 16, .cols = 128, .w = w};
            lq_qtensor rtn, q, again;
            lq_outcome o;
            assert_int_equal(run(NULL, "rtn", types[t], NULL, &lin, NULL, &rtn, &o), LQ_OK);
            assert_int_equal(run(NULL, "hqq", types[t], NULL, &lin, NULL, &q, &o), LQ_OK);
            assert_int_equal(run(NULL, "hqq", types[t], refit, &lin, NULL, &again, &o), LQ_OK);
            double base = measure_of(w, &rtn), plain = measure_of(w, &q), fitted = measure_of(w, &again);
            if (!(plain < base && fitted <= plain)) fail_msg("%s: rtn %g, hqq %g, with refit %g", types[t], base, plain, fitted);
            lq_qtensor_free(&rtn);
            lq_qtensor_free(&q);
            lq_qtensor_free(&again);
            lq_free(w);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_of_one_tile_are_those_of_brute_force),
        cmocka_unit_test(two_planes_lose_less_than_the_greedy_ones_and_one),
        cmocka_unit_test(ternary_weights_are_repacked_exactly),
        cmocka_unit_test(ordinary_weights_want_force_and_hear_the_price),
        cmocka_unit_test(absmean_is_the_mean_of_the_whole_matrix),
        cmocka_unit_test(better_fits_lose_less),
        cmocka_unit_test(refitted_scales_are_a_minimum_on_any_threads),
        cmocka_unit_test(hqq_never_loses_to_rounding_in_its_own_measure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
