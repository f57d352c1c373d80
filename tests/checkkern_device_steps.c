/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Weights of E4M3 times activations of E4M3 (lq_device_steps): what a device rounds is the definition bit for bit, code and step apart, and products are near
 *
 *   y[r] = sum over tiles of  step sum s[r] code A(q[r])
 *
 * in fp64. Codes are exact as halves and so are their products in fp32: only sums are rounded, of mma, of units, of warps, and the two factors of a unit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/act.h"
#include "checkkern_device.h"

#include <float.h>
#include <stdlib.h>

static const double EPS = FLT_EPSILON;

typedef struct shape { uint32_t rows, cols, n, high, wide; lq_act act; bool perm; } shape; /* weights: rows and columns of a scale, as lq_plane_desc has them */

#define DYN(tile_) {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_E4M3, .tile = tile_}
static const lq_act fixed = {.kind = LQ_ACT_STATIC, .dtype = LQ_E4M3};
static const shape shapes[] = {
    {1, 1, 1, 1, 0, DYN(0), false},        {17, 97, 3, 1, 0, DYN(0), false},      {33, 640, 8, 1, 0, DYN(0), true},     {40, 384, 9, 128, 128, DYN(128), false}, {16, 4352, 16, 128, 128, DYN(128), false},
    {130, 300, 5, 128, 128, DYN(128), false}, {37, 257, 16, 0, 0, DYN(0), false}, {64, 640, 33, 1, 0, DYN(0), true},    {150, 500, 70, 128, 128, DYN(128), false}, {20, 1031, 17, 0, 0, DYN(0), false},
    {20, 320, 2, 1, 0, DYN(64), false},    {300, 97, 24, 1, 0, DYN(32), false},
};

typedef struct made {
    const shape *s;
    lq_packed m;
    lq_device_matrix dm;
    float *x, *code, *step, *bias;
    const float *dcode, *dstep, *dbias;
    uint32_t tiles;
} made;

static float *floats(size_t n) { return ck_exact(n * sizeof(float)); }

/* Rounded on the device, which is the definition. */
static void round_acts(ckd *c, const lq_act *act, made *a) {
    const uint32_t n = a->s->n, cols = a->s->cols;
    const size_t nx = (size_t)n * cols, ns = (size_t)n * a->tiles;
    float *want = floats(cols), *want_step = floats(a->tiles), *dc = ckd_out(c, 4 * nx), *ds = ckd_out(c, 4 * ns);
    for (size_t i = 0; i < nx; i++) a->x[i] = lq_rng_normal(&c->rng) * (lq_rng_below(&c->rng, 50) ? 1 : 30);
    const lq_device_round o = {.act = *act, .fixed = 0.013f, .worth = ds};
    const float *dx = ckd_in(c, a->x, 4 * nx);
    for (int run = 0; run < CKD_RUNS; run++) {
        ckd_run(c, c->d->ops->act(&o, dx, cols, n, dc), "act");
        ckd_same(c, run, dc, 4 * nx, a->code, "codes");
        ckd_same(c, run, ds, 4 * ns, a->step, "steps");
    }
    for (uint32_t t = 0; t < n; t++) {
        assert_int_equal(lq_act_quantize(act, o.fixed, NULL, a->x + (size_t)t * cols, cols, want, want_step), cols);
        ckd_same_floats(c, a->code + (size_t)t * cols, want, cols, "codes");
        ckd_same_floats(c, a->step + (size_t)t * a->tiles, want_step, a->tiles, "steps");
    }
    a->dcode = dc;
    a->dstep = ds;
    free(want), free(want_step);
}

static void make(ckd *c, const shape *s, const lq_act *act, made *a) {
    const lq_scheme scheme = {.grid = {.kind = LQ_GRID_E4M3, .bits = 8, .vec = 1}, .scale = {.dtype = LQ_F32, .tile_r = s->high, .tile_c = s->wide}};
    *a = (made){.s = s, .tiles = lq_act_tiles(act, s->cols), .x = floats((size_t)s->n * s->cols), .code = floats((size_t)s->n * s->cols), .bias = floats(s->rows)};
    a->step = floats((size_t)s->n * a->tiles);
    assert_true(ckd_packed(c, &scheme, s->rows, s->cols, s->perm, (lq_act){0}, &a->m));
    assert_true(lq_device_put(c->d, &a->m, &a->dm) && lq_device_steps(&a->dm, act->tile));
    round_acts(c, act, a);
    a->dbias = ckd_floats(c, a->bias, s->rows);
}

static void drop(ckd *c, made *a) {
    lq_device_drop(c->d, &a->dm);
    lq_packed_free(&a->m);
    free(a->x), free(a->code), free(a->step), free(a->bias);
    ckd_release(c);
}

static double definition(const made *a, uint32_t t, uint32_t r, double *off) {
    const uint32_t cols = a->s->cols, wide = a->tiles > 1 ? a->s->act.tile : cols;
    double sum = 0, mass = 0;
    for (uint32_t i = 0; i < cols; i++) {
        const uint32_t k = a->m.q.perm ? a->m.q.perm[i] : i;
        const double w = (double)lq_grid_value(&a->m.q, r, lq_packed_code(&a->m, r, i)) * (double)lq_packed_scale(&a->m, r, i / a->m.seg);
        const double v = w * (double)a->code[(size_t)t * cols + k] * (double)a->step[(size_t)t * a->tiles + i / wide];
        sum += v;
        mass += fabs(v);
    }
    *off = (cols / 16.0 + 64) * EPS * mass + 1e-30;
    return sum;
}

static void one(ckd *c, const shape *s, const lq_act *act, bool biased) {
    made a;
    make(c, s, act, &a);
    const size_t n = (size_t)s->n * s->rows;
    float *y = floats(n), *dy = ckd_out(c, 4 * n);
    lq_device_product p = {.n = s->n, .parts = 1, .x = a.dcode, .step = a.dstep, .tile = act->tile};
    p.part[0].m = &a.dm;
    p.part[0].y = dy;
    p.part[0].bias = biased ? a.dbias : NULL;
    for (int run = 0; run < CKD_RUNS; run++) {
        ckd_run(c, c->d->ops->product(&p), "product in steps");
        ckd_same(c, run, dy, 4 * n, y, "product in steps");
    }
    ck_note(y, 4 * n);
    for (uint32_t t = 0; t < s->n; t++)
        for (uint32_t r = 0; r < s->rows; r++) {
            double off, v = definition(&a, t, r, &off);
            if (biased) v += (double)a.bias[r], off += EPS * fabs(v);
            ckd_near(c, y[(size_t)t * s->rows + r], v, off, "product in steps", (size_t)t * s->rows + r);
        }
    free(y);
    drop(c, &a);
}

static void device_multiplies_small_floats_as_they_are(void **state) {
    ckd c = ckd_open(*state);
    ck_worst = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        one(&c, &shapes[i], &shapes[i].act, false);
        one(&c, &shapes[i], shapes[i].act.tile ? &shapes[i].act : &fixed, true);
    }
    print_message("    %s: worst error %.2f of its bound\n", c.name, ck_worst);
    ckd_close(&c);
}

void ck_device_steps_add(const ck_variant *v, lq_dtype t) { ck_add(device_multiplies_small_floats_as_they_are, "device_steps", v, NULL, t); }
