/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Matrices held in the layout kernels stream: they multiply what they stand for, take the memory they say, and a model of them says what
 * the model of its codes says. Rounded activations: test_act. Every format: test_format_matrix. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern.h"
#include "core/thread.h"
#include "matrix.h"

#include <float.h>

enum { ROWS = 70, COLS = 320, MOST = 11 };

typedef struct subject { const char *name; lq_qtensor q, bare; lq_packed p; lq_linear lin; } subject;

/* Sum of w x, and of the magnitudes that a kernel's roundings are relative to. */
static double exact(const subject *s, const float *w, uint32_t r, const float *x, double *mass) {
    const lq_qtensor *q = &s->q;
    double sum = 0;
    *mass = 0;
    for (uint32_t c = 0; c < COLS; c++) {
        uint32_t at = q->perm ? q->perm[c] : c, g = c / s->p.seg;
        double scale = lq_packed_scale(&s->p, r, g), zero = lq_packed_zero(&s->p, r, g), size = fabs(scale * (double)lq_grid_value(q, r, lq_packed_code(&s->p, r, c)));
        size += fabs(q->sch.zero_kind == LQ_ZERO_MIN ? zero : scale * zero) + fabs((double)w[at]);
        for (uint32_t k = 0; q->sch.extra & LQ_X_LOWRANK && k < q->sch.rank; k++)
            size += 2 * fabs((double)lq_f16_f32(q->lr.a[r * q->sch.rank + k]) * (double)lq_f16_f32(q->lr.b[k * COLS + at]));
        sum += (double)w[at] * (double)x[at];
        *mass += size * fabs((double)x[at]);
    }
    return sum;
}

static void products_are_near(const subject *s, const lq_kernels *k, const float *x, uint32_t n, float *y) {
    float w[COLS];
    assert_int_equal(lq_linear_apply(NULL, k, &s->lin, x, n, y), LQ_OK);
    for (uint32_t r = 0; r < ROWS; r++) {
        lq_qtensor_decode_row(&s->q, r, w);
        for (uint32_t t = 0; t < n; t++) {
            double mass, want = exact(s, w, r, x + (size_t)t * COLS, &mass), got = y[(size_t)t * ROWS + r];
            if (!(fabs(got - want) <= (COLS + 3.0 * s->p.segs + 16) * FLT_EPSILON / 2 * mass))
                fail_msg("%s, %s: %u tokens: token %u, row %u is %g, expected %g", s->name, k->name, n, t, r, got, want);
        }
    }
}

static void a_thread_more_changes_no_bit(const subject *s, const lq_kernels *k, const float *x, uint32_t n, const float *y) {
    float *again = lq_calloc((size_t)n * ROWS, 4);
    lq_threads_set(3);
    assert_int_equal(lq_linear_apply(NULL, k, &s->lin, x, n, again), LQ_OK);
    lq_threads_set(0);
    assert_memory_equal(again, y, (size_t)n * ROWS * 4);
    lq_free(again);
}

static void one_scheme(const ck_scheme *c, const ck_variant *v, size_t n_v, lq_rng *rng) {
    static const uint32_t tokens[] = {1, 8, MOST};
    subject s = {.name = c->name};
    float *x = lq_calloc(MOST * COLS, 4), *y = lq_calloc(MOST * ROWS, 4);
    ck_fill(&s.q, &c->s, ROWS, COLS, rng, false);
    assert_int_equal(lq_pack(NULL, &s.q, &s.p), LQ_OK);
    s.lin = (lq_linear){.rows = ROWS, .cols = COLS, .q = &s.p.q, .packed = &s.p};
    ck_floats(x, MOST * COLS, rng, false);
    for (size_t i = 0; i < n_v; i += n_v > 1 ? n_v - 1 : 1) /* plain C, and all this machine has */
        for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
            products_are_near(&s, &v[i].k, x, tokens[t], y);
            a_thread_more_changes_no_bit(&s, &v[i].k, x, tokens[t], y);
        }
    lq_packed_free(&s.p);
    lq_qtensor_free(&s.q);
    lq_free(x);
    lq_free(y);
}

static void every_scheme_multiplies_what_it_stands_for(void **state) {
    (void)state;
    ck_variant v[CK_VARIANTS];
    size_t n = ck_variants(v), done = 0;
    lq_rng rng;
    lq_rng_seed(&rng, 5, 5);
    for (const ck_scheme *s = ck_all_schemes(); s->name; s++) {
        if (s->s.act.kind || !lq_packed_fits(&s->s, ROWS, COLS) || (s->s.scale.tile_c && COLS % s->s.scale.tile_c)) continue;
        one_scheme(s, v, n, &rng);
        done++;
    }
    print_message("%zu schemes, %zu tables\n", done, n);
    assert_true(done > 30);
}

/* ---- a model ---- */

static lq_status open_as(lq_ctx *ctx, const char *path, lq_load how, lq_loaded *l) {
    LQ_TRY(lq_loaded_open(ctx, path, false, l));
    lq_status st = lq_model_load_all(ctx, l->m, how);
    if (st) lq_loaded_close(l);
    return st;
}

/* What codes and parts of a packed matrix take. */
static uint64_t packed_memory(const lq_scheme *s, uint32_t rows, uint32_t cols) {
    return lq_packed_bytes(s, rows, cols) + lq_scheme_bytes(s, rows, cols) - (uint64_t)rows * cols * s->grid.bits / 8;
}

static void a_packed_matrix_takes_what_is_said_before_it_is_read(void **state) {
    (void)state;
    enum { ROW = 512, COL = 2048, PIECES = 3 * (64 << 10) }; /* an arena grows by no less than 64 KB */
    for (const ck_scheme *c = ck_schemes; c < ck_schemes + ck_n_schemes; c++) {
        lq_qtensor q;
        lq_packed p;
        if (!lq_packed_fits(&c->s, ROW, COL) || (c->s.scale.tile_c && COL % c->s.scale.tile_c) || c->s.extra & (LQ_X_OUTLIERS | LQ_X_OUTLIER_COLS)) continue;
        assert_int_equal(lq_qtensor_init(NULL, &q, &c->s, (lq_slot){0}, ROW, COL), LQ_OK);
        assert_int_equal(lq_pack(NULL, &q, &p), LQ_OK);
        uint64_t said = packed_memory(&c->s, ROW, COL), held = lq_arena_bytes(p.q.mem);
        if (held < said || held > said + PIECES) fail_msg("%s: %llu bytes, said were %llu", c->name, (unsigned long long)held, (unsigned long long)said);
        lq_packed_free(&p);
        lq_qtensor_free(&q);
    }
}

static void a_packed_block_says_what_its_matrices_take(void **state) {
    (void)state;
    static const char *const flags[][6] = {{"--scheme", "W4A16", "--group-size", "16"}, {"--scheme", "int3-asym", "--group-size", "16"}, {"--scheme", "W8A8"}};
    char out[64];
    copy_golden("llama", "letters.json");
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        lq_ctx ctx = {0};
        lq_loaded l;
        uint64_t all = 0;
        if (quantize(&ctx, "rtn", "lqt", flags[i]) || open_as(&ctx, matrix_out("lqt", out), LQ_LOAD_PACKED, &l)) fail_msg("%s", ctx.msg);
        uint32_t packed = 0;
        for (int r = 0; r < LQ_R_N; r++) {
            const lq_linear *lin = &l.m->layers[0].lin[r];
            if (!lin->packed) continue;
            assert_true(lin->q == &lin->packed->q && !lin->q->codes);
            all += packed_memory(&lin->q->sch, lin->rows, lin->cols);
            packed++;
        }
        assert_int_equal(packed, 7);
        assert_in_range(lq_model_block_bytes(l.m, 0, LQ_LOAD_PACKED), all, all + 7 * (sizeof(lq_packed) + 64) + 3 * 4 * (l.m->par.hidden + 64));
        lq_loaded_close(&l);
    }
}

int main(void) {
    matrix_open();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_scheme_multiplies_what_it_stands_for),
        cmocka_unit_test(a_packed_matrix_takes_what_is_said_before_it_is_read),
        cmocka_unit_test(a_packed_block_says_what_its_matrices_take),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    matrix_close();
    return failed;
}
