/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What is kept beside the codes of a matrix, on every device: against fp64 sums, over shapes with empty rows and without one or another part. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern_device.h"

#include <float.h>
#include <stdlib.h>

typedef struct shape { uint32_t rows, cols, kept, rank, n, each; } shape; /* each: a row has fewer entries than this */

typedef struct parts {
    uint32_t *start, *col, *kept_col;
    uint16_t *value, *kept_w, *low_a, *low_b;
} parts;

static uint16_t *halves(size_t n, lq_rng *rng) {
    uint16_t *h = ck_exact(2 * n);
    for (size_t i = 0; i < n; i++) h[i] = lq_f32_f16(((float)lq_rng_below(rng, 4001) - 2000.0f) / 977);
    return h;
}

static parts make(const shape *s, lq_rng *rng) {
    parts p = {.start = ck_exact(4 * ((size_t)s->rows + 1)), .kept_col = ck_exact(4 * (size_t)s->kept)};
    p.start[0] = 0;
    for (uint32_t r = 0; r < s->rows; r++) p.start[r + 1] = p.start[r] + (s->each ? lq_rng_below(rng, s->each) : 0);
    uint32_t nnz = p.start[s->rows];
    p.col = ck_exact(4 * (size_t)nnz);
    for (uint32_t i = 0; i < nnz; i++) p.col[i] = lq_rng_below(rng, s->cols);
    for (uint32_t i = 0; i < s->kept; i++) p.kept_col[i] = lq_rng_below(rng, s->cols);
    p.value = halves(nnz, rng);
    p.kept_w = halves((size_t)s->rows * s->kept, rng);
    p.low_a = halves((size_t)s->rows * s->rank, rng);
    p.low_b = halves((size_t)s->rank * s->cols, rng);
    return p;
}

static void drop(parts *p) {
    void *all[] = {p->start, p->col, p->kept_col, p->value, p->kept_w, p->low_a, p->low_b};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

typedef struct sum { double v, mass; } sum;

static void add(sum *s, double w, double x) {
    s->v += w * x;
    s->mass += fabs(w * x);
}

static sum definition(const shape *s, const parts *p, const float *x, uint32_t r) {
    sum all = {0, 0};
    for (uint32_t i = p->start[r]; i < p->start[r + 1]; i++) add(&all, (double)lq_f16_f32(p->value[i]), (double)x[p->col[i]]);
    for (uint32_t j = 0; j < s->kept; j++) add(&all, (double)lq_f16_f32(p->kept_w[(size_t)r * s->kept + j]), (double)x[p->kept_col[j]]);
    for (uint32_t k = 0; k < s->rank; k++) {
        double a = (double)lq_f16_f32(p->low_a[(size_t)r * s->rank + k]);
        for (uint32_t c = 0; c < s->cols; c++) add(&all, a * (double)lq_f16_f32(p->low_b[(size_t)k * s->cols + c]), (double)x[c]);
    }
    return all;
}

static lq_device_sparse put(ckd *c, const shape *s, const parts *p) {
    uint32_t nnz = p->start[s->rows];
    lq_device_sparse d = {.rows = s->rows, .cols = s->cols, .kept = s->kept, .rank = s->rank, .nnz = nnz};
    if (nnz) {
        d.start = ckd_in(c, p->start, 4 * ((size_t)s->rows + 1));
        d.col = ckd_in(c, p->col, 4 * (size_t)nnz);
        d.value = ckd_in(c, p->value, 2 * (size_t)nnz);
    }
    if (s->kept) {
        d.kept_col = ckd_in(c, p->kept_col, 4 * (size_t)s->kept);
        d.kept_w = ckd_in(c, p->kept_w, 2 * (size_t)s->rows * s->kept);
    }
    if (s->rank) {
        d.low_a = ckd_in(c, p->low_a, 2 * (size_t)s->rows * s->rank);
        d.low_b = ckd_in(c, p->low_b, 2 * (size_t)s->rank * s->cols);
    }
    return d;
}

static void one_shape(ckd *c, const shape *s) {
    const size_t nx = (size_t)s->n * s->cols, ny = (size_t)s->n * s->rows;
    parts p = make(s, &c->rng);
    float *x = ck_exact(4 * nx), *before = ck_exact(4 * ny), *y = ck_exact(4 * ny), *zero = ck_exact(4 * ny);
    const lq_device_sparse d = put(c, s, &p);
    const float *dx = ckd_floats(c, x, nx), *given = ckd_floats(c, before, ny);
    const uint32_t width = s->rows;
    for (size_t i = 0; i < ny; i++) zero[i] = 0;
    for (int run = 0; run < 2; run++) {
        void *dy = ckd_out(c, 4 * ny);
        assert_true(c->d->put(dy, zero, 4 * ny));
        ckd_run(c, c->d->ops->add(dy, given, 1, ny), "add");
        ckd_run(c, c->d->ops->sparse(&d, dx, s->n, dy), "sparse");
        ckd_same(c, run, dy, 4 * ny, y, "sparse");
    }
    ck_note(y, 4 * ny);
    for (uint32_t t = 0; t < s->n; t++)
        for (uint32_t r = 0; r < width; r++) {
            size_t i = (size_t)t * width + r;
            sum w = definition(s, &p, x + (size_t)t * s->cols, r);
            /* a lane's sum is as long as its share, then five of the tree; the low rank is such a sum of such sums */
            double k = s->each / 32.0 + s->kept / 32.0 + s->rank / 32.0 + (s->rank ? s->cols / 32.0 + 7 : 0) + 12;
            ckd_near(c, y[i], w.v + (double)before[i], (k * w.mass + fabs((double)before[i]) + fabs(w.v)) * FLT_EPSILON, "sparse", i);
        }
    free(x);
    free(before);
    free(y);
    free(zero);
    drop(&p);
    ckd_release(c);
}

static void device_adds_what_is_kept_beside_codes(void **state) {
    static const shape shapes[] = {{1, 1, 1, 1, 1, 2},  {17, 97, 0, 0, 5, 9},    {9, 640, 3, 0, 1, 0},    {16, 48, 0, 5, 4, 0},
                                   {33, 257, 40, 33, 9, 70}, {8, 33, 0, 0, 3, 1}, {40, 130, 33, 8, 2, 140}, {5, 1920, 0, 64, 6, 33}};
    ckd c = ckd_open(*state);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) one_shape(&c, &shapes[i]);
    ckd_close(&c);
}

static void device_moves_every_byte(void **state) {
    static const size_t sizes[] = {16, 4096 + 16, 3 * 256 * 8 * 16 + 48};
    ckd c = ckd_open(*state);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        float *from = ck_exact(sizes[i]), *to = ck_exact(sizes[i]);
        const float *in = ckd_floats(&c, from, sizes[i] / 4);
        void *out = ckd_out(&c, sizes[i]);
        ckd_run(&c, c.d->ops->move(out, in, sizes[i]), "move");
        ckd_run(&c, c.d->ops->move(NULL, in, sizes[i]), "read");
        ckd_get(&c, out, sizes[i], to);
        assert_memory_equal(from, to, sizes[i]);
        ckd_release(&c);
        free(from);
        free(to);
    }
    ckd_close(&c);
}

void ck_device_sparse_add(const ck_variant *v, lq_dtype t) {
    ck_add(device_adds_what_is_kept_beside_codes, "device_sparse", v, NULL, t);
    ck_add(device_moves_every_byte, "device_move", v, NULL, t);
}
