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
#include "quant/types.h"

#include <stdio.h>
#include <string.h>

static const lq_slot nowhere = {.block = 3, .role = LQ_R_Q, .expert = -1};

static bool has_option(const lq_method *m, const char *name) {
    for (const lq_opt *o = m->opts; o && o->name; o++)
        if (!strcmp(o->name, name)) return true;
    return false;
}
static bool is_forced(const lq_method *m) { return has_option(m, "force"); }           /* one or two bits */
static bool is_rough(const lq_method *m) { return is_forced(m) || has_option(m, "sparsity"); }

static void *options_of(const lq_method *m, const char *flag) {
    void *opts = lq_alloc(m->opts_size + 1);
    lq_optset sets[] = {{m->opts, opts, NULL}, {0}};
    if (!m->opts) return opts;
    assert_int_equal(lq_opts_defaults(NULL, sets), LQ_OK);
    if (flag) assert_int_equal(lq_opts_set(NULL, sets, flag, NULL), LQ_OK);
    if (is_forced(m)) assert_int_equal(lq_opts_set(NULL, sets, "force", NULL), LQ_OK);
    return opts;
}

static lq_status quantize(lq_ctx *ctx, const lq_method *m, const char *flag, const float *w, uint32_t rows, uint32_t cols, const lq_scheme *s,
                          const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    void *opts = options_of(m, flag);
    lq_weights lin = {.slot = nowhere, .name = "test", .rows = rows, .cols = cols, .w = w};
    lq_status st = m->accept(ctx, opts, rows, cols, s);
    if (!st) st = m->quantize(ctx, opts, &lin, s, stats, q, o);
    lq_free(opts);
    return st;
}

static unsigned needs(const lq_method *m) {
    void *opts = lq_alloc(m->opts_size + 1);
    lq_optset sets[] = {{m->opts, opts, NULL}, {0}};
    if (m->opts) assert_int_equal(lq_opts_defaults(NULL, sets), LQ_OK);
    unsigned n = lq_method_needs(m, opts);
    lq_free(opts);
    return n;
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
    char name[64];
    if (!(fabs(o.err_h - err) <= 1e-3 * err + 1e-7)) fail_msg("%s on %s says %g, the error is %g", m->name, lq_scheme_name(s, name, sizeof name), o.err_h, err);
    assert_true(o.err_h <= o.err_h_rtn * (1 + 1e-6));
    assert_true(o.err_w >= 0 && o.method && !o.fallback[0]);

    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < cols; c++) v[(size_t)r * cols + c] = lq_qtensor_code_weight(&a, r, c);
    lq_grid_round(&b, v); /* its values lie on its grid */
    assert_true(lq_qtensor_eq(&a, &b));
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
    stats_drop(&stats);
    lq_free(v);
    lq_free(x);
    lq_free(w);
}

/* What a method may be asked for: its default type at every --bits it knows, and the integer grids it takes. */
enum { ASKED = 24 };
static size_t schemes_of(const lq_method *m, const void *opts, uint32_t rows, uint32_t cols, int64_t group, lq_scheme out[ASKED]) {
    static const char digits[] = "23458";
    lq_type_defaults d = {.group = group};
    size_t n = 0;
    for (const char *b = digits; *b; b++) {
        char name[64];
        lq_want w;
        snprintf(name, sizeof name, "%s", m->type ? m->type : "int*");
        char *star = strchr(name, '*');
        if (star) *star = *b;
        if (!(star || b == digits) || lq_type_parse(NULL, name, &d, &w)) continue;
        if (w.knobs & LQ_TYPE_GROUP) lq_want_group(&w, group);
        out[n] = w.scheme;
        if (m->refine) m->refine(opts, &out[n]);
        if (!m->accept(NULL, opts, rows, cols, &out[n])) n++;
    }
    for (int bits = 2; bits <= 8; bits += bits == 4 ? 4 : 1)
        for (int sym = 0; sym < 2; sym++) {
            out[n] = lq_scheme_int(bits, (int)group, sym);
            if (m->refine) m->refine(opts, &out[n]);
            if (!m->accept(NULL, opts, rows, cols, &out[n])) n++;
        }
    return n;
}

/* A scheme of about four bits, or the only one there is. */
static lq_scheme scheme_of(const lq_method *m, const void *opts, uint32_t rows, uint32_t cols, int64_t group) {
    lq_scheme list[ASKED];
    size_t n = schemes_of(m, opts, rows, cols, group, list);
    assert_true(n > 0);
    for (size_t i = 0; i < n; i++)
        if (list[i].grid.bits == 4) return list[i];
    return list[0];
}

static void every_method_is_deterministic_on_grid_and_honest(void **state) {
    (void)state;
    static const struct { uint32_t rows, cols, n; int group; } shapes[] = {
        {1, 64, 200, 32}, {17, 96, 300, 48}, {65, 128, 40, -1}, {3, 1, 5, -1}, {5, 7, 50, 1}, {2, 131, 200, 131}, {70, 192, 400, 64}};
    for (const lq_method *const *m = lq_methods; *m; m++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            lq_scheme list[ASKED];
            void *opts = options_of(*m, NULL);
            size_t n = schemes_of(*m, opts, shapes[i].rows, shapes[i].cols, shapes[i].group, list);
            lq_free(opts);
            if (i == 1) assert_true(n > 0);
            for (size_t k = 0; k < n; k++) check(*m, NULL, shapes[i].rows, shapes[i].cols, shapes[i].n, &list[k]);
        }
}

/* Every named type, the real and the whole zero point of its integers: what a method accepts it makes. */
static void every_method_makes_every_type_it_accepts(void **state) {
    (void)state;
    static const char *const zeros[] = {"", "-asym", "-fz"};
    enum { ROWS = 18, N = 150 };
    lq_type_defaults d = {.group = 0};
    for (const lq_method *const *m = lq_methods; *m; m++) {
        void *opts = options_of(*m, NULL);
        size_t made = 0;
        for (const lq_type *t = lq_types; t->name; t++)
            for (int z = 0; z < 3 && (!z || t->knobs & LQ_TYPE_SYM) && !t->keep; z++) {
                char name[64];
                lq_want w;
                snprintf(name, sizeof name, "%s%s", t->name, zeros[z]);
                assert_int_equal(lq_type_parse(NULL, name, &d, &w), LQ_OK);
                if (w.open) lq_want_group(&w, 32);
                if ((*m)->refine) (*m)->refine(opts, &w.scheme);
                uint32_t cols = (*m)->accept(NULL, opts, ROWS, 96, &w.scheme) ? 256 : 96; /* whole blocks */
                if ((*m)->accept(NULL, opts, ROWS, cols, &w.scheme)) continue;
                check(*m, NULL, ROWS, cols, N, &w.scheme);
                made++;
            }
        print_message("    %s: %zu types\n", (*m)->name, made);
        assert_true(made > 0);
        lq_free(opts);
    }
}

static void every_switch_of_a_method_keeps_the_properties(void **state) {
    (void)state;
    for (const lq_method *const *m = lq_methods; *m; m++)
        for (const lq_opt *o = (*m)->opts; o && o->name; o++) {
            if (o->kind != LQ_OPT_SET) continue;
            void *opts = options_of(*m, o->name);
            lq_scheme s = scheme_of(*m, opts, 20, 96, 32);
            lq_free(opts);
            check(*m, o->name, 20, 96, 200, &s);
        }
}

static void every_method_survives_zero_weights_and_no_signal(void **state) {
    (void)state;
    enum { ROWS = 5, COLS = 64 };
    float *zero = lq_calloc(ROWS * COLS, sizeof *zero), *w = random_weights(1, ROWS, COLS), v[COLS];
    lq_stats silent = stats_of(zero, ROWS, COLS), none = stats_of(zero, 0, COLS);
    for (const lq_method *const *m = lq_methods; *m; m++) {
        lq_qtensor q;
        lq_outcome o;
        void *opts = options_of(*m, NULL);
        lq_scheme s = scheme_of(*m, opts, ROWS, COLS, 32);
        double most = is_rough(*m) ? 1 : 0.05;
        lq_free(opts);
        assert_int_equal(quantize(NULL, *m, NULL, zero, ROWS, COLS, &s, &silent, &q, &o), LQ_OK);
        lq_qtensor_decode_row(&q, 4, v);
        for (int c = 0; c < COLS; c++) assert_true(v[c] == 0);
        lq_qtensor_free(&q);
        assert_int_equal(quantize(NULL, *m, NULL, w, ROWS, COLS, &s, &silent, &q, &o), LQ_OK);
        assert_true(o.err_w < most && o.err_h == 0);
        lq_qtensor_free(&q);
        assert_int_equal(quantize(NULL, *m, NULL, w, ROWS, COLS, &s, &none, &q, &o), LQ_OK);
        assert_true(o.err_w < most && o.err_h == -1);
        assert_true(!needs(*m) == !o.fallback[0]); /* a method that needs data says that it had none */
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
    for (const lq_method *const *m = lq_methods; *m; m++) {
        lq_qtensor q;
        lq_outcome o;
        const char *flag = !needs(*m) && has_option(*m, "search") ? "search" : NULL;
        void *opts = options_of(*m, flag);
        lq_scheme s = scheme_of(*m, opts, 1, COLS, -1);
        lq_free(opts);
        if (is_rough(*m)) continue;
        assert_int_equal(quantize(NULL, *m, flag, w, 1, COLS, &s, &stats, &q, &o), LQ_OK);
        lq_qtensor_decode_row(&q, 0, v);
        for (int c = 16; c < COLS; c++)
            if (!(fabsf(v[c] - w[c]) <= 0.25f)) /* half a step of E2M1 */ fail_msg("%s: column %d: %g for %g", (*m)->name, c, (double)v[c], (double)w[c]);
        lq_qtensor_free(&q);
    }
    stats_drop(&stats);
    lq_free(x);
}

static void every_method_refuses_what_it_cannot_make(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    for (const lq_method *const *m = lq_methods; *m; m++) {
        void *opts = options_of(*m, NULL);
        lq_scheme s = scheme_of(*m, opts, 4, 64, 32), no = s;
        no.scale = (lq_plane_desc){.dtype = LQ_I8, .tile_r = 1, .tile_c = 32};
        assert_int_equal((*m)->accept(&ctx, opts, 4, 64, &s), LQ_OK);
        if (s.scale.tile_r == 1 && s.scale.tile_c == 32) assert_int_equal((*m)->accept(&ctx, opts, 4, 80, &s), LQ_ERR_UNSUPPORTED);
        assert_int_equal((*m)->accept(&ctx, opts, 4, 64, &no), LQ_ERR_UNSUPPORTED);
        lq_free(opts);
    }
}

static void every_method_passes_on_a_failed_allocation(void **state) {
    (void)state;
    float *w = random_weights(9, 70, 64), *x = random_inputs(9, 100, 64);
    lq_stats stats = stats_of(x, 100, 64);
    for (const lq_method *const *m = lq_methods; *m; m++) {
        void *opts = options_of(*m, NULL);
        lq_scheme s = scheme_of(*m, opts, 70, 64, 32);
        lq_weights lin = {.slot = nowhere, .name = "test", .rows = 70, .cols = 64, .w = w};
        lq_status st = LQ_ERR_RESOURCE;
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
        cmocka_unit_test(every_method_makes_every_type_it_accepts),
        cmocka_unit_test(every_switch_of_a_method_keeps_the_properties),
        cmocka_unit_test(every_method_survives_zero_weights_and_no_signal),
        cmocka_unit_test(columns_the_sample_never_reached_keep_their_weights),
        cmocka_unit_test(every_method_refuses_what_it_cannot_make),
        cmocka_unit_test(every_method_passes_on_a_failed_allocation),
        cmocka_unit_test(methods_are_found_by_name_and_describe_themselves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
