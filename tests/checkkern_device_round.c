/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Activations rounded on a device: the bits of lq_act_quantize and lq_packed_i_make, as codes or as values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/act.h"
#include "checkkern_device.h"

#include <stdlib.h>
#include <string.h>

static float *floats(size_t n) { return ck_exact(n * sizeof(float)); }

/* ---- codes ---- */

static const lq_act acts[] = {
    {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8},
    {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .tile = 128},
    {.kind = LQ_ACT_STATIC, .dtype = LQ_I8},
    {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_BOOL},
    {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .outlier = 2.0f},
    {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .outlier = 2.0f, .scope = 1},
    {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .scope = 1},
    {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .tile = 32, .scope = 2},
    {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .scope = LQ_ACT_BITNET},
};
enum { ACTS = sizeof acts / sizeof *acts, TOKENS = 5 };

typedef struct rounded { float *seen, *code, *step, *rest; uint8_t *mark; void *scratch; lq_packed_i x; } rounded;

/* What lq_act_run does before it multiplies (calib/act_run.c). */
static rounded round_here(const lq_packed *m, const lq_act *a, float fixed, const uint8_t *apart, const float *x) {
    const uint32_t cols = m->q.cols, tiles = lq_act_tiles(a, cols);
    rounded r = {floats((size_t)TOKENS * cols), floats((size_t)TOKENS * cols), floats((size_t)TOKENS * tiles), floats(2 * (size_t)TOKENS * cols), ck_exact(cols),
                 lq_alloc(lq_packed_i_bytes(m, TOKENS)), {0}};
    float *mine = floats(cols);
    memset(r.mark, 0, cols);
    for (size_t i = 0; i < (size_t)TOKENS * cols; i++) {
        float h = lq_f16_f32(lq_f32_f16(x[i]));
        r.seen[i] = a->scope == 1 && !isinf(h) ? h : x[i];
        r.mark[i % cols] |= a->scope == 1 && a->outlier > 0 && !(apart && apart[i % cols]) && fabsf(r.seen[i]) >= a->outlier;
    }
    for (uint32_t t = 0; t < TOKENS; t++) {
        const float *seen = r.seen + (size_t)t * cols;
        bool whole = lq_act_quantize(a, fixed, apart, seen, cols, mine, r.step + (size_t)t * tiles) == cols;
        for (uint32_t i = 0; i < tiles && !whole; i++) r.step[(size_t)t * tiles + i] = NAN;
        for (uint32_t i = 0; i < cols; i++) {
            bool out = a->scope == 1 ? r.mark[i] : a->outlier > 0 && !(apart && apart[i]) && fabsf(seen[i]) >= a->outlier;
            float v = x[(size_t)t * cols + i], half = lq_f16_f32(lq_f32_f16(fminf(fmaxf(v, -65504), 65504)));
            r.rest[(size_t)t * cols + i] = out ? half : 0;
            r.rest[(size_t)(TOKENS + t) * cols + i] = out ? v - half : 0;
            if (out || !whole) mine[i] = 0;
        }
        for (uint32_t i = 0; i < cols; i++) r.code[(size_t)t * cols + i] = mine[m->q.perm ? m->q.perm[i] : i];
    }
    r.x = lq_packed_i_make(m, r.code, r.step, TOKENS, r.scratch);
    free(mine);
    return r;
}

static void drop_rounded(rounded *r) {
    free(r->seen), free(r->code), free(r->step), free(r->rest), free(r->mark);
    lq_free(r->scratch);
}

static void same_steps(ckd *c, const float *got, const float *want, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(isnan(want[i]) && isnan(got[i]))) ckd_same_floats(c, got + i, want + i, 1, "steps");
}

/* What rounding leaves beside the codes (lq_device_rest), by what it leaves as floats (rest); columns of mark are left out of every token. */
static void same_left(ckd *c, const lq_packed *m, const lq_device_matrix *dm, lq_device_round o, const float *dx, const float *rest, const uint8_t *mark, const int8_t *code) {
    const uint32_t cols = m->q.cols, ld = lq_packed_ld(m);
    const size_t n = (size_t)TOKENS * ld;
    uint32_t *where = ck_exact(n / 8);
    uint16_t *value = ck_exact(4 * n);
    int8_t *again = ck_exact(n), *dcode = ckd_out(c, n);
    void *dstep = ckd_out(c, 4 * (size_t)TOKENS * m->segs), *dsum = ckd_out(c, 4 * (size_t)TOKENS * m->segs);
    o.rest = NULL;
    o.left = (lq_device_rest){ckd_out(c, n / 8), ckd_out(c, 4 * n)};
    ckd_run(c, c->d->ops->round(dm, &o, dx, TOKENS, dcode, dstep, dsum), "round");
    ckd_get(c, dcode, n, again);
    ckd_get(c, o.left.where, n / 8, where);
    ckd_get(c, o.left.value, 4 * n, value);
    assert_memory_equal(again, code, n);
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t i = 0; i < ld; i++) {
            const size_t at = (size_t)t * ld + i, from = (size_t)t * cols + (i < cols && m->q.perm ? m->q.perm[i] : i);
            const float high = i < cols ? rest[from] : 0, low = i < cols ? rest[from + (size_t)TOKENS * cols] : 0;
            assert_int_equal(where[at / 32] >> i % 32 & 1, o.act.scope == 1 ? i < cols && mark[from - (size_t)t * cols] : high != 0);
            const uint16_t *halves = value + at / 4 * 8 + (i & 1) * 2 + (i >> 1 & 1);
            if (where[at / 32]) assert_true(halves[0] == lq_f32_f16(high) && halves[4] == lq_f32_f16(low));
        }
    free(where), free(value), free(again);
}

static void one_round(ckd *c, const lq_packed *m, const lq_act *a, bool bad) {
    const uint32_t cols = m->q.cols, ld = lq_packed_ld(m);
    const size_t nx = (size_t)TOKENS * cols, segs = (size_t)TOKENS * m->segs;
    float *x = floats(nx), *step = floats(segs), *rest = floats(2 * nx), fixed = 0.013f;
    int8_t *code = ck_exact((size_t)TOKENS * ld);
    int32_t *sum = ck_exact(segs * 4);
    uint8_t *apart = ck_exact(cols);
    lq_device_matrix dm;
    for (size_t i = 0; i < nx; i++) x[i] = lq_rng_normal(&c->rng) * (lq_rng_below(&c->rng, 50) ? 1 : 30);
    memset(x, 0, cols * sizeof *x); /* a token of nothing */
    if (bad) x[3 * cols + cols / 2] = INFINITY;
    for (uint32_t i = 0; i < cols; i++) apart[i] = i % 11 == 5;
    const bool parted = lq_rng_below(&c->rng, 2);
    rounded want = round_here(m, a, fixed, parted ? apart : NULL, x);
    assert_true(lq_device_put(c->d, m, &dm));
    float *drest = ckd_out(c, 2 * nx * 4), *dstep = ckd_out(c, segs * 4);
    int8_t *dcode = ckd_out(c, (size_t)TOKENS * ld);
    int32_t *dsum = ckd_out(c, segs * 4);
    lq_device_round o = {.act = *a, .fixed = fixed, .apart = parted ? ckd_in(c, apart, cols) : NULL, .rest = a->outlier > 0 ? drest : NULL, .mark = a->scope == 1 ? ckd_out(c, cols) : NULL};
    const float *dx = ckd_in(c, x, nx * 4);
    ckd_run(c, c->d->ops->round(&dm, &o, dx, TOKENS, dcode, dstep, dsum), "round");
    ckd_get(c, dcode, (size_t)TOKENS * ld, code);
    ckd_get(c, dstep, segs * 4, step);
    ckd_get(c, dsum, segs * 4, sum);
    ckd_get(c, drest, 2 * nx * 4, rest);
    assert_memory_equal(code, want.x.x, (size_t)TOKENS * ld);
    assert_memory_equal(sum, want.x.sum, segs * 4);
    same_steps(c, step, want.x.step, segs);
    if (a->outlier > 0) assert_memory_equal(rest, want.rest, 2 * nx * 4);
    if (a->outlier > 0 && !bad) same_left(c, m, &dm, o, dx, rest, want.mark, code);
    lq_device_drop(c->d, &dm);
    drop_rounded(&want);
    ckd_release(c);
    free(x), free(step), free(rest), free(code), free(sum), free(apart);
}

static void device_rounds_activations_as_the_cpu_does(void **state) {
    static const uint32_t widths[] = {1, 31, 48, 128, 240, 640, 1920};
    ckd c = ckd_open(*state);
    size_t seen = 0;
    for (size_t s = 0; s < ck_n_schemes; s++)
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
            for (size_t a = (s + w) % 3; a < ACTS; a += 3) {
                lq_packed m;
                if (!ckd_packed(&c, &ck_schemes[s].s, 17, widths[w], !acts[a].tile && w % 2, acts[a], &m)) continue;
                one_round(&c, &m, &acts[a], seen++ % 4 == 3);
                lq_packed_free(&m);
            }
    assert_true(seen > 40);
    ckd_close(&c);
}

/* ---- activations as values ---- */

/* What lq_act_quantize makes of a token, step times code; a token that is not whole is NaN. */
static void values_here(const lq_act *a, float fixed, const uint8_t *apart, const float *x, uint32_t cols, float *y) {
    const uint32_t tile = a->tile ? a->tile : cols;
    float *step = floats(lq_act_tiles(a, cols));
    bool whole = lq_act_quantize(a, fixed, apart, x, cols, y, step) == cols;
    for (uint32_t c = 0; c < cols; c++) y[c] = whole ? step[c / tile] * y[c] : NAN;
    free(step);
}

static void one_act(ckd *c, const lq_act *a, uint32_t cols, bool parted, bool bad) {
    const size_t n = (size_t)TOKENS * cols;
    float *x = floats(n), *y = floats(n), *want = floats(n);
    uint8_t *apart = ck_exact(cols);
    for (size_t i = 0; i < n; i++) x[i] = lq_rng_normal(&c->rng) * (lq_rng_below(&c->rng, 50) ? 1 : 30);
    memset(x, 0, cols * sizeof *x);
    if (bad) x[2 * cols + cols / 3] = NAN, x[4 * cols + cols - 1] = -INFINITY;
    for (uint32_t i = 0; i < cols; i++) apart[i] = i % 7 == 3;
    lq_device_round o = {.act = *a, .fixed = 0.013f, .apart = parted ? ckd_in(c, apart, cols) : NULL};
    float *dx = ckd_in(c, x, n * 4), *dy = ckd_out(c, n * 4);
    for (int run = 0; run < CKD_RUNS; run++) {
        ckd_run(c, c->d->ops->act(&o, dx, cols, TOKENS, dy), "act");
        ckd_same(c, run, dy, n * 4, y, "act");
    }
    for (uint32_t t = 0; t < TOKENS; t++) values_here(a, o.fixed, parted ? apart : NULL, x + (size_t)t * cols, cols, want + (size_t)t * cols);
    for (size_t i = 0; i < n; i++)
        if (!(isnan(y[i]) && isnan(want[i]))) ckd_same_floats(c, y + i, want + i, 1, "act");
    ckd_release(c);
    free(x), free(y), free(want), free(apart);
}

static void device_values_of_activations_are_the_definition(void **state) {
    static const lq_act kinds[] = {{.kind = LQ_ACT_DYNAMIC, .dtype = LQ_E4M3}, {.kind = LQ_ACT_STATIC, .dtype = LQ_E4M3},          {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_E4M3, .tile = 37},
                                   {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8},   {.kind = LQ_ACT_STATIC, .dtype = LQ_I8},            {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .tile = 128},
                                   {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_BOOL}, {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_BOOL, .tile = 16}, {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .tile = 32, .scope = 2},
                                   {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .scope = LQ_ACT_BITNET}};
    static const uint32_t widths[] = {1, 31, 97, 256, 1031};
    ckd c = ckd_open(*state);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) one_act(&c, &kinds[k], widths[w], (k + w) % 2, w % 3 == 1);
    const lq_device_round split = {.act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .outlier = 2}};
    assert_non_null(c.d->ops->act(&split, NULL, 1, 1, NULL));
    ckd_close(&c);
}

/* Rounding that begins with a norm: the norm alone, then what rounding makes of that. */
static void device_rounds_what_it_has_normed(void **state) {
    static const uint32_t widths[] = {7, 97, 640};
    ckd c = ckd_open(*state);
    for (size_t i = 0; i < 2 * sizeof widths / sizeof *widths; i++) {
        const uint32_t cols = widths[i / 2];
        const lq_act a = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8};
        const size_t n = (size_t)TOKENS * cols;
        lq_packed m;
        lq_device_matrix dm;
        if (!ckd_packed(&c, &ck_schemes[0].s, 17, cols, false, a, &m)) continue;
        const size_t ld = TOKENS * (size_t)lq_packed_ld(&m), segs = 4 * (size_t)TOKENS * m.segs;
        float *x = floats(n), *gain = floats(cols), *shift = floats(cols), *normed = floats(n), *again = floats(n);
        uint8_t *got = ck_exact(ld + 2 * segs), *want = ck_exact(ld + 2 * segs);
        assert_true(lq_device_put(c.d, &m, &dm));
        float *dx = ckd_floats(&c, x, n), *dn = ckd_out(&c, n * 4), *tmp = ckd_out(&c, n * 4);
        const lq_device_norm o = {ckd_floats(&c, gain, cols), i % 2 ? ckd_floats(&c, shift, cols) : NULL, 1e-5f, i % 2};
        for (int joint = 0; joint < 2; joint++) {
            uint8_t *to = joint ? got : want;
            int8_t *code = ckd_out(&c, ld);
            float *step = ckd_out(&c, segs);
            int32_t *sum = ckd_out(&c, segs);
            lq_device_round r = {.act = a, .norm = joint ? &o : NULL, .normed = joint ? dn : NULL};
            if (!joint) ckd_run(&c, c.d->ops->norm(&o, dx, cols, TOKENS, tmp), "norm");
            ckd_run(&c, c.d->ops->round(&dm, &r, joint ? dx : tmp, TOKENS, code, step, sum), "round");
            ckd_get(&c, code, ld, to);
            ckd_get(&c, step, segs, to + ld);
            ckd_get(&c, sum, segs, to + ld + segs);
        }
        ckd_get(&c, dn, n * 4, normed);
        ckd_get(&c, tmp, n * 4, again);
        ckd_same_floats(&c, normed, again, n, "normed");
        for (uint32_t t = 0; t < TOKENS; t++) ckd_check_norm(&c, x + (size_t)t * cols, gain, i % 2 ? shift : NULL, i % 2, cols, normed + (size_t)t * cols);
        assert_memory_equal(got, want, ld + 2 * segs);
        lq_device_drop(c.d, &dm);
        lq_packed_free(&m);
        ckd_release(&c);
        free(x), free(gain), free(shift), free(normed), free(again), free(got), free(want);
    }
    ckd_close(&c);
}

void ck_device_round_add(const ck_variant *v, lq_dtype t) {
    ck_add(device_rounds_activations_as_the_cpu_does, "device_round", v, NULL, t);
    ck_add(device_values_of_activations_are_the_definition, "device_act", v, NULL, t);
    ck_add(device_rounds_what_it_has_normed, "device_normed", v, NULL, t);
}
