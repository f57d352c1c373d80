/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Experts on a device: the choice has the bits of what calib/moe.c says, and rows that pick one of several matrices those of the matrix alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern_device.h"
#include "kernels/ref/ref.h"

#include <stdlib.h>
#include <string.h>

static float *floats(size_t n) { return ck_exact(n * sizeof(float)); }

/* ---- the choice ---- */

/* As transformers has it: the likeliest first, of equals the lower; then in order of experts. */
static void choose_here(float *p, uint32_t experts, uint32_t k, bool shares, float times, int32_t *pick, float *weight) {
    float sum = 0;
    lq_softmax_c(p, experts, 1);
    for (uint32_t c = 0; c < k; c++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t e = 0; e < experts; e++) {
            bool taken = false;
            for (uint32_t i = 0; i < c; i++) taken |= pick[i] == (int32_t)e;
            if (!taken && (best == UINT32_MAX || p[e] > p[best])) best = e;
        }
        pick[c] = (int32_t)best;
        sum += weight[c] = p[best];
    }
    for (uint32_t c = 0; c < k; c++) weight[c] = (shares ? weight[c] / sum : weight[c]) * times;
    for (uint32_t c = 1; c < k; c++)
        for (uint32_t i = c; i && pick[i] < pick[i - 1]; i--) {
            const int32_t e = pick[i];
            const float w = weight[i];
            pick[i] = pick[i - 1], weight[i] = weight[i - 1];
            pick[i - 1] = e, weight[i - 1] = w;
        }
}

static void one_choice(ckd *c, uint32_t experts, uint32_t k, bool shares, float times) {
    enum { N = 5 };
    const size_t all = (size_t)N * experts, rows = (size_t)N * k;
    float *scores = floats(all), *weight = floats(rows), *want = floats(rows);
    int32_t *pick = ck_exact(8 * rows), *token = ck_exact(4 * rows), *want_pick = ck_exact(4 * rows);
    for (size_t i = 0; i < all; i++) scores[i] = i / experts % 2 ? (float)lq_rng_below(&c->rng, 7) : lq_rng_normal(&c->rng) * 4; /* ties; none */
    float *dw = ckd_out(c, 4 * rows);
    int32_t *dp = ckd_out(c, 8 * rows), *dt = ckd_out(c, 4 * rows);
    for (int run = 0; run < CKD_RUNS; run++) {
        float *ds = ckd_in(c, scores, 4 * all);
        ckd_run(c, c->d->ops->route(ds, experts, N, k, shares, times, dp, dw, dt), "route");
        ckd_same(c, run, dp, 8 * rows, pick, "picks");
        ckd_same(c, run, dw, 4 * rows, weight, "weights");
    }
    ckd_get(c, dt, 4 * rows, token);
    for (uint32_t t = 0; t < N; t++) choose_here(scores + (size_t)t * experts, experts, k, shares, times, want_pick + (size_t)t * k, want + (size_t)t * k);
    assert_memory_equal(pick, want_pick, 4 * rows);
    assert_memory_equal(pick + rows, want_pick, 4 * rows);
    ckd_same_floats(c, weight, want, rows, "gains");
    for (size_t i = 0; i < rows; i++) assert_int_equal(token[i], i / k);
    ckd_release(c);
    free(scores), free(weight), free(want), free(pick), free(token), free(want_pick);
}

static void device_chooses_experts_as_the_cpu_does(void **state) {
    static const uint32_t shapes[][2] = {{1, 1}, {2, 1}, {5, 5}, {8, 2}, {31, 4}, {60, 4}, {97, 3}, {128, 8}, {512, 10}, {LQ_DEVICE_EXPERTS, 6}};
    ckd c = ckd_open(*state);
    for (size_t i = 0; i < 2 * sizeof shapes / sizeof *shapes; i++) one_choice(&c, shapes[i / 2][0], shapes[i / 2][1], i % 2, i % 3 ? 1 : 0.22f);
    assert_non_null(c.d->ops->route(NULL, LQ_DEVICE_EXPERTS + 1, 1, 1, 0, 1, NULL, NULL, NULL));
    ckd_close(&c);
}

static void device_merges_in_order(void **state) {
    static const uint32_t shapes[][3] = {{1, 1, 1}, {3, 2, 97}, {5, 8, 1031}, {16, 3, 256}}; /* n, k, width */
    ckd c = ckd_open(*state);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const uint32_t n = shapes[i][0], k = shapes[i][1], width = shapes[i][2];
        const size_t rows = (size_t)n * k, ny = (size_t)n * width;
        float *x = floats(rows * width), *w = floats(rows), *y = floats(ny), *got = floats(ny), *dy = ckd_out(&c, 4 * ny);
        const float *dx = ckd_floats(&c, x, rows * width), *dw = ckd_floats(&c, w, rows);
        ck_floats(y, ny, &c.rng, false);
        assert_true(c.d->put(dy, y, 4 * ny));
        ckd_run(&c, c.d->ops->merge(dy, dx, dw, k, width, n), "merge");
        ckd_get(&c, dy, 4 * ny, got);
        for (size_t r = 0; r < rows; r++)
            for (uint32_t j = 0; j < width; j++) {
                const float part = w[r] * x[r * width + j];
                y[r / k * width + j] += part;
            }
        ckd_same_floats(&c, got, y, ny, "merge");
        ckd_release(&c);
        free(x), free(w), free(y), free(got);
    }
    ckd_close(&c);
}

/* ---- rows that pick ---- */

enum { EXPERTS = 3, ROWS = 7 };
static const int32_t picks[ROWS] = {2, 0, 0, 1, 2, 1, 0};

typedef struct stack { lq_packed p[EXPERTS]; lq_device_matrix m[EXPERTS]; } stack;

/* Matrices alike, one behind the other; false: this scheme has none of this shape, or a table for each. */
static bool make_stack(ckd *c, const lq_scheme *s, uint32_t rows, uint32_t cols, bool perm, lq_act act, stack *k) {
    uint32_t made = 0;
    bool ok = true;
    for (; ok && made < EXPERTS; made += ok) ok = ckd_packed(c, s, rows, cols, perm, act, &k->p[made]);
    for (uint32_t e = 1; ok && e < EXPERTS; e++) {
        const lq_device_matrix a = lq_device_shape(&k->p[0]), b = lq_device_shape(&k->p[e]);
        ok = lq_device_alike(&a, &b) && a.up == b.up && a.shift == b.shift;
    }
    const size_t codes = ok ? lq_device_bytes(&k->p[0]) : 0, params = ok ? (size_t)lq_device_param_bytes(&k->p[0]) : 0;
    char *at[3] = {NULL, NULL, NULL};
    if (ok) at[0] = ckd_out(c, codes * EXPERTS + 16), at[1] = ckd_out(c, params * EXPERTS + 16), at[2] = ckd_out(c, 4 * (size_t)cols * EXPERTS);
    for (uint32_t e = 0; ok && e < EXPERTS; e++) {
        k->m[e] = (lq_device_matrix){.codes = at[0] + e * codes, .params = at[1] + e * params, .perm = (const uint32_t *)(const void *)(at[2] + e * (size_t)cols * 4)};
        assert_true(lq_device_fill(c->d, &k->p[e], &k->m[e]));
    }
    for (uint32_t e = 0; !ok && e < made; e++) lq_packed_free(&k->p[e]);
    return ok;
}

/* The same product of every row alone, of its expert. */
static void compare_rows(ckd *c, const lq_device_product *d, const stack *k, size_t rows, float *picked) {
    float *y = floats(ROWS * rows), *dy = ckd_out(c, 4 * ROWS * rows);
    for (uint32_t t = 0; t < ROWS; t++) {
        lq_device_product one = *d;
        one.n = 1, one.pick = NULL;
        one.part[0].m = one.part[1].m = &k->m[picks[t]];
        one.part[0].y = dy + t * rows;
        if (one.x) one.x += (size_t)t * k->m[0].cols;
        if (one.codes) one.codes += (size_t)t * lq_packed_ld(&k->p[0]), one.step += (size_t)t * k->m[0].segs, one.sum += (size_t)t * k->m[0].segs;
        ckd_run(c, c->d->ops->product(&one), "product alone");
    }
    ckd_get(c, dy, 4 * ROWS * rows, y);
    ckd_same_floats(c, picked, y, ROWS * rows, "picked and alone");
    ck_note(picked, 4 * ROWS * rows);
    free(y);
}

static void one_stack(ckd *c, const stack *k, bool rounded, bool joint) {
    const uint32_t rows = k->m[0].rows, cols = k->m[0].cols;
    float *x = floats((size_t)ROWS * cols), *gain = floats(cols), *y = floats((size_t)ROWS * rows), *dy = ckd_out(c, 4 * (size_t)ROWS * rows);
    const float *dx = ckd_floats(c, x, (size_t)ROWS * cols);
    const lq_device_norm norm = {ckd_floats(c, gain, cols), NULL, 1e-5f, 0};
    lq_device_product d = {.n = ROWS, .parts = joint ? 2 : 1, .pick = ckd_in(c, picks, sizeof picks), .glu = joint, .act = LQ_ACTFN_SILU};
    d.part[0].m = d.part[1].m = &k->m[0];
    d.part[0].y = dy;
    ckd_acts a = {0};
    if (rounded) {
        a = ckd_acts_make(&k->p[0], ROWS, false, &c->rng);
        d.codes = ckd_in(c, a.x.x, (size_t)ROWS * lq_packed_ld(&k->p[0]));
        d.step = ckd_in(c, a.x.step, 4 * (size_t)ROWS * k->m[0].segs);
        d.sum = ckd_in(c, a.x.sum, 4 * (size_t)ROWS * k->m[0].segs);
    } else d.x = dx, d.norm = joint ? &norm : NULL;
    ckd_run(c, c->d->ops->product(&d), "product of picked");
    ckd_get(c, dy, 4 * (size_t)ROWS * rows, y);
    compare_rows(c, &d, k, rows, y);
    if (rounded) ckd_acts_free(&a);
    free(x), free(gain), free(y);
}

static void device_rows_pick_their_matrices(void **state) {
    static const uint32_t shapes[][2] = {{17, 97}, {33, 240}, {16, 640}, {5, 1920}};
    const lq_act act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8};
    ckd c = ckd_open(*state);
    size_t seen = 0, at = 0;
    for (const ck_scheme *s = ck_all_schemes(); s->name; s++)
        for (int rounded = 0; rounded < 2; rounded++) {
            for (size_t tries = 0; tries < 4; tries++) {
                const uint32_t *shape = shapes[at++ % 4];
                stack k;
                if (!make_stack(&c, &s->s, shape[0], shape[1], !rounded && at % 2, rounded ? act : (lq_act){0}, &k)) continue;
                if (!rounded || k.m[0].times) one_stack(&c, &k, rounded, at % 3), seen++;
                for (int e = 0; e < EXPERTS; e++) lq_packed_free(&k.p[e]);
                ckd_release(&c);
                break;
            }
        }
    assert_true(seen > 60);
    ckd_close(&c);
}

static void device_rows_pick_their_floats(void **state) {
    static const lq_dtype types[] = {LQ_F32, LQ_F16, LQ_BF16};
    static const uint32_t shapes[][2] = {{1, 1}, {37, 97}, {64, 264}, {5, 1031}};
    ckd c = ckd_open(*state);
    for (size_t i = 0; i < 3 * sizeof shapes / sizeof *shapes; i++) {
        const lq_dtype type = types[i % 3];
        const uint32_t rows = shapes[i / 3][0], cols = shapes[i / 3][1];
        const size_t nw = (size_t)EXPERTS * rows * cols, each = lq_dtype_row_bytes(type, (size_t)rows * cols);
        float *w = floats(nw), *x = floats((size_t)ROWS * cols), *y = floats((size_t)ROWS * rows), *alone = floats((size_t)ROWS * rows);
        uint8_t *stored = ck_exact(each * EXPERTS);
        ck_floats(w, nw, &c.rng, false);
        lq_dtype_encode(type, w, stored, nw);
        const uint8_t *dw = ckd_in(&c, stored, each * EXPERTS);
        const float *dx = ckd_floats(&c, x, (size_t)ROWS * cols);
        float *dy = ckd_out(&c, 4 * (size_t)ROWS * rows), *da = ckd_out(&c, 4 * (size_t)ROWS * rows);
        lq_device_dense m = {.rows = rows, .cols = cols, .dtype = (uint8_t)type, .w = dw, .pick = ckd_in(&c, picks, sizeof picks)};
        ckd_run(&c, c.d->ops->dense(&m, dx, ROWS, dy), "dense of picked");
        for (uint32_t t = 0; t < ROWS; t++) {
            m.pick = NULL, m.w = dw + (size_t)picks[t] * each;
            ckd_run(&c, c.d->ops->dense(&m, dx + (size_t)t * cols, 1, da + (size_t)t * rows), "dense");
        }
        ckd_get(&c, dy, 4 * (size_t)ROWS * rows, y);
        ckd_get(&c, da, 4 * (size_t)ROWS * rows, alone);
        ckd_same_floats(&c, y, alone, (size_t)ROWS * rows, "dense of picked");
        ckd_release(&c);
        free(w), free(x), free(y), free(alone), free(stored);
    }
    ckd_close(&c);
}

void ck_device_experts_add(const ck_variant *v, lq_dtype t) {
    ck_add(device_chooses_experts_as_the_cpu_does, "device_route", v, NULL, t);
    ck_add(device_merges_in_order, "device_merge", v, NULL, t);
    ck_add(device_rows_pick_their_matrices, "device_pick", v, NULL, t);
    ck_add(device_rows_pick_their_floats, "device_pick_dense", v, NULL, t);
}
