/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Device kernels: the layout's inverse, and products against fp64 within what halves and fp32 sums allow. Runs on every device
 * there is, the emulation among them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern.h"
#include "kernels/cuda/cuda.h"
#include "kernels/ref/ref.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t shapes[][2] = {{1, 1}, {16, 16}, {17, 48}, {5, 97}, {16, 128}, {33, 240}, {16, 257}, {20, 640}, {16, 1920}, {16, 4352}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static bool make(const ck_probe *p, size_t i, int round, lq_rng *rng, lq_packed *m) {
    lq_ctx ctx = {0};
    lq_qtensor q;
    lq_scheme s = p->scheme->s;
    s.extra &= ~(uint32_t)LQ_X_PERM;
    if (round & 1) s.extra |= LQ_X_PERM;
    if (!ck_fits_cols(&s, shapes[i][1]) || !lq_packed_fits(&s, shapes[i][0], shapes[i][1])) return false;
    ck_fill(&q, &s, shapes[i][0], shapes[i][1], rng, false);
    assert_int_equal(lq_pack(&ctx, &q, m), LQ_OK);
    lq_qtensor_free(&q);
    return true;
}

static void device_layout_gives_back_every_code(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    for (size_t i = 0; i < SHAPES; i++) {
        lq_packed m;
        if (!make(p, i, 0, &rng, &m)) continue;
        size_t n = lq_device_bytes(&m), packed = m.tiles * m.tile_bytes;
        uint8_t *out = ck_guarded(n), *want = ck_exact(packed);
        memcpy(want, m.codes, packed);
        lq_pack_device(&m, out);
        memset(m.codes, 0, packed);
        lq_unpack_device(out, &m);
        assert_memory_equal(m.codes, want, packed);
        ck_release(out, n);
        free(want);
        lq_packed_free(&m);
    }
}

/* A half is off by 2^-11 of itself or 2^-25, and so are the values of a table; a lane's sums are fp32. */
static void check_product(const ck_probe *p, const lq_packed *m, uint32_t r, const float *x, float got) {
    bool min = m->q.sch.zero_kind == LQ_ZERO_MIN, table = m->q.sch.grid.kind != LQ_GRID_INT && m->q.sch.grid.kind != LQ_GRID_E4M3;
    double sum = 0, mass = 0, flat = 0;
    for (uint32_t c = 0; c < m->q.cols; c++) {
        double a = lq_grid_value(&m->q, r, lq_packed_code(m, r, c)), s = lq_packed_scale(m, r, c / m->seg), z = lq_packed_zero(m, r, c / m->seg), v = x[c];
        double w = min ? a * s - z : (a - z) * s, weight = fabs(a * s) + fabs(min ? z : z * s);
        sum += w * v;
        mass += weight * fabs(v);
        flat += weight * 0x1p-25 + (table ? fabs(s) * 0x1p-25 * fabs(v) : 0);
    }
    double k = (table ? 2 : 1) * 0x1p-11 + (m->q.cols / 16.0 + 64) * 0x1p-23, bound = k * mass + flat + 1e-30;
    ck_note(&got, sizeof got);
    if (mass > FLT_MAX) return;
    ck_worst = fmax(ck_worst, mass > 0 ? fabs((double)got - sum) / (0x1p-11 * mass) : 0);
    if (!(fabs((double)got - sum) <= bound)) fail_msg("%s, %u x %u, row %u: %.9g, want %.9g within %.3g", p->name, m->q.rows, m->q.cols, r, (double)got, sum, bound);
}

static const lq_device *device_of(const ck_probe *p) { return p->dtype == LQ_F16 ? lq_device_cuda() : lq_device_emu(); }

static void one_shape(const ck_probe *p, const lq_packed *m, uint32_t n, lq_rng *rng) {
    const lq_device *d = device_of(p);
    lq_device_matrix dm;
    size_t nx = (size_t)n * m->q.cols, ny = (size_t)n * m->q.rows, np = lq_packed_x_bytes(m, n);
    float *x = ck_exact(4 * nx), *y = ck_exact(4 * ny), *again = ck_exact(4 * ny), *dx = d->alloc(4 * nx), *dy = d->alloc(4 * ny);
    void *scratch = lq_alloc(np);
    assert_true(dx && dy && scratch && lq_device_put(d, m, &dm));
    ck_floats(x, nx, rng, false);
    assert_true(d->put(dx, x, 4 * nx));
    for (int run = 0; run < 2; run++) {
        const char *why = d->gemv(&dm, dx, n, dy);
        if (why) fail_msg("%s, %u x %u: %s", p->name, m->q.rows, m->q.cols, why);
        assert_true(d->get(run ? again : y, dy, 4 * ny));
    }
    assert_memory_equal(y, again, 4 * ny);
    lq_packed_x px = lq_packed_x_make(m, x, n, scratch);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t r = 0; r < m->q.rows; r++) check_product(p, m, r, px.x + (size_t)t * lq_packed_ld(m), y[(size_t)t * m->q.rows + r]);
    lq_device_drop(d, &dm);
    d->release(dx);
    d->release(dy);
    lq_free(scratch);
    free(x);
    free(y);
    free(again);
}

static void device_gemv_is_within_its_bound(void **state) {
    static const uint32_t tokens[] = {1, 2, 5, 8, 9};
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    ck_worst = 0;
    for (size_t i = 0; i < SHAPES; i++) {
        lq_packed m;
        if (!make(p, i, (int)i, &rng, &m)) continue;
        one_shape(p, &m, tokens[i % 5], &rng);
        lq_packed_free(&m);
    }
    print_message("    %s: worst error %.2f of 2^-11 sum|wx|\n", p->name, ck_worst);
}

void ck_device_add(const ck_variant *c) {
    static const ck_variant names[] = {{.name = "cuda"}, {.name = "emu"}};
    for (const ck_scheme *s = ck_all_schemes(); s->name; s++) {
        if (!lq_packed_fits(&s->s, 16, 3840)) continue;
        ck_add(device_layout_gives_back_every_code, "device_layout", c, s, LQ_NONE);
        if (lq_device_emu()->available()) ck_add(device_gemv_is_within_its_bound, "device_gemv", &names[1], s, LQ_F32);
        if (lq_device_cuda()->available()) ck_add(device_gemv_is_within_its_bound, "device_gemv", &names[0], s, LQ_F16);
    }
}
