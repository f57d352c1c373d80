/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Device kernels: the layout's inverse, and products against fp64 within what halves and fp32 sums allow. Runs on every device
 * there is, the emulation among them. */
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

static const uint32_t shapes[][2] = {{1, 1}, {16, 16}, {17, 48}, {5, 97}, {16, 128}, {33, 240}, {16, 257}, {20, 640}, {16, 1920}, {16, 4352}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static bool make_for(const ck_probe *p, size_t i, int round, lq_act act, lq_rng *rng, lq_packed *m) {
    lq_ctx ctx = {0};
    lq_qtensor q;
    lq_scheme s = p->scheme->s;
    s.extra &= ~(uint32_t)LQ_X_PERM;
    if (round & 1) s.extra |= LQ_X_PERM;
    if (act.kind) s.act = act;
    if (!ck_fits_cols(&s, shapes[i][1]) || !lq_packed_holds(&s, shapes[i][0], shapes[i][1])) return false;
    ck_fill(&q, &s, shapes[i][0], shapes[i][1], rng, false);
    assert_int_equal(lq_pack(&ctx, &q, m), LQ_OK);
    lq_qtensor_free(&q);
    return true;
}

static bool make(const ck_probe *p, size_t i, int round, lq_rng *rng, lq_packed *m) { return make_for(p, i, round, (lq_act){0}, rng, m); }

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
static double product_bound(const lq_packed *m, double mass, double flat) {
    bool table = m->q.sch.grid.kind != LQ_GRID_INT && m->q.sch.grid.kind != LQ_GRID_E4M3;
    return ((table ? 2 : 1) * 0x1p-11 + (m->q.cols / 16.0 + 64) * 0x1p-23) * mass + flat + 1e-30;
}

typedef struct weighed { double sum, mass, flat; } weighed;

static weighed weigh(const lq_packed *m, uint32_t r, const float *x, const double *off) {
    bool min = m->q.sch.zero_kind == LQ_ZERO_MIN, table = m->q.sch.grid.kind != LQ_GRID_INT && m->q.sch.grid.kind != LQ_GRID_E4M3;
    weighed v = {0, 0, 0};
    for (uint32_t c = 0; c < m->q.cols; c++) {
        double a = lq_grid_value(&m->q, r, lq_packed_code(m, r, c)), s = lq_packed_scale(m, r, c / m->seg), z = lq_packed_zero(m, r, c / m->seg), at = x[c];
        double w = min ? a * s - z : (a - z) * s, weight = fabs(a * s) + fabs(min ? z : z * s);
        v.sum += w * at;
        v.mass += weight * fabs(at);
        v.flat += weight * (0x1p-25 + (off ? off[c] : 0)) + (table ? fabs(s) * 0x1p-25 * fabs(at) : 0);
    }
    return v;
}

double ckd_row(const lq_packed *m, uint32_t r, const float *x, const double *off, double *bound) {
    weighed v = weigh(m, r, x, off);
    *bound = product_bound(m, v.mass, v.flat);
    return v.sum;
}

static void check_product(const ck_probe *p, const lq_packed *m, uint32_t r, const float *x, float got) {
    weighed v = weigh(m, r, x, NULL);
    double bound = product_bound(m, v.mass, v.flat);
    ck_note(&got, sizeof got);
    if (v.mass > FLT_MAX) return;
    ck_worst = fmax(ck_worst, v.mass > 0 ? fabs((double)got - v.sum) / (0x1p-11 * v.mass) : 0);
    if (!(fabs((double)got - v.sum) <= bound)) fail_msg("%s, %u x %u, row %u: %.9g, want %.9g within %.3g", p->name, m->q.rows, m->q.cols, r, (double)got, v.sum, bound);
}

static const lq_device *device_of(const ck_probe *p) { return ckd_device(p); }

typedef const char *(*product)(const lq_device_matrix *m, const float *x, uint32_t n, float *y);

static void one_shape(const ck_probe *p, product multiply, const lq_packed *m, uint32_t n, lq_rng *rng) {
    const lq_device *d = device_of(p);
    lq_device_matrix dm;
    size_t nx = (size_t)n * m->q.cols, ny = (size_t)n * m->q.rows, np = lq_packed_x_bytes(m, n);
    float *x = ck_exact(4 * nx), *y = ck_exact(4 * ny), *again = ck_exact(4 * ny), *dx = d->alloc(4 * nx), *dy = d->alloc(4 * ny);
    void *scratch = lq_alloc(np);
    assert_true(dx && dy && scratch && lq_device_put(d, m, &dm));
    ck_floats(x, nx, rng, false);
    assert_true(d->put(dx, x, 4 * nx));
    for (int run = 0; run < 2; run++) {
        const char *why = multiply(&dm, dx, n, dy);
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

static void products_are_near(const ck_probe *p, product multiply, const uint32_t tokens[5]) {
    lq_rng rng = ck_start(p->name);
    ck_worst = 0;
    for (size_t i = 0; i < SHAPES; i++) {
        lq_packed m;
        if (!make(p, i, (int)i, &rng, &m)) continue;
        one_shape(p, multiply, &m, tokens[i % 5], &rng);
        lq_packed_free(&m);
    }
    print_message("    %s: worst error %.2f of 2^-11 sum|wx|\n", p->name, ck_worst);
}

static void device_gemv_is_within_its_bound(void **state) { products_are_near(*state, device_of(*state)->gemv, (const uint32_t[]){1, 16, 5, 8, 11}); }
static void device_gemm_is_within_its_bound(void **state) { products_are_near(*state, device_of(*state)->ops->gemm, (const uint32_t[]){9, 64, 1, 33, 70}); }

static const lq_act rounded[] = {{.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8}, {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .tile = 128}};

ckd_acts ckd_acts_make(const lq_packed *m, uint32_t n, bool extreme, lq_rng *rng) {
    uint32_t tile = m->q.sch.act.tile, tiles = tile ? (m->q.cols + tile - 1) / tile : 1;
    ckd_acts a = {ck_exact(4 * (size_t)n * m->q.cols), ck_exact(4 * (size_t)n * tiles), lq_alloc(lq_packed_i_bytes(m, n)), {0}, ck_exact(8 * (size_t)n * m->tiles * LQ_TILE)};
    assert_non_null(a.scratch);
    for (size_t i = 0; i < (size_t)n * m->q.cols; i++) a.code[i] = extreme ? (lq_rng_below(rng, 2) ? 127.0f : -127.0f) : (float)((int)lq_rng_below(rng, 255) - 127);
    ck_floats(a.step, (size_t)n * tiles, rng, false);
    a.x = lq_packed_i_make(m, a.code, a.step, n, a.scratch);
    lq_packed_idot_c(m, 0, m->tiles, &a.x, a.want);
    return a;
}

void ckd_acts_free(ckd_acts *a) {
    lq_free(a->scratch);
    free(a->code);
    free(a->step);
    free(a->want);
}

/* What fp32 sums of scaled whole numbers may be off by: of every segment its code sums and its zero's. */
static double whole_mass(const lq_packed *m, const ckd_acts *a, uint32_t t, uint32_t r) {
    double mass = 0;
    for (uint32_t g = 0; g < m->segs; g++) {
        double s = fabs((double)lq_packed_scale(m, r, g)), z = fabs((double)lq_packed_zero(m, r, g)), sum = 0, ones = 0;
        uint32_t end = m->q.cols - g * m->seg < m->seg ? m->q.cols : (g + 1) * m->seg;
        for (uint32_t c = g * m->seg; c < end; c++) {
            double v = abs(a->x.x[(size_t)t * lq_packed_ld(m) + c]);
            sum += (lq_packed_code(m, r, c) * 2.0 + abs(m->q.sch.grid.bias) + 1) * v;
            ones += v;
        }
        mass += fabs((double)a->x.step[(size_t)t * m->segs + g]) * (s * sum + z * (m->q.sch.zero_kind == LQ_ZERO_MIN ? 1 : s) * ones);
    }
    return mass;
}

double ckd_whole_bound(const lq_packed *m, const ckd_acts *a, uint32_t t, uint32_t r) { return (m->q.cols / 16.0 + 16) * 0x1p-23 * whole_mass(m, a, t, r); }

static void compare_whole(const ck_probe *p, const lq_packed *m, const ckd_acts *a, uint32_t n, const float *y) {
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t r = 0; r < m->q.rows; r++) {
            double want = a->want[(size_t)t * m->tiles * LQ_TILE + r];
            float got = y[(size_t)t * m->q.rows + r];
            ck_note(&got, sizeof got);
            if (m->segs == 1) {
                if (lq_f32_bits(got) != lq_f32_bits((float)want)) fail_msg("%s, %u x %u, row %u: %a, the definition says %a", p->name, m->q.rows, m->q.cols, r, (double)got, want);
                continue;
            }
            double bound = ckd_whole_bound(m, a, t, r);
            if (!(fabs((double)got - want) <= bound)) fail_msg("%s, %u x %u, row %u: %.9g, want %.9g within %.3g", p->name, m->q.rows, m->q.cols, r, (double)got, want, bound);
        }
}

static void *put(const lq_device *d, const void *v, size_t n) {
    void *p = d->alloc(n);
    assert_true(p && d->put(p, v, n));
    return p;
}

static void one_whole(const ck_probe *p, const lq_packed *m, uint32_t n, bool extreme, lq_rng *rng) {
    const lq_device *d = device_of(p);
    lq_device_matrix dm;
    ckd_acts a = ckd_acts_make(m, n, extreme, rng);
    size_t ny = 4 * (size_t)n * m->q.rows, segs = 4 * (size_t)n * m->segs;
    float *y = ck_exact(ny), *dy = d->alloc(ny);
    assert_true(dy && lq_device_put(d, m, &dm));
    void *x = put(d, a.x.x, (size_t)n * lq_packed_ld(m)), *step = put(d, a.x.step, segs), *sum = put(d, a.x.sum, segs);
    const char *why = d->idot(&dm, x, step, sum, n, dy);
    if (why) fail_msg("%s, %u x %u: %s", p->name, m->q.rows, m->q.cols, why);
    assert_true(d->get(y, dy, ny));
    compare_whole(p, m, &a, n, y);
    void *held[] = {dy, x, step, sum};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) d->release(held[i]);
    lq_device_drop(d, &dm);
    ckd_acts_free(&a);
    free(y);
}

static void device_idot_is_whole(void **state) {
    static const uint32_t tokens[] = {8, 1, 41, 9, 3, 17, 33};
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    for (size_t i = 0; i < 2 * (size_t)SHAPES; i++) {
        lq_packed m;
        if (!make_for(p, i / 2, (int)(i & 1 && !rounded[i & 1].tile), rounded[i & 1], &rng, &m)) continue;
        assert_true(lq_device_shape(&m).times);
        one_whole(p, &m, tokens[i % 7], i % 3 == 0, &rng);
        lq_packed_free(&m);
    }
}

/* ---- a token's bits, whoever is beside it ---- */

typedef struct batch { const lq_device *d; lq_device_matrix m; const float *x; ckd_acts a; const int8_t *codes; const float *step; const int32_t *sum; } batch; /* codes not NULL: rounded */

static const char *multiply_some(const batch *b, uint32_t t, uint32_t n, uint32_t ld, float *y) {
    if (b->codes) return b->d->idot(&b->m, b->codes + (size_t)t * ld, b->step + (size_t)t * b->m.segs, b->sum + (size_t)t * b->m.segs, n, y);
    return b->d->gemv(&b->m, b->x + (size_t)t * b->m.cols, n, y);
}

enum { BESIDE = 16 };

static void same_beside(const ck_probe *p, const batch *b, uint32_t ld) {
    const size_t row = 4 * (size_t)b->m.rows;
    uint8_t *alone = ck_exact(BESIDE * row), *y = ck_exact(BESIDE * row);
    float *dy = b->d->alloc(BESIDE * row);
    for (uint32_t t = 0; t < BESIDE; t++) {
        const char *why = multiply_some(b, t, 1, ld, dy);
        if (why || !b->d->get(alone + t * row, dy, row)) fail_msg("%s: token %u: %s", p->name, t, why);
    }
    for (uint32_t n = 2; n <= BESIDE; n++) {
        const char *why = multiply_some(b, 0, n, ld, dy);
        if (why || !b->d->get(y, dy, n * row)) fail_msg("%s: %u tokens: %s", p->name, n, why);
        for (uint32_t t = 0; t < n; t++)
            if (memcmp(y + t * row, alone + t * row, row)) fail_msg("%s: token %u of %u has other bits than alone", p->name, t, n);
    }
    b->d->release(dy);
    free(alone);
    free(y);
}

static void one_batch(const ck_probe *p, const lq_packed *m, bool whole, lq_rng *rng) {
    batch b = {.d = device_of(p)};
    float *x = ck_exact(4 * (size_t)BESIDE * m->q.cols);
    assert_true(lq_device_put(b.d, m, &b.m));
    ck_floats(x, (size_t)BESIDE * m->q.cols, rng, false);
    b.x = put(b.d, x, 4 * (size_t)BESIDE * m->q.cols);
    if (whole) {
        b.a = ckd_acts_make(m, BESIDE, false, rng);
        b.codes = put(b.d, b.a.x.x, (size_t)BESIDE * lq_packed_ld(m));
        b.step = put(b.d, b.a.x.step, 4 * (size_t)BESIDE * m->segs);
        b.sum = put(b.d, b.a.x.sum, 4 * (size_t)BESIDE * m->segs);
    }
    same_beside(p, &b, lq_packed_ld(m));
    const void *held[] = {b.x, b.codes, b.step, b.sum};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) b.d->release((void *)held[i]);
    lq_device_drop(b.d, &b.m);
    if (whole) ckd_acts_free(&b.a);
    free(x);
}

/* 16 rows of 4352 columns are several panels, 20 of 640 two tiles. */
static void tokens_keep_their_bits(const ck_probe *p, bool whole) {
    lq_rng rng = ck_start(p->name);
    for (int i = 0; i < (whole ? 3 : 2); i++) {
        lq_packed m;
        if (!make_for(p, i == 1 ? SHAPES - 1 : 7, !whole, whole ? rounded[i > 0] : (lq_act){0}, &rng, &m)) continue;
        one_batch(p, &m, whole, &rng);
        lq_packed_free(&m);
    }
}

static void device_gemv_gives_a_token_its_own_bits(void **state) { tokens_keep_their_bits(*state, false); }
static void device_idot_gives_a_token_its_own_bits(void **state) { tokens_keep_their_bits(*state, true); }

/* A table whose values are on no line has no kernel for rounded activations. */
static bool whole(const lq_scheme *s) {
    lq_scheme a = *s;
    a.act = rounded[0];
    return !(s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_IQ4) && lq_packed_fits(&a, 16, 3840);
}

static void add_for(const lq_device *d, const ck_variant *v, const ck_scheme *s, lq_dtype t) {
    if (!d->available()) return;
    ck_add(device_gemv_is_within_its_bound, "device_gemv", v, s, t);
    ck_add(device_gemm_is_within_its_bound, "device_gemm", v, s, t);
    ck_add(device_gemv_gives_a_token_its_own_bits, "device_gemv_beside", v, s, t);
    if (whole(&s->s)) ck_add(device_idot_is_whole, "device_idot", v, s, t);
    if (whole(&s->s)) ck_add(device_idot_gives_a_token_its_own_bits, "device_idot_beside", v, s, t);
    ck_device_joint_add(v, s, whole(&s->s), t);
}

void ck_device_add(const ck_variant *c) {
    static const ck_variant names[] = {{.name = "cuda"}, {.name = "emu"}};
    for (const ck_scheme *s = ck_all_schemes(); s->name; s++) {
        if (!lq_packed_holds(&s->s, 16, 3840)) continue;
        ck_add(device_layout_gives_back_every_code, "device_layout", c, s, LQ_NONE);
        add_for(lq_device_emu(), &names[1], s, LQ_F32);
        add_for(lq_device_cuda(), &names[0], s, LQ_F16);
    }
    if (lq_device_emu()->available()) ck_device_sparse_add(&names[1], LQ_F32);
    if (lq_device_cuda()->available()) ck_device_sparse_add(&names[0], LQ_F16);
    if (lq_device_emu()->available()) ck_device_ops_add(&names[1], LQ_F32);
    if (lq_device_cuda()->available()) ck_device_ops_add(&names[0], LQ_F16);
    if (lq_device_emu()->available()) ck_device_table_add(&names[1], LQ_F32);
    if (lq_device_cuda()->available()) ck_device_table_add(&names[0], LQ_F16);
}
