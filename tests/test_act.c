/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Rounded activations: the codes, and their product with quantized weights. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "calib/act.h"
#include "calib/forward.h"
#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"
#include "kernels/linalg.h"
#include "kernels/ref/ref.h"
#include "quant/types.h"

#include <stdlib.h>

static lq_scheme type(const char *name, int64_t group) {
    lq_want w;
    lq_type_defaults d = {.group = group};
    assert_int_equal(lq_type_parse(NULL, name, &d, &w), LQ_OK);
    return w.scheme;
}

/* Random codes under random planes: what a product must hold for does not depend on how they came about. */
static lq_qtensor random_q(const lq_scheme *s, uint32_t rows, uint32_t cols, uint64_t seed) {
    lq_qtensor q;
    lq_rng rng;
    lq_rng_seed(&rng, seed, 7);
    assert_int_equal(lq_qtensor_init(NULL, &q, s, (lq_slot){0}, rows, cols), LQ_OK);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < cols; c++) {
            uint32_t code = lq_rng_below(&rng, 1u << s->grid.bits);
            if (s->grid.kind == LQ_GRID_E4M3) code = lq_f32_e4m3(64 * lq_rng_normal(&rng));
            lq_code_put(q.codes + r * q.row_bytes, s->grid.bits, c, code);
        }
    for (size_t i = 0; i < lq_plane_count(&s->scale, rows, cols); i++) lq_plane_set(&s->scale, &q.scale, i, 0.01f + 0.02f * lq_rng_unit(&rng));
    for (size_t i = 0; i < lq_plane_count(&s->zero, rows, cols); i++)
        lq_plane_set(&s->zero, &q.zero, i, s->zero.dtype == LQ_U8 ? (float)lq_rng_below(&rng, 1u << s->grid.bits) : 8 * lq_rng_unit(&rng));
    q.act_scale = 0.03f;
    return q;
}

static float *random_x(uint32_t n, uint32_t cols, uint64_t seed) {
    float *x = lq_calloc((size_t)n * cols, 4);
    lq_rng rng;
    lq_rng_seed(&rng, seed, 9);
    for (size_t i = 0; i < (size_t)n * cols; i++) x[i] = lq_rng_normal(&rng) * (lq_rng_below(&rng, 97) ? 1 : 6);
    return x;
}

/* Packed codes have kernels of their own and give the same bits, in plain C and with all this machine has. */
static void run_packed(const lq_qtensor *q, const float *x, uint32_t n, const float *expected) {
    lq_packed p;
    lq_kernels plain;
    lq_kernels_init(&plain, 0);
    float *y = lq_calloc((size_t)n * q->rows, 4);
    assert_int_equal(lq_pack(NULL, q, &p), LQ_OK);
    lq_linear lin = {.rows = q->rows, .cols = q->cols, .q = &p.q, .packed = &p};
    for (int best = 0; best < 2; best++) {
        assert_int_equal(lq_linear_apply(NULL, best ? lq_kernels_best() : &plain, &lin, x, n, y), LQ_OK);
        assert_memory_equal(y, expected, (size_t)n * q->rows * sizeof *y);
    }
    lq_packed_free(&p);
    lq_free(y);
}

static float *run(const lq_qtensor *q, const float *x, uint32_t n) {
    float *y = lq_calloc((size_t)n * q->rows, 4);
    lq_qtensor mine = *q;
    lq_linear lin = {.rows = q->rows, .cols = q->cols, .q = &mine};
    assert_int_equal(lq_linear_apply(NULL, lq_kernels_best(), &lin, x, n, y), LQ_OK);
    if (q->sch.act.kind && lq_packed_fits(&q->sch, q->rows, q->cols)) run_packed(q, x, n, y);
    return y;
}

static double rel(const float *a, const float *b, size_t n) {
    double d = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        all += (double)b[i] * b[i];
    }
    return sqrt(d / all);
}

static void fast_e4m3_is_the_definition(void **state) {
    (void)state;
    static const uint32_t tails[] = {0, 1, 0x7FF, 0x800, 0x801, 0xFFF};
    for (uint32_t top = 0; top < 0xFF800; top++) { /* every finite float, the last 12 bits sampled; ties lie above them */
        if ((top & 0x7FFFF) >= 0x7F800) continue;
        for (size_t i = 0; i < 6; i++) {
            float v = lq_bits_f32(top << 12 | tails[i]);
            if (lq_f32_bits(lq_act_e4m3(v)) != lq_f32_bits(lq_e4m3_f32(lq_f32_e4m3(v)))) fail_msg("%a", (double)v);
        }
    }
}

static void integer_sums_are_exact_in_every_scheme(void **state) {
    (void)state;
    static const struct { const char *name; int64_t group; lq_act act; } cases[] = {
        {"W8A8", -1, {LQ_ACT_DYNAMIC, LQ_I8, 0, 0, 0}},        {"W4A8", 128, {LQ_ACT_DYNAMIC, LQ_I8, 0, 0, 0}},
        {"W4A8", -1, {LQ_ACT_DYNAMIC, LQ_I8, 128, 0, 0}},      {"int8-asym", -1, {LQ_ACT_DYNAMIC, LQ_I8, 0, 0, 0}},
        {"int4-asym", 64, {LQ_ACT_STATIC, LQ_I8, 0, 0, 0}},    {"int3-fz", 64, {LQ_ACT_DYNAMIC, LQ_I8, 32, 0, 0}},
        {"ternary", -1, {LQ_ACT_DYNAMIC, LQ_I8, 0, 0, 0}},     {"binary", 64, {LQ_ACT_DYNAMIC, LQ_BOOL, 0, 0, 0}},
    };
    static const uint32_t widths[] = {128, 1152, 2304};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        for (size_t w = 0; w < 3; w++) {
            enum { ROWS = 37, N = 67 };
            uint32_t cols = widths[w];
            lq_scheme s = type(cases[k].name, cases[k].group);
            s.act = cases[k].act;
            lq_qtensor q = random_q(&s, ROWS, cols, k + w);
            float *x = random_x(N, cols, k + 3), *code = lq_calloc(cols, 4), step[2304 / 32], *y = run(&q, x, N);
            uint32_t seg = s.scale.tile_c ? s.scale.tile_c : cols;
            if (s.act.tile && s.act.tile < seg) seg = s.act.tile;
            assert_true(lq_act_panel(&s) > 0);
            for (uint32_t t = 0; t < N; t++) {
                float *alone = run(&q, x + (size_t)t * cols, 1);
                assert_memory_equal(alone, y + t * ROWS, ROWS * sizeof *y); /* decoding gives what prefill gives */
                lq_free(alone);
                assert_int_equal(lq_act_quantize(&s.act, q.act_scale, NULL, x + (size_t)t * cols, cols, code, step), cols);
                for (uint32_t r = 0; r < ROWS; r++) {
                    double sum = 0;
                    for (uint32_t c = 0; c < cols; c += seg) {
                        double scale = (double)lq_plane_get(&s.scale, &q.scale, lq_plane_index(&s.scale, cols, r, c)), zero = 0;
                        int64_t ones = 0;
                        for (uint32_t i = c; i < c + seg; i++) ones += (int64_t)code[i];
                        if (s.zero_kind) zero = scale * (double)lq_plane_get(&s.zero, &q.zero, lq_plane_index(&s.zero, cols, r, c));
                        sum += (double)step[s.act.tile ? c / s.act.tile : 0] *
                               (scale * (double)lq_codes_dot_c(&q, r, c, seg, code) - zero * (s.zero_kind ? (double)ones : 0));
                    }
                    if (lq_f32_bits((float)sum) != lq_f32_bits(y[t * ROWS + r])) fail_msg("%s, %u columns: %a, expected %a", cases[k].name, cols, (double)y[t * ROWS + r], sum);
                }
            }
            lq_free(x);
            lq_free(y);
            lq_free(code);
            lq_qtensor_free(&q);
        }
}

/* What the rounded operands give in fp64. */
static void every_scheme_multiplies_what_it_stands_for(void **state) {
    (void)state;
    static const struct { const char *name; lq_act act; } cases[] = {
        {"FP8", {LQ_ACT_DYNAMIC, LQ_E4M3, 0, 0, 0}}, {"FP8-tensor", {LQ_ACT_STATIC, LQ_E4M3, 0, 0, 0}},
        {"FP8-block", {LQ_ACT_DYNAMIC, LQ_E4M3, 128, 0, 0}}, {"NF4", {LQ_ACT_DYNAMIC, LQ_I8, 0, 0, 0}},
        {"MXFP4", {LQ_ACT_DYNAMIC, LQ_I8, 0, 0, 0}}, {"binary", {LQ_ACT_DYNAMIC, LQ_BOOL, 128, 0, 0}},
        {"W8A8", {LQ_ACT_DYNAMIC, LQ_I8, 128, 0, 0}}};
    enum { ROWS = 200, N = 9 };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        for (uint32_t cols = 320; cols <= 328; cols += 8) { /* 328: the flattened blocks of NF4 begin anywhere in a row */
            lq_scheme s = type(cases[k].name, -1);
            if (!strcmp(cases[k].name, "NF4")) s = type("NF4", 0);
            s.act = cases[k].act;
            lq_qtensor q = random_q(&s, ROWS, cols, k);
            if (s.scale.tile_r == 1 && s.scale.tile_c && cols % s.scale.tile_c) {
                lq_qtensor_free(&q);
                continue;
            }
            float *x = random_x(N, cols, k), *y = run(&q, x, N), *want = lq_calloc(ROWS * N, 4), *code = lq_calloc(cols, 4), *w = lq_calloc(cols, 4), step[64];
            for (uint32_t t = 0; t < N; t++) {
                lq_act_quantize(&s.act, q.act_scale, NULL, x + t * cols, cols, code, step);
                for (uint32_t r = 0; r < ROWS; r++) {
                    double sum = 0;
                    lq_qtensor_decode_row(&q, r, w);
                    for (uint32_t c = 0; c < cols; c++) sum += (double)w[c] * (double)code[c] * (double)step[s.act.tile ? c / s.act.tile : 0];
                    want[t * ROWS + r] = (float)sum;
                }
            }
            if (rel(y, want, ROWS * N) > 2e-6) fail_msg("%s: %g", cases[k].name, rel(y, want, ROWS * N));
            lq_free(x);
            lq_free(y);
            lq_free(want);
            lq_free(code);
            lq_free(w);
            lq_qtensor_free(&q);
        }
}

static void a_thread_count_changes_no_bit(void **state) {
    (void)state;
    static const char *const names[] = {"W8A8", "INT8", "FP8", "FP8-block", "W4A8"};
    for (size_t k = 0; k < 5; k++) {
        lq_scheme s = type(names[k], 0);
        lq_qtensor q = random_q(&s, 300, 512, k);
        float *x = random_x(33, 512, k);
        lq_threads_set(1);
        float *a = run(&q, x, 33);
        lq_threads_set(3);
        float *b = run(&q, x, 33);
        lq_threads_set(0);
        assert_memory_equal(a, b, 300 * 33 * 4);
        lq_free(x);
        lq_free(a);
        lq_free(b);
        lq_qtensor_free(&q);
    }
}

/* ---- LLM.int8 ---- */

static lq_qtensor int8_q(const float *w, uint32_t rows, uint32_t cols, float threshold) {
    lq_scheme s = type("INT8", -1);
    lq_qtensor q;
    s.act.outlier = threshold;
    s.act.scope = 0; /* as the paper has it */
    assert_int_equal(lq_qtensor_init(NULL, &q, &s, (lq_slot){0}, rows, cols), LQ_OK);
    for (uint32_t r = 0; r < rows; r++) {
        float max = 0;
        for (uint32_t c = 0; c < cols; c++) max = fabsf(w[(size_t)r * cols + c]) > max ? fabsf(w[(size_t)r * cols + c]) : max;
        lq_plane_set(&s.scale, &q.scale, r, max / 127);
        for (uint32_t c = 0; c < cols; c++) q.codes[r * q.row_bytes + c] = (uint8_t)(128 + (int)rintf(w[(size_t)r * cols + c] * 127 / max));
    }
    return q;
}

static float *product(const float *w, const float *x, uint32_t rows, uint32_t cols, uint32_t n) {
    float *y = lq_calloc((size_t)rows * n, 4);
    lq_matmul(x, cols, w, cols, y, rows, n, rows, cols);
    return y;
}

static void a_threshold_beyond_reach_is_vector_wise_w8a8(void **state) {
    (void)state;
    for (int scope = 0; scope < 2; scope++) {
        float *w = random_x(90, 640, 1), *x = random_x(40, 640, 2);
        for (size_t i = 0; scope && i < 40 * 640; i++) x[i] = lq_f16_f32(lq_f32_f16(x[i])); /* what bitsandbytes sees in any case */
        lq_qtensor q = int8_q(w, 90, 640, INFINITY), plain = int8_q(w, 90, 640, 0);
        q.sch.act.scope = (uint8_t)scope;
        float *a = run(&q, x, 40), *b = run(&plain, x, 40);
        assert_memory_equal(a, b, 90 * 40 * 4);
        lq_free(a);
        lq_free(b);
        lq_free(w);
        lq_free(x);
        lq_qtensor_free(&q);
        lq_qtensor_free(&plain);
    }
}

static void a_tiny_threshold_leaves_activations_as_they_are(void **state) {
    (void)state;
    float *w = random_x(90, 640, 1), *x = random_x(20, 640, 2);
    lq_qtensor q = int8_q(w, 90, 640, 1e-20f);
    float *v = lq_calloc(90 * 640, 4), *a = run(&q, x, 20);
    for (uint32_t r = 0; r < 90; r++) lq_qtensor_decode_row(&q, r, v + r * 640);
    float *b = product(v, x, 90, 640, 20);
    assert_true(rel(a, b, 90 * 20) < 1e-6);
    lq_free(a);
    lq_free(b);
    lq_free(v);
    lq_free(w);
    lq_free(x);
    lq_qtensor_free(&q);
}

static void the_order_of_columns_changes_nothing(void **state) {
    (void)state;
    enum { ROWS = 50, COLS = 256, N = 12 };
    float *w = random_x(ROWS, COLS, 1), *x = random_x(N, COLS, 2), *w2 = lq_calloc(ROWS * COLS, 4), *x2 = lq_calloc(N * COLS, 4);
    for (uint32_t c = 0; c < COLS; c++) {
        for (uint32_t r = 0; r < ROWS; r++) w2[r * COLS + c * 97 % COLS] = w[r * COLS + c];
        for (uint32_t t = 0; t < N; t++) x2[t * COLS + c * 97 % COLS] = x[t * COLS + c];
    }
    for (int k = 0; k < 2; k++) { /* with outliers only their own sum sees another order */
        lq_qtensor q = int8_q(w, ROWS, COLS, k ? 6 : 0), q2 = int8_q(w2, ROWS, COLS, k ? 6 : 0);
        float *a = run(&q, x, N), *b = run(&q2, x2, N);
        if (k) assert_true(rel(a, b, ROWS * N) < 1e-7);
        else assert_memory_equal(a, b, ROWS * N * 4);
        lq_free(a);
        lq_free(b);
        lq_qtensor_free(&q);
        lq_qtensor_free(&q2);
    }
    lq_free(w);
    lq_free(x);
    lq_free(w2);
    lq_free(x2);
}

static float *planted(uint32_t n, uint32_t cols) {
    float *x = lq_calloc((size_t)n * cols, 4);
    lq_rng rng;
    lq_rng_seed(&rng, 5, 5);
    for (size_t i = 0; i < (size_t)n * cols; i++) x[i] = lq_rng_normal(&rng) * (i % cols == 17 || i % cols == 300 ? 40 : 1);
    return x;
}

static void planted_outliers_lose_at_least_half_their_harm(void **state) {
    (void)state;
    float *w = random_x(128, 512, 1), *x = planted(64, 512), *y = product(w, x, 128, 512, 64);
    for (int scope = 0; scope < 2; scope++) {
        lq_qtensor q = int8_q(w, 128, 512, 6), plain = int8_q(w, 128, 512, 0);
        q.sch.act.scope = (uint8_t)scope;
        float *a = run(&q, x, 64), *b = run(&plain, x, 64);
        assert_true(rel(a, y, 128 * 64) <= 0.5 * rel(b, y, 128 * 64));
        lq_free(a);
        lq_free(b);
        lq_qtensor_free(&q);
        lq_qtensor_free(&plain);
    }
    lq_free(w);
    lq_free(x);
    lq_free(y);
}

static void outliers_by_row_do_not_depend_on_the_batch_and_by_batch_do(void **state) {
    (void)state;
    float *w = random_x(64, 512, 1), *x = planted(32, 512);
    for (int scope = 0; scope < 2; scope++) {
        lq_qtensor q = int8_q(w, 64, 512, 6);
        q.sch.act.scope = (uint8_t)scope;
        float *all = run(&q, x, 32);
        bool same = true;
        for (uint32_t t = 0; t < 32; t++) {
            float *one = run(&q, x + t * 512, 1);
            same = same && !memcmp(one, all + t * 64, 64 * 4);
            lq_free(one);
        }
        assert_true(same == !scope);
        lq_free(all);
        lq_qtensor_free(&q);
    }
    lq_free(w);
    lq_free(x);
}

/* ---- what is kept apart from the codes ---- */

static void kept_columns_sparse_values_and_low_rank_see_activations_as_they_are(void **state) {
    (void)state;
    enum { ROWS = 70, COLS = 384, N = 21, RANK = 3 };
    lq_scheme s = type("W8A8", -1);
    s.extra = LQ_X_OUTLIERS | LQ_X_OUTLIER_COLS | LQ_X_LOWRANK;
    s.rank = RANK;
    lq_qtensor q = random_q(&s, ROWS, COLS, 3);
    lq_rng rng;
    lq_rng_seed(&rng, 1, 1);
    assert_int_equal(lq_qtensor_outlier_cols(NULL, &q, 2), LQ_OK);
    assert_int_equal(lq_qtensor_outliers(NULL, &q, 5), LQ_OK);
    q.outlier_cols.idx[0] = 17, q.outlier_cols.idx[1] = 300;
    for (uint32_t i = 0; i < 2 * ROWS; i++) q.outlier_cols.v[i] = lq_f32_f16(lq_rng_normal(&rng));
    for (uint32_t r = 0; r < ROWS; r++)
        for (int i = 0; i < 2; i++) q.codes[r * q.row_bytes + q.outlier_cols.idx[i]] = (uint8_t)s.grid.bias;
    for (uint32_t i = 0; i < 5; i++) q.outliers.col[i] = 3 * i, q.outliers.v[i] = lq_f32_f16(lq_rng_normal(&rng));
    for (uint32_t r = 0; r <= ROWS; r++) q.outliers.row[r] = r < 5 ? r : 5;
    for (uint32_t i = 0; i < ROWS * RANK; i++) q.lr.a[i] = lq_f32_f16(0.1f * lq_rng_normal(&rng));
    for (uint32_t i = 0; i < COLS * RANK; i++) q.lr.b[i] = lq_f32_f16(0.1f * lq_rng_normal(&rng));
    float *x = planted(N, COLS), *y = run(&q, x, N), *want = lq_calloc(ROWS * N, 4), *v = lq_calloc(ROWS * COLS, 4), *code = lq_calloc(COLS, 4), step;
    uint8_t apart[COLS] = {0};
    apart[17] = apart[300] = 1;
    lq_qtensor bare = q;
    bare.sch.extra = 0;
    for (uint32_t t = 0; t < N; t++) {
        lq_act_quantize(&s.act, 0, apart, x + t * COLS, COLS, code, &step);
        assert_true(step < 0.1f && code[17] == 0 && code[300] == 0); /* the kept columns set no scale */
        for (uint32_t r = 0; r < ROWS; r++) {
            double sum = 0;
            lq_qtensor_decode_row(&bare, r, v);
            lq_qtensor_decode_row(&q, r, v + COLS);
            for (uint32_t c = 0; c < COLS; c++) sum += (double)v[c] * (double)(code[c] * step) + ((double)v[COLS + c] - (double)v[c]) * (double)x[t * COLS + c];
            want[t * ROWS + r] = (float)sum;
        }
    }
    assert_true(rel(y, want, ROWS * N) < 1e-6);
    s.act = (lq_act){0}; /* without rounding the whole is the decoded matrix, token by token too */
    q.sch.act = s.act;
    for (uint32_t r = 0; r < ROWS; r++) lq_qtensor_decode_row(&q, r, v + r * COLS);
    float *b = product(v, x, ROWS, COLS, N), *one = run(&q, x, 1);
    assert_true(rel(one, b, ROWS) < 1e-5);
    lq_free(x);
    lq_free(y);
    lq_free(v);
    lq_free(b);
    lq_free(one);
    lq_free(want);
    lq_free(code);
    lq_qtensor_free(&q);
}

static void activations_that_are_not_finite_are_an_error_that_says_where(void **state) {
    (void)state;
    static const char *const names[] = {"W8A8", "INT8", "FP8", "W8A8-static"};
    for (size_t k = 0; k < 4; k++) {
        lq_scheme s = type(names[k], -1);
        lq_qtensor q = random_q(&s, 40, 256, k);
        float *x = random_x(5, 256, 1), y[5 * 40];
        lq_linear lin = {.rows = 40, .cols = 256, .q = &q};
        lq_ctx ctx = {0};
        x[3 * 256 + 77] = k & 1 ? INFINITY : NAN;
        assert_int_equal(lq_linear_apply(&ctx, lq_kernels_best(), &lin, x, 5, y), LQ_ERR_QUALITY);
        assert_non_null(strstr(ctx.msg, "column 77"));
        lq_free(x);
        lq_qtensor_free(&q);
    }
}

static void codes_of_zero_and_of_tiny_activations_are_zero(void **state) {
    (void)state;
    float x[4] = {0, 0, 0, 0}, code[4], step;
    lq_act a = {LQ_ACT_DYNAMIC, LQ_I8, 0, 0, 0};
    assert_int_equal(lq_act_quantize(&a, 0, NULL, x, 4, code, &step), 4);
    assert_true(code[0] == 0 && step == 0);
    x[2] = 1e-42f;
    assert_int_equal(lq_act_quantize(&a, 0, NULL, x, 4, code, &step), 4);
    assert_true(code[2] == 0);
    x[1] = -254, x[3] = 1; /* a tie goes to the even code */
    assert_int_equal(lq_act_quantize(&a, 0, NULL, x, 4, code, &step), 4);
    assert_true(step == 2 && code[1] == -127 && code[3] == 0);
    a.scope = 2, x[1] = -1; /* a step in F16 */
    x[3] = 0.5f;
    assert_int_equal(lq_act_quantize(&a, 0, NULL, x, 4, code, &step), 4);
    assert_true(step == lq_f16_f32(lq_f32_f16(1 / 127.0f)) && step != 1 / 127.0f && code[1] == -127 && code[3] == 64);
    a.scope = 0, x[1] = -254, x[3] = 1;
    a.kind = LQ_ACT_STATIC; /* saturates */
    assert_int_equal(lq_act_quantize(&a, 0.5f, NULL, x, 4, code, &step), 4);
    assert_true(step == 0.5f && code[1] == -127 && code[3] == 2);
}

/* The figures are torch's: 127 / x is x.reciprocal() * 127 there. */
static void bitnet_rounds_ties_as_torch_divides(void **state) {
    (void)state;
    static const float max[] = {152, 166, 188, 190}, tie[] = {76, 83, 94, 95}, there[] = {64, 63, 63, 64}, once[] = {63, 64, 64, 63};
    lq_act a = {LQ_ACT_DYNAMIC, LQ_I8, 0, 0, LQ_ACT_BITNET};
    float x[2], code[2], step;
    for (int i = 0; i < 4; i++)
        for (int scope = 0; scope <= LQ_ACT_BITNET; scope += LQ_ACT_BITNET) {
            x[0] = max[i], x[1] = tie[i], a.scope = (uint8_t)scope;
            assert_int_equal(lq_act_quantize(&a, 0, NULL, x, 2, code, &step), 2);
            assert_true(code[0] == 127 && code[1] == (scope ? there : once)[i]);
        }
    x[0] = 1e-6f, x[1] = 0, a.scope = LQ_ACT_BITNET; /* no token is scaled as if its largest were below 1e-5 */
    assert_int_equal(lq_act_quantize(&a, 0, NULL, x, 2, code, &step), 2);
    assert_true(code[0] == 13 && code[1] == 0 && step == 1e-5f / 127);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bitnet_rounds_ties_as_torch_divides),
        cmocka_unit_test(fast_e4m3_is_the_definition),
        cmocka_unit_test(integer_sums_are_exact_in_every_scheme),
        cmocka_unit_test(every_scheme_multiplies_what_it_stands_for),
        cmocka_unit_test(a_thread_count_changes_no_bit),
        cmocka_unit_test(a_threshold_beyond_reach_is_vector_wise_w8a8),
        cmocka_unit_test(a_tiny_threshold_leaves_activations_as_they_are),
        cmocka_unit_test(the_order_of_columns_changes_nothing),
        cmocka_unit_test(planted_outliers_lose_at_least_half_their_harm),
        cmocka_unit_test(outliers_by_row_do_not_depend_on_the_batch_and_by_batch_do),
        cmocka_unit_test(kept_columns_sparse_values_and_low_rank_see_activations_as_they_are),
        cmocka_unit_test(activations_that_are_not_finite_are_an_error_that_says_where),
        cmocka_unit_test(codes_of_zero_and_of_tiny_activations_are_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
