/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The key-value cache in small types: what is read back, what attention makes of it, what it weighs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "calib/kv.h"
#include "calib/run.h"
#include "core/thread.h"
#include "golden_forward.h"

enum { HEADS = 2, N = 100 };

static float *random_rows(uint32_t n, uint32_t width, uint64_t seed) { /* one channel of each 24 is large, as keys have them */
    float *x = lq_calloc((size_t)n * width, 4);
    lq_rng rng;
    lq_rng_seed(&rng, seed, 4);
    for (size_t i = 0; i < (size_t)n * width; i++) x[i] = lq_rng_normal(&rng) + (i % width % 24 == 5 ? 8 : 0);
    return x;
}

static float largest(const float *x, size_t n) {
    float max = 0;
    for (size_t i = 0; i < n; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    return max;
}

/* Half a step and what rounding the step (2^-11) and, in int4, the minimum to F16 may add; with fixed steps no row is beyond them. */
static double bound_of(lq_kv_kind kind, const float *x, uint32_t dim, float fixed) {
    double max = largest(x, dim), b = 0;
    if (kind == LQ_KV_F16) return max / 2048;
    if (kind == LQ_KV_INT8) return (fixed > 0 ? 0.5 * fixed * 448 / 127 : 0.5 * max / 127 + max / 2048) * 1.001;
    if (kind == LQ_KV_FP8) return max / 16 + max / 2048;
    for (uint32_t c = 0; c < dim; c += LQ_KV_GROUP) {
        uint32_t end = dim - c < LQ_KV_GROUP ? dim : c + LQ_KV_GROUP;
        double low = x[c], high = x[c];
        for (uint32_t i = c; i < end; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        double here = 0.5 * (high - low) / 15 + (fabs(low) + high - low) / 1024;
        b = here > b ? here : b;
    }
    return b;
}

static void rows_come_back_within_half_a_step(void **state) {
    (void)state;
    static const uint32_t dims[] = {64, 80, 96, 6, 1 << 7};
    for (int kind = LQ_KV_F16; kind < LQ_KV_N; kind++)
        for (size_t k = 0; k < sizeof dims / sizeof *dims; k++)
            for (int fixed = 0; fixed < (kind == LQ_KV_INT8 || kind == LQ_KV_FP8 ? 2 : 1); fixed++) {
                uint32_t dim = dims[k], width = HEADS * dim;
                float *x = random_rows(N, width, k), *v = random_rows(N, width, k + 9), *got = lq_calloc((size_t)N * dim, 4), *row = lq_calloc(dim, 4);
                float steps[4] = {0, 0, largest(x, (size_t)N * width) / 448, largest(v, (size_t)N * width) / 448};
                lq_kv kv;
                assert_int_equal(lq_kv_init(NULL, &kv, (lq_kv_kind)kind, 2, N + 7, HEADS, dim, fixed ? steps : NULL), LQ_OK);
                lq_kv_put(&kv, 1, 0, 40, x, v); /* in two pieces */
                lq_kv_put(&kv, 1, 40, N - 40, x + 40 * (size_t)width, v + 40 * (size_t)width);
                for (uint32_t h = 0; h < HEADS; h++)
                    for (int values = 0; values < 2; values++) {
                        lq_kv_get(&kv, 1, values, 0, N, h, got);
                        for (uint32_t t = 0; t < N; t++) {
                            memcpy(row, (values ? v : x) + (size_t)t * width + h * dim, dim * sizeof *row);
                            if (!values && kind == LQ_KV_INT4) lq_kv_turn(row, dim); /* keys are kept turned */
                            double most = bound_of((lq_kv_kind)kind, row, dim, fixed ? steps[2 + values] : 0);
                            for (uint32_t i = 0; i < dim; i++)
                                if (!(fabs((double)got[t * dim + i] - row[i]) <= most)) fail_msg("kind %d, dim %u: %g, expected %g within %g", kind, dim, (double)got[t * dim + i], (double)row[i], most);
                        }
                    }
                lq_kv_free(&kv);
                lq_free(x);
                lq_free(v);
                lq_free(got);
                lq_free(row);
            }
}

static void memory_falls_with_the_type(void **state) {
    (void)state;
    static const double bits[] = {0, 16, 8.25, 8.25, 5}; /* a head of 64 */
    for (int kind = LQ_KV_F16; kind < LQ_KV_N; kind++) {
        lq_kv kv;
        assert_int_equal(lq_kv_init(NULL, &kv, (lq_kv_kind)kind, 3, 100, HEADS, 64, NULL), LQ_OK);
        assert_true(8.0 * (double)lq_kv_bytes(&kv) == bits[kind] * 2 * 3 * 100 * HEADS * 64);
        lq_kv_free(&kv);
    }
    lq_kv kv;
    float steps[2] = {1, 1};
    assert_int_equal(lq_kv_init(NULL, &kv, LQ_KV_INT8, 1, 100, HEADS, 64, steps), LQ_OK);
    assert_int_equal(lq_kv_bytes(&kv), 2 * 100 * HEADS * 64);
    lq_kv_free(&kv);
    assert_int_equal(lq_kv_init(NULL, &kv, LQ_KV_INT8, UINT32_MAX, UINT32_MAX, UINT32_MAX / 128, 64, NULL), LQ_ERR_RESOURCE);
}

static void turning_queries_and_keys_leaves_their_products(void **state) {
    (void)state;
    static const uint32_t dims[] = {64, 96, 80, 10};
    for (size_t k = 0; k < 4; k++) {
        float *q = random_rows(1, dims[k], 1), *x = random_rows(1, dims[k], 2), *y = lq_calloc(dims[k], 4);
        double a = 0, b = 0, size = 0;
        memcpy(y, x, dims[k] * sizeof *y);
        for (uint32_t i = 0; i < dims[k]; i++) a += (double)q[i] * x[i], size += fabs((double)q[i] * x[i]);
        lq_kv_turn(q, dims[k]);
        lq_kv_turn(x, dims[k]);
        for (uint32_t i = 0; i < dims[k]; i++) b += (double)q[i] * x[i];
        assert_true(fabs(a - b) < 1e-6 * size);
        lq_kv_turn(x, dims[k]);
        assert_true(distance(x, y, dims[k]) < 1e-6);
        lq_free(q);
        lq_free(x);
        lq_free(y);
    }
}

/* |out' - out| <= max |v' - v| + (e^(2 e) - 1) max |v|, e the largest error of a score: softmax weights change by e^(+-2 e). */
static void attention_stays_within_its_bound(void **state) {
    (void)state;
    enum { DIM = 64 };
    for (int kind = LQ_KV_F16; kind < LQ_KV_N; kind++) {
        float *k = random_rows(N, HEADS * DIM, 3), *v = random_rows(N, HEADS * DIM, 4), *q = random_rows(1, HEADS * DIM, 5), kq[N * DIM], vq[N * DIM];
        float turned[HEADS * DIM];
        lq_kv kv;
        assert_int_equal(lq_kv_init(NULL, &kv, (lq_kv_kind)kind, 1, N, HEADS, DIM, NULL), LQ_OK);
        lq_kv_put(&kv, 0, 0, N, k, v);
        memcpy(turned, q, sizeof turned);
        lq_kv_queries(&kv, turned, 1, HEADS);
        for (uint32_t h = 0; h < HEADS; h++) {
            double score[2][N], sum[2] = {0}, out[2][DIM] = {{0}}, e = 0, dv = 0, top = 0;
            lq_kv_get(&kv, 0, false, 0, N, h, kq);
            lq_kv_get(&kv, 0, true, 0, N, h, vq);
            for (uint32_t t = 0; t < N; t++) {
                score[0][t] = score[1][t] = 0;
                for (uint32_t i = 0; i < DIM; i++) {
                    float key = k[t * HEADS * DIM + h * DIM + i], value = v[t * HEADS * DIM + h * DIM + i];
                    score[0][t] += (double)q[h * DIM + i] * key / 8;
                    score[1][t] += (double)turned[h * DIM + i] * kq[t * DIM + i] / 8;
                    dv = fmax(dv, fabs((double)value - vq[t * DIM + i]));
                    top = fmax(top, fabs((double)value));
                }
                e = fmax(e, fabs(score[0][t] - score[1][t]));
            }
            for (int s = 0; s < 2; s++)
                for (uint32_t t = 0; t < N; t++) sum[s] += exp(score[s][t]);
            for (uint32_t t = 0; t < N; t++)
                for (uint32_t i = 0; i < DIM; i++) {
                    out[0][i] += exp(score[0][t]) / sum[0] * v[t * HEADS * DIM + h * DIM + i];
                    out[1][i] += exp(score[1][t]) / sum[1] * vq[t * DIM + i];
                }
            for (uint32_t i = 0; i < DIM; i++) assert_true(fabs(out[0][i] - out[1][i]) <= dv + (exp(2 * e) - 1) * top);
            assert_true(e < (kind == LQ_KV_INT4 ? 3 : kind == LQ_KV_FP8 ? 1.5 : 0.3)); /* the bound says something */
        }
        lq_kv_free(&kv);
        lq_free(k);
        lq_free(v);
        lq_free(q);
    }
}

static float *hidden_with(fixture *f, int kind, uint32_t step, bool scoring) {
    lq_state *s;
    OK(f, lq_state_new_kv(&f->ctx, f->m, f->n, scoring, &(lq_kv_opts){kind, 0}, &s));
    float *hidden = LQ_NEWN(float, (size_t)f->n * f->m->par.hidden);
    for (uint32_t i = 0; i < f->n; i += step)
        OK(f, lq_forward(&f->ctx, s, f->ids + i, f->n - i < step ? f->n - i : step, hidden + (size_t)i * f->m->par.hidden));
    lq_state_free(&s);
    return hidden;
}

static void the_forward_pass_reads_the_packed_cache(void **state) {
    (void)state;
    static const char *const variants[] = {"llama", "gemma2", "qwen2"}; /* windows, caps, biases of keys */
    static const double most[] = {1e-9, 1e-2, 0.15, 0.6, 1.2}; /* these models multiply an error of the cache by about 20 */
    for (size_t v = 0; v < 3; v++) {
        fixture f;
        open_golden(&f, variants[v]);
        size_t n = (size_t)f.n * f.m->par.hidden;
        float *want = hidden_with(&f, LQ_KV_F32, f.n, true);
        for (int kind = LQ_KV_F32; kind < LQ_KV_N; kind++) {
            float *a = hidden_with(&f, kind, f.n, true), *b = hidden_with(&f, kind, 5, false);
            double d = distance(a, want, n);
            if (!(d <= most[kind]) || (kind > LQ_KV_F16 && d == 0)) fail_msg("%s, kind %d: off by %g", variants[v], kind, d);
            if (kind <= LQ_KV_F16) assert_true(distance(b, a, n) < 5e-3); /* in pieces: the same values, but for a code that flips */
            else assert_true(distance(b, a, n) <= most[kind]);
            lq_threads_set(3);
            float *c = hidden_with(&f, kind, f.n, true);
            lq_threads_set(0);
            assert_memory_equal(a, c, n * sizeof *a);
            lq_free(a);
            lq_free(b);
            lq_free(c);
        }
        lq_free(want);
        close_golden(&f);
    }
}

static void scales_of_a_model_are_used_when_there_are_some(void **state) {
    (void)state;
    fixture f;
    lq_state *s = NULL;
    open_golden(&f, "llama");
    lq_kv_opts o = {LQ_KV_INT8, 1};
    assert_int_equal(lq_state_new_kv(&f.ctx, f.m, f.n, true, &o, &s), LQ_ERR_USAGE);
    assert_null(s);
    f.m->kv_steps = LQ_NEWN(float, 2 * (size_t)f.m->par.n_layers);
    for (uint32_t i = 0; i < 2 * f.m->par.n_layers; i++) f.m->kv_steps[i] = 4.0f / 448;
    assert_int_equal(lq_state_new_kv(&f.ctx, f.m, f.n, true, &o, &s), LQ_OK);
    assert_int_equal(lq_state_kv_bytes(s), 2 * f.n * f.m->par.n_kv_heads * f.m->par.head_dim);
    lq_state_free(&s);
    close_golden(&f);
}

/* Tasks of keys instead of a task a head: no bit of a long sequence's next token changes. */
static void a_long_sequence_is_split_without_changing_a_bit(void **state) {
    (void)state;
    enum { HELD = 1900, ALL = 6, KV = 2, DIM = 40 };
    const lq_params par = {.n_heads = ALL, .n_kv_heads = KV, .head_dim = DIM};
    float *k = random_rows(HELD, KV * DIM, 3), *v = random_rows(HELD, KV * DIM, 4), *q = random_rows(1, ALL * DIM, 5), want[ALL * DIM], got[ALL * DIM];
    for (int kind = LQ_KV_F32; kind < LQ_KV_N; kind++) {
        lq_run whole = {.par = &par, .k = lq_kernels_best()}, split = whole;
        lq_kv kv;
        assert_int_equal(lq_kv_init(NULL, &kv, (lq_kv_kind)kind, 1, HELD, KV, DIM, NULL), LQ_OK);
        lq_kv_put(&kv, 0, 0, HELD, k, v);
        whole.width[T_Q] = split.width[T_Q] = ALL * DIM;
        assert_int_equal(lq_work_fit(NULL, &whole.work, lq_attn_scratch(&par, HELD), 0), LQ_OK);
        assert_true(lq_attn_shared(&par, HELD) > 0);
        assert_int_equal(lq_work_fit(NULL, &split.work, lq_attn_scratch(&par, HELD), lq_attn_shared(&par, HELD)), LQ_OK);
        const lq_span span = {.n = 1, .pos = HELD - 1, .kv = &kv};
        for (uint32_t window = 0; window < 1800; window += 1700) {
            lq_attn(&whole, window, q, want, &span, 1);
            memset(got, 0xff, sizeof got);
            lq_attn(&split, window, q, got, &span, 1);
            assert_memory_equal(got, want, sizeof got);
        }
        lq_work_free(&whole.work);
        lq_work_free(&split.work);
        lq_kv_free(&kv);
    }
    lq_free(k), lq_free(v), lq_free(q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_long_sequence_is_split_without_changing_a_bit),
        cmocka_unit_test(rows_come_back_within_half_a_step),
        cmocka_unit_test(memory_falls_with_the_type),
        cmocka_unit_test(turning_queries_and_keys_leaves_their_products),
        cmocka_unit_test(attention_stays_within_its_bound),
        cmocka_unit_test(the_forward_pass_reads_the_packed_cache),
        cmocka_unit_test(scales_of_a_model_are_used_when_there_are_some),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
