/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Products that take codes and what rounding has left out of them from one pass over the weights (lq_device_rest), against the definition in fp64:
 *
 *   y[r] = step s[r] sum code A(q[r])  +  s[r] sum over what is left out of x A(q[r])
 *
 * The first sum is whole and rounded once. Of the second, x is a half and the half of what that leaves, within 2^-22 of x or 2^-25; products of halves with whole
 * numbers below 2^8 are exact, sums fp32: those of a warp along the columns, eight of warps, the scale, the sum of both. And the bits of the plain product where nothing is left out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/act.h"
#include "checkkern_device.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

static const double EPS = FLT_EPSILON;

typedef struct shape { uint32_t rows, cols, n; uint8_t scope; bool perm; float often; } shape; /* scope 1: columns of a batch; often: of how many one is an outlier, 0: none */

static const shape shapes[] = {
    {1, 1, 1, 0, false, 1},         {16, 32, 1, 0, false, 0},      {17, 97, 3, 0, false, 9},     {33, 640, 8, 0, true, 40},   {40, 1031, 5, 1, false, 200}, {16, 4352, 8, 0, false, 200},
    {20, 1920, 16, 0, false, 150},  {37, 257, 11, 1, true, 60},    {64, 640, 33, 0, false, 300}, {130, 300, 70, 1, false, 900}, {300, 97, 17, 0, true, 20},  {16, 9000, 2, 0, false, 200},
    {32, 512, 24, 0, false, 0},
};

typedef struct made { /* on the host, on the device */
    shape s;
    lq_packed m;
    lq_device_matrix dm;
    float *x, *bias, *before;
    const float *dx, *dbias;
    int8_t *code;                   /* as rounded on the device, which has checks of its own */
    float *step;
    uint32_t *where;
    lq_device_product p;
} made;

static bool make(ckd *c, const shape *s, made *a) {
    const lq_act act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .outlier = 6, .scope = s->scope};
    const lq_scheme scheme = {.grid = {.kind = LQ_GRID_INT, .bits = 8, .vec = 1, .bias = 128}, .scale = {.dtype = LQ_F32, .tile_r = 1}};
    const size_t nx = (size_t)s->n * s->cols;
    *a = (made){.s = *s, .x = ck_exact(4 * nx), .bias = ck_exact(4 * (size_t)s->rows), .before = ck_exact(4 * (size_t)s->n * s->rows)};
    if (!ckd_packed(c, &scheme, s->rows, s->cols, s->perm, act, &a->m)) return false;
    assert_true(lq_device_put(c->d, &a->m, &a->dm));
    assert_true(lq_device_splits(&a->dm));
    for (size_t i = 0; i < nx; i++) a->x[i] = lq_rng_normal(&c->rng) * (s->often > 0 && !lq_rng_below(&c->rng, (uint32_t)s->often) ? 4000 : 1);
    a->dx = ckd_in(c, a->x, 4 * nx);
    a->dbias = ckd_floats(c, a->bias, s->rows);
    ck_floats(a->before, (size_t)s->n * s->rows, &c->rng, false);
    const size_t ld = (size_t)s->n * lq_packed_ld(&a->m);
    int8_t *code = ckd_out(c, ld);
    float *step = ckd_out(c, 4 * (size_t)s->n);
    int32_t *sum = ckd_out(c, 4 * (size_t)s->n);
    const lq_device_round o = {.act = act, .left = {ckd_out(c, ld / 8), ckd_out(c, 4 * ld)}, .mark = s->scope == 1 ? ckd_out(c, s->cols) : NULL};
    ckd_run(c, c->d->ops->round(&a->dm, &o, a->dx, s->n, code, step, sum), "round");
    a->p = (lq_device_product){.n = s->n, .parts = 1, .codes = code, .step = step, .sum = sum, .rest = o.left, .scale = 0.75f};
    a->p.part[0].m = &a->dm;
    a->code = ck_exact(ld), a->step = ck_exact(4 * (size_t)s->n), a->where = ck_exact(ld / 8);
    ckd_get(c, code, ld, a->code);
    ckd_get(c, step, 4 * (size_t)s->n, a->step);
    ckd_get(c, o.left.where, ld / 8, a->where);
    return true;
}

static void drop(ckd *c, made *a) {
    lq_device_drop(c->d, &a->dm);
    lq_packed_free(&a->m);
    free(a->x), free(a->bias), free(a->before), free(a->code), free(a->step), free(a->where);
    ckd_release(c);
}

/* Row r of token t, and what a device's may be off by. */
static double definition(const made *a, uint32_t t, uint32_t r, double *off) {
    const uint32_t cols = a->s.cols, ld = lq_packed_ld(&a->m);
    double whole = 0, left = 0, mass = 0, flat = 0, s = (double)lq_packed_scale(&a->m, r, 0);
    for (uint32_t i = 0; i < cols; i++) {
        const size_t at = (size_t)t * ld + i;
        const double w = (double)lq_packed_code(&a->m, r, i) - 128, x = (double)a->x[(size_t)t * cols + (a->m.q.perm ? a->m.q.perm[i] : i)];
        whole += w * a->code[at];
        if (!(a->where[at / 32] >> i % 32 & 1)) continue;
        assert_int_equal(a->code[at], 0);
        left += w * x;
        mass += fabs(w * x);
        flat += fabs(w);
    }
    const double sum = (double)a->step[t] * s * whole, sums = 2 * (cols / 8.0 / 16 + 1) * 3 + 16; /* mma of a warp, each a few roundings; of warps */
    *off = fabs(s) * (mass * (0x1p-22 + sums * EPS) + flat * 0x1p-25) + EPS * (fabs(sum) + 2 * fabs(s * left)) + 1e-30;
    return sum + s * left;
}

typedef enum ending { PLAIN, BIAS, ADD } ending;

static void run(ckd *c, made *a, ending end, float *y) {
    const size_t n = 4 * (size_t)a->s.n * a->s.rows;
    a->p.part[0].bias = end == BIAS ? a->dbias : NULL;
    a->p.add = end == ADD;
    for (int again = 0; again < CKD_RUNS; again++) {
        a->p.part[0].y = ckd_out(c, n);
        if (end == ADD) assert_true(c->d->put(a->p.part[0].y, a->before, n));
        ckd_run(c, c->d->ops->product(&a->p), "product and rest");
        ckd_same(c, again, a->p.part[0].y, n, y, "product and rest");
    }
    ck_note(y, n);
}

static void check(ckd *c, const made *a, ending end, const float *y) {
    for (uint32_t t = 0; t < a->s.n; t++)
        for (uint32_t r = 0; r < a->s.rows; r++) {
            const size_t i = (size_t)t * a->s.rows + r;
            double off, v = definition(a, t, r, &off);
            if (end == BIAS) v += (double)a->bias[r], off += EPS * fabs(v);
            if (end == ADD) off = 0.75 * off + 2 * EPS * (fabs((double)a->before[i]) + fabs(v)), v = (double)a->before[i] + 0.75 * v;
            ckd_near(c, y[i], v, off, "product and rest", i);
        }
}

/* Where nothing is left out, the plain product's bits. */
static void check_plain(ckd *c, const made *a, const float *y) {
    const size_t n = (size_t)a->s.n * a->s.rows;
    float *plain = ck_exact(4 * n), *out = ckd_out(c, 4 * n);
    ckd_run(c, c->d->idot(&a->dm, a->p.codes, a->p.step, a->p.sum, a->s.n, out), "idot");
    ckd_get(c, out, 4 * n, plain);
    ckd_same_floats(c, y, plain, n, "nothing left out");
    free(plain);
}

static void device_product_takes_what_rounding_left_out(void **state) {
    ckd c = ckd_open(*state);
    ck_worst = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (ending end = PLAIN; end <= ADD; end++) {
            made a;
            assert_true(make(&c, &shapes[i], &a));
            float *y = ck_exact(4 * (size_t)a.s.n * a.s.rows);
            run(&c, &a, end, y);
            check(&c, &a, end, y);
            if (end == PLAIN && a.s.often <= 0) check_plain(&c, &a, y);
            drop(&c, &a);
            free(y);
        }
    print_message("    %s: worst error %.2f of its bound\n", c.name, ck_worst);
    ckd_close(&c);
}

/* Gate and up of one rounding: the bits of what they are alone. */
static void device_products_of_several_take_it_too(void **state) {
    ckd c = ckd_open(*state);
    for (uint32_t n = 1; n <= 9; n += 4) {
        const shape s = {35, 289, n, 0, false, 30};
        made a;
        lq_device_matrix other_m;
        assert_true(make(&c, &s, &a));
        lq_packed other;
        assert_true(ckd_packed(&c, &a.m.q.sch, s.rows, s.cols, false, a.m.q.sch.act, &other));
        assert_true(lq_device_put(c.d, &other, &other_m));
        const size_t bytes = 4 * (size_t)n * s.rows;
        float *both = ck_exact(bytes), *one = ck_exact(bytes), *y[3] = {ckd_out(&c, bytes), ckd_out(&c, bytes), ckd_out(&c, bytes)};
        lq_device_product p = a.p;
        p.parts = 2;
        p.glu = true;
        p.act = LQ_ACTFN_SILU;
        p.part[1].m = &other_m;
        p.part[0].y = y[0];
        ckd_run(&c, c.d->ops->product(&p), "gate and up");
        for (int i = 0; i < 2; i++) {
            p = a.p;
            p.part[0].m = i ? &other_m : &a.dm;
            p.part[0].y = y[1 + i];
            ckd_run(&c, c.d->ops->product(&p), "alone");
        }
        ckd_run(&c, c.d->ops->glu(LQ_ACTFN_SILU, y[1], y[2], y[1], (uint64_t)n * s.rows), "glu");
        ckd_get(&c, y[0], bytes, both);
        ckd_get(&c, y[1], bytes, one);
        ckd_same_floats(&c, both, one, (size_t)n * s.rows, "gate and up");
        lq_device_drop(c.d, &other_m);
        lq_packed_free(&other);
        free(both), free(one);
        drop(&c, &a);
    }
    ckd_close(&c);
}

void ck_device_rest_add(const ck_variant *v, lq_dtype t) {
    ck_add(device_product_takes_what_rounding_left_out, "device_rest", v, NULL, t);
    ck_add(device_products_of_several_take_it_too, "device_rest_joint", v, NULL, t);
}
