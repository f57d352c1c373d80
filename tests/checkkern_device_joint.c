/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Joint products (lq_device_product): the bits of the single operations they stand for, and near what fp64 makes of the definition
 *
 *   v_p = W_p norm(x) + b_p;   y = v_0 | act(v_0) | act(v_0) v_1 | y + scale v_0
 *
 * A norm is off by what its sums round, which the product multiplies by |W|; an activation passes on what its argument is off by, by its slope. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern_device.h"
#include "kernels/ref/ref.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

static const double EPS = FLT_EPSILON;
static const float SCALE = 0.75f;
enum { PARTS = LQ_DEVICE_PARTS };
typedef enum ending { PLAIN, GLU, ADD } ending;

typedef struct form {
    uint32_t n, parts;
    int norm;                  /* 0 none, 1 RMSNorm, 2 LayerNorm; of rounded activations none */
    bool biased, perm;
    ending end;
    int act;
} form;

static const form forms[] = {
    {1, 1, 0, false, false, PLAIN, 0}, {1, 3, 1, true, false, PLAIN, 0},  {3, 2, 2, true, true, GLU, LQ_ACTFN_SILU},      {8, 1, 0, true, true, ADD, 0},
    {11, 2, 1, false, false, GLU, LQ_ACTFN_GELU_TANH}, {16, 3, 0, false, true, PLAIN, 0}, {5, 1, 2, true, false, GLU, LQ_ACTFN_GELU}, {2, 1, 1, false, false, ADD, 0},
    {9, 2, 0, true, false, GLU, LQ_ACTFN_RELU2}, {16, 1, 1, true, false, GLU, LQ_ACTFN_RELU}, {13, 1, 0, false, false, ADD, 0},
};
enum { FORMS = sizeof forms / sizeof *forms };
static const uint32_t rows[][PARTS] = {{17, 5, 31}, {37, 16, 1}, {64, 33, 48}}, widths[] = {1, 48, 97, 240, 640, 1031, 1920};
enum { ROWS = sizeof rows / sizeof *rows, WIDTHS = sizeof widths / sizeof *widths };

typedef struct made { /* a product on the host and on the device */
    form f;
    bool rounded;
    uint32_t cols;
    lq_packed m[PARTS];
    lq_device_matrix dm[PARTS];
    float *x, *gain, *shift, *bias[PARTS], *before;
    ckd_acts acts[PARTS];    /* rounded: the same activations for every part */
    const float *dx, *dbias[PARTS], *step;
    const int8_t *codes;
    const int32_t *sum;
    lq_device_norm norm;
} made;

static float *floats(size_t n) { return ck_exact(n * sizeof(float)); }

/* ---- inputs ---- */

static bool make_parts(ckd *c, const lq_scheme *s, const uint32_t height[PARTS], made *a) {
    const lq_act act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8};
    for (uint32_t p = 0; p < a->f.parts; p++) {
        if (!ckd_packed(c, s, height[a->f.end == GLU ? 0 : p], a->cols, a->f.perm && !a->rounded, a->rounded ? act : (lq_act){0}, &a->m[p])) return false; /* the first: so are all */
        assert_true(lq_device_put(c->d, &a->m[p], &a->dm[p]));
        if (lq_device_alike(&a->dm[0], &a->dm[p])) continue;
        lq_device_drop(c->d, &a->dm[p]); /* tables of their own: no parts of one product */
        lq_packed_free(&a->m[p]);
        a->f.parts = p;
    }
    return true;
}

static void make_rounded(ckd *c, made *a) {
    const lq_packed *m = &a->m[0];
    const size_t segs = 4 * (size_t)a->f.n * m->segs;
    for (uint32_t p = 0; p < a->f.parts; p++) {
        lq_rng same = c->rng;
        a->acts[p] = ckd_acts_make(&a->m[p], a->f.n, false, &same);
    }
    a->codes = ckd_in(c, a->acts[0].x.x, (size_t)a->f.n * lq_packed_ld(m));
    a->step = ckd_in(c, a->acts[0].x.step, segs);
    a->sum = ckd_in(c, a->acts[0].x.sum, segs);
}

static void make_inputs(ckd *c, made *a) {
    const size_t nx = (size_t)a->f.n * a->cols, ny = (size_t)a->f.n * a->m[0].q.rows;
    a->x = floats(nx), a->gain = floats(a->cols), a->shift = floats(a->cols), a->before = floats(ny);
    a->dx = ckd_floats(c, a->x, nx);
    a->norm = (lq_device_norm){ckd_floats(c, a->gain, a->cols), ckd_floats(c, a->shift, a->cols), 1e-5f, a->f.norm == 2};
    for (uint32_t p = 0; p < a->f.parts; p++) {
        a->bias[p] = floats(a->m[p].q.rows);
        a->dbias[p] = ckd_floats(c, a->bias[p], a->m[p].q.rows);
    }
    ck_floats(a->before, ny, &c->rng, false);
    if (a->rounded) make_rounded(c, a);
}

static void drop(ckd *c, made *a) {
    for (uint32_t p = 0; p < a->f.parts; p++) {
        lq_device_drop(c->d, &a->dm[p]);
        lq_packed_free(&a->m[p]);
        free(a->bias[p]);
        if (a->rounded) ckd_acts_free(&a->acts[p]);
    }
    free(a->x), free(a->gain), free(a->shift), free(a->before);
    ckd_release(c);
}

/* ---- on the device ---- */

static void run_joint(ckd *c, const made *a, float *const y[PARTS]) {
    lq_device_product d = {.n = a->f.n, .parts = a->f.parts, .x = a->rounded ? NULL : a->dx, .norm = a->f.norm && !a->rounded ? &a->norm : NULL,
                           .codes = a->codes, .step = a->step, .sum = a->sum, .glu = a->f.end == GLU, .add = a->f.end == ADD, .act = a->f.act, .scale = SCALE};
    for (uint32_t p = 0; p < a->f.parts; p++) {
        d.part[p].m = &a->dm[p];
        d.part[p].bias = a->f.biased ? a->dbias[p] : NULL;
        d.part[p].y = a->f.end == GLU && p ? NULL : y[p];
    }
    ckd_run(c, c->d->ops->product(&d), "product");
}

static void run_single(ckd *c, const made *a, float *const y[PARTS]) {
    const lq_device_ops *o = c->d->ops;
    const uint32_t n = a->f.n, height = a->m[0].q.rows;
    float *normed = ckd_out(c, 4 * (size_t)n * a->cols), *v[PARTS];
    const float *x = a->f.norm ? normed : a->dx;
    if (a->f.norm) ckd_run(c, o->norm(&a->norm, a->dx, a->cols, n, normed), "norm");
    for (uint32_t p = 0; p < a->f.parts; p++) {
        v[p] = a->f.end == PLAIN ? y[p] : ckd_out(c, 4 * (size_t)n * a->m[p].q.rows);
        ckd_run(c, a->rounded ? c->d->idot(&a->dm[p], a->codes, a->step, a->sum, n, v[p]) : c->d->gemv(&a->dm[p], x, n, v[p]), "product alone");
        if (a->f.biased) ckd_run(c, o->bias(v[p], a->dbias[p], a->m[p].q.rows, n), "bias");
    }
    if (a->f.end == GLU) ckd_run(c, o->glu(a->f.act, v[0], a->f.parts > 1 ? v[1] : NULL, y[0], (uint64_t)n * height), "glu");
    if (a->f.end == ADD) ckd_run(c, o->add(y[0], v[0], SCALE, (uint64_t)n * height), "add");
}

/* ---- on the host ---- */

/* The input of token t in fp64, and what a device's norm may be off by. */
static void input_here(const made *a, uint32_t t, double *v, double *off) {
    const float *x = a->x + (size_t)t * a->cols;
    const bool layer = a->f.norm == 2;
    double mean = 0, abs = 0, square = 0, k = (a->cols / 256.0 + 24) * EPS;
    for (uint32_t i = 0; i < a->cols; i++) mean += (double)x[i] / a->cols, abs += fabs((double)x[i]) / a->cols;
    if (!layer) mean = 0, abs = 0;
    for (uint32_t i = 0; i < a->cols; i++) square += ((double)x[i] - mean) * ((double)x[i] - mean) / a->cols;
    const double scale = 1 / sqrt(square + 1e-5);
    for (uint32_t i = 0; i < a->cols; i++) {
        const double u = ((double)x[i] - mean) * scale, g = (double)a->gain[i], b = layer ? (double)a->shift[i] : 0;
        v[i] = a->f.norm ? u * g + b : (double)x[i];
        off[i] = a->f.norm ? fabs(g) * (scale * k * abs + fabs(u) * (k + scale * k * abs)) + EPS * fabs(b) + 1e-37 : 0;
    }
}

typedef struct near_to { double v, off; } near_to;

/* Row r of part p for token t, its bias added. */
static near_to sum_here(const made *a, uint32_t p, uint32_t t, uint32_t r, const double *v, const double *off, float *stored, double *stored_off) {
    const lq_packed *m = &a->m[p];
    near_to s;
    if (a->rounded) {
        s.v = a->acts[p].want[(size_t)t * m->tiles * LQ_TILE + r];
        s.off = m->segs == 1 ? EPS * fabs(s.v) : ckd_whole_bound(m, &a->acts[p], t, r);
    } else {
        for (uint32_t i = 0; i < a->cols; i++) {
            const uint32_t k = m->q.perm ? m->q.perm[i] : i;
            stored[i] = (float)v[k];
            stored_off[i] = off[k] + EPS * fabs(v[k]);
        }
        s.v = ckd_row(m, r, stored, stored_off, &s.off);
    }
    if (a->f.biased) s.v += (double)a->bias[p][r];
    s.off += 2 * EPS * fabs(s.v);
    return s;
}

static double slope(int act, double x) { return act == LQ_ACTFN_RELU2 ? 2 * fabs(x) : act == LQ_ACTFN_RELU ? 1 : 1.13; }

static near_to end_here(const made *a, near_to gate, near_to up, double before) {
    if (a->f.end == ADD) return (near_to){before + (double)SCALE * gate.v, (double)SCALE * gate.off + 2 * EPS * (fabs(before) + fabs(gate.v))};
    if (a->f.end == PLAIN) return gate;
    const float at = (float)gate.v, one = 1;
    float act;
    lq_glu_c((lq_actfn)a->f.act, &at, &one, &act, 1);
    const double v = (double)act, off = slope(a->f.act, fabs(gate.v) + gate.off) * (gate.off + EPS * fabs(gate.v)) + 2 * ckd_act_bound(a->f.act, gate.v, v, 1);
    return (near_to){v * up.v, off * (fabs(up.v) + up.off) + fabs(v) * up.off + EPS * fabs(v * up.v)};
}

static void compare(ckd *c, const made *a, float *const y[PARTS]) {
    double *v = ck_exact(8 * (size_t)a->cols), *off = ck_exact(8 * (size_t)a->cols), *stored_off = ck_exact(8 * (size_t)a->cols);
    float *stored = floats(a->cols);
    for (uint32_t t = 0; t < a->f.n; t++) {
        input_here(a, t, v, off);
        for (uint32_t p = 0; p < (a->f.end == GLU ? 1 : a->f.parts); p++)
            for (uint32_t r = 0; r < a->m[p].q.rows; r++) {
                const size_t i = (size_t)t * a->m[p].q.rows + r;
                const near_to s = sum_here(a, p, t, r, v, off, stored, stored_off), up = a->f.end == GLU && a->f.parts > 1 ? sum_here(a, 1, t, r, v, off, stored, stored_off) : (near_to){1, 0};
                const near_to e = end_here(a, s, up, a->f.end == ADD ? (double)a->before[i] : 0);
                ckd_near(c, y[p][i], e.v, e.off + 1e-30, "product", i);
            }
    }
    free(v), free(off), free(stored_off), free(stored);
}

static void one_form(ckd *c, made *a) {
    float *y[2][PARTS] = {{NULL}}, *out[PARTS] = {NULL};
    make_inputs(c, a);
    for (int single = 0; single < 2; single++) {
        for (uint32_t p = 0; p < a->f.parts; p++) {
            const size_t bytes = 4 * (size_t)a->f.n * a->m[p].q.rows;
            y[single][p] = floats(bytes / 4);
            out[p] = ckd_out(c, bytes);
            if (a->f.end == ADD) assert_true(c->d->put(out[p], a->before, bytes));
        }
        if (single) run_single(c, a, out);
        else run_joint(c, a, out);
        for (uint32_t p = 0; p < (a->f.end == GLU ? 1 : a->f.parts); p++) ckd_get(c, out[p], 4 * (size_t)a->f.n * a->m[p].q.rows, y[single][p]);
    }
    for (uint32_t p = 0; p < (a->f.end == GLU ? 1 : a->f.parts); p++) {
        const size_t n = (size_t)a->f.n * a->m[p].q.rows;
        ckd_same_floats(c, y[0][p], y[1][p], n, "joint and single");
        ck_note(y[0][p], 4 * n);
    }
    compare(c, a, y[0]);
    for (uint32_t p = 0; p < a->f.parts; p++) free(y[0][p]), free(y[1][p]);
    drop(c, a);
}

static void products_of(const ck_probe *probe, bool rounded) {
    ckd c = ckd_open(probe);
    size_t seen = 0;
    ck_worst = 0;
    for (size_t f = lq_rng_below(&c.rng, 3), at = lq_rng_below(&c.rng, WIDTHS); f < FORMS; f += 3) /* a third for each scheme, which many share */
        for (size_t tries = 0; tries < WIDTHS; tries++, at++) { /* the next width that the scheme has */
            made a = {.f = forms[f], .rounded = rounded, .cols = widths[at % WIDTHS]};
            if (rounded) a.f.norm = 0;
            if (!make_parts(&c, &probe->scheme->s, rows[f % ROWS], &a)) continue;
            one_form(&c, &a);
            at++, seen++;
            break;
        }
    assert_true(seen);
    print_message("    %s: worst error %.2f of its bound\n", c.name, ck_worst);
    ckd_close(&c);
}

static void device_product_has_the_bits_of_its_parts(void **state) { products_of(*state, false); }
static void device_product_of_codes_has_the_bits_of_its_parts(void **state) { products_of(*state, true); }

void ck_device_joint_add(const ck_variant *v, const ck_scheme *s, bool codes, lq_dtype t) {
    ck_add(device_product_has_the_bits_of_its_parts, "device_product", v, s, t);
    if (codes) ck_add(device_product_of_codes_has_the_bits_of_its_parts, "device_iproduct", v, s, t);
}
