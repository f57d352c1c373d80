/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The device's key-value cache against calib/kv, and its attention against sums in fp64 over the same stored values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/kv.h"
#include "checkkern_device.h"
#include "kernels/ref/ref.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

static const double EPS = FLT_EPSILON;

typedef struct shape {
    uint32_t heads, kv_heads, dim, seqs, positions, room, n, window;
    float cap;
    bool fixed;
} shape;

/* n: queries per sequence, the last of its positions */
static const shape shapes[] = {
    {1, 1, 1, 1, 1, 1, 1, 0, 0, false},      {4, 2, 16, 1, 9, 12, 1, 0, 0, false},    {8, 2, 64, 1, 70, 70, 3, 0, 0, true},   {3, 3, 20, 1, 33, 40, 33, 7, 0, false},
    {6, 2, 32, 3, 21, 25, 1, 0, 30, false},  {9, 3, 64, 2, 17, 20, 5, 0, 0, false},   {4, 1, 128, 1, 300, 700, 1, 0, 0, true}, {2, 2, 96, 1, 200, 200, 40, 50, 20, false},
    {71, 1, 8, 1, 12, 16, 2, 0, 0, false},   {2, 1, 256, 1, 150, 400, 2, 0, 0, false}, {2, 1, 24, 18, 5, 9, 4, 0, 0, false},    {1, 1, 576, 1, 40, 40, 2, 0, 0, false},
    {32, 8, 32, 1, 1100, 1100, 1, 64, 0, false},
};

static const lq_dtype types[] = {LQ_F32, LQ_F16, LQ_I8, LQ_E4M3};
enum { TYPES = sizeof types / sizeof *types };

typedef struct cache { /* on the device, and what it must hold */
    lq_device_kv kv;
    float *k, *v;  /* [seqs][positions][kv_heads * dim] as stored */
    uint8_t *codes[2];
    float *steps[2];
    size_t bytes, rows;
} cache;

static size_t element_bytes(lq_dtype t) { return t == LQ_F32 ? 4 : t == LQ_F16 ? 2 : 1; }

/* What calib/kv reads back of one sequence. */
static void stored_here(const shape *s, lq_dtype type, const float *steps, const float *k, const float *v, float *k_out, float *v_out) {
    const size_t width = (size_t)s->kv_heads * s->dim;
    lq_ctx ctx = {0};
    lq_kv kv;
    if (type == LQ_F32) {
        memcpy(k_out, k, s->positions * width * 4);
        memcpy(v_out, v, s->positions * width * 4);
        return;
    }
    assert_int_equal(lq_kv_init(&ctx, &kv, type == LQ_F16 ? LQ_KV_F16 : type == LQ_I8 ? LQ_KV_INT8 : LQ_KV_FP8, 1, s->positions, s->kv_heads, s->dim, steps), LQ_OK);
    lq_kv_put(&kv, 0, 0, s->positions, k, v);
    for (uint32_t p = 0; p < s->positions; p++)
        for (uint32_t h = 0; h < s->kv_heads; h++) {
            lq_kv_get(&kv, 0, false, p, 1, h, k_out + p * width + (size_t)h * s->dim);
            lq_kv_get(&kv, 0, true, p, 1, h, v_out + p * width + (size_t)h * s->dim);
        }
    lq_kv_free(&kv);
}

static float value_of(const cache *c, int which, size_t row, size_t i) {
    const uint8_t *at = c->codes[which] + row * c->kv.dim * element_bytes(c->kv.dtype) + i * element_bytes(c->kv.dtype);
    float v, step = c->kv.key_step ? c->steps[which][row] : which ? c->kv.value_fixed : c->kv.key_fixed;
    if (c->kv.dtype == LQ_I8) v = (float)(int8_t)*at;
    else if (c->kv.dtype == LQ_E4M3) v = lq_e4m3_f32(*at);
    else lq_dtype_decode(c->kv.dtype, at, &v, 1);
    return c->kv.dtype == LQ_F32 || c->kv.dtype == LQ_F16 ? v : step * v;
}

static void compare_cache(ckd *d, const shape *s, const cache *c) {
    for (uint32_t q = 0; q < s->seqs; q++)
        for (uint32_t p = 0; p < s->positions; p++)
            for (uint32_t i = 0; i < s->kv_heads * s->dim; i++) {
                size_t row = ((size_t)q * s->room + p) * s->kv_heads + i / s->dim, at = ((size_t)q * s->positions + p) * s->kv_heads * s->dim + i;
                float k = value_of(c, 0, row, i % s->dim), v = value_of(c, 1, row, i % s->dim);
                if (lq_f32_bits(k) != lq_f32_bits(c->k[at]) || lq_f32_bits(v) != lq_f32_bits(c->v[at]))
                    fail_msg("%s: sequence %u, position %u, %u: %a %a, calib/kv stores %a %a", d->name, q, p, i, (double)k, (double)v, (double)c->k[at], (double)c->v[at]);
            }
}

static void get_cache(ckd *d, cache *c) {
    ckd_get(d, c->kv.keys, c->bytes, c->codes[0]);
    ckd_get(d, c->kv.values, c->bytes, c->codes[1]);
    if (!c->kv.key_step) return;
    ckd_get(d, c->kv.key_step, c->rows * 4, c->steps[0]);
    ckd_get(d, c->kv.value_step, c->rows * 4, c->steps[1]);
}

/* All positions of all sequences, a sequence's tokens in two puts. */
static void put_all(ckd *d, const shape *s, const cache *c, const float *k, const float *v) {
    const size_t width = (size_t)s->kv_heads * s->dim;
    for (uint32_t q = 0; q < s->seqs; q++)
        for (uint32_t p = 0; p < s->positions;) {
            uint32_t n = p || s->positions < 3 ? s->positions - p : 2, *pos = ck_exact(8 * (size_t)n), *seq = pos + n;
            for (uint32_t t = 0; t < n; t++) pos[t] = p + t, seq[t] = q;
            const size_t at = ((size_t)q * s->positions + p) * width;
            lq_device_tokens where = {n, ckd_in(d, pos, 4 * (size_t)n), s->seqs > 1 ? ckd_in(d, seq, 4 * (size_t)n) : NULL, s->room - 1};
            ckd_run(d, d->d->ops->kv_put(&c->kv, ckd_in(d, k + at, n * width * 4), ckd_in(d, v + at, n * width * 4), &where), "kv_put");
            while (d->n > 4) d->d->release(d->held[--d->n]); /* the cache stays */
            p += n;
            free(pos);
        }
}

/* Room for a cache, none of it written; c->k and v are what storing k and v leaves. */
static cache bare_cache(ckd *d, const shape *s, lq_dtype type, const float *k, const float *v) {
    const size_t width = (size_t)s->kv_heads * s->dim, n = (size_t)s->seqs * s->positions * width, rows = (size_t)s->seqs * s->room * s->kv_heads;
    const float fixed[2] = {0.004f, 0.006f};
    cache c = {.k = ck_exact(n * 4), .v = ck_exact(n * 4), .rows = rows, .bytes = rows * s->dim * element_bytes(type)};
    const bool stepped = !s->fixed && element_bytes(type) == 1;
    const float part = type == LQ_I8 ? 448.0f / 127 : 1;
    for (int i = 0; i < 2; i++) c.codes[i] = ck_exact(c.bytes), c.steps[i] = ck_exact(rows * 4);
    c.kv = (lq_device_kv){(uint8_t)type, s->kv_heads, s->dim, s->room, ckd_out(d, c.bytes), ckd_out(d, c.bytes), NULL, NULL, fixed[0] * part, fixed[1] * part};
    void *steps[2] = {ckd_out(d, rows * 4), ckd_out(d, rows * 4)};
    if (stepped) c.kv.key_step = steps[0], c.kv.value_step = steps[1];
    for (uint32_t q = 0; q < s->seqs; q++) {
        size_t at = (size_t)q * s->positions * width;
        stored_here(s, type, s->fixed ? fixed : NULL, k + at, v + at, c.k + at, c.v + at);
    }
    return c;
}

static cache make_cache(ckd *d, const shape *s, lq_dtype type) {
    const size_t n = (size_t)s->seqs * s->positions * s->kv_heads * s->dim;
    float *k = ck_exact(n * 4), *v = ck_exact(n * 4);
    for (size_t i = 0; i < n; i++) k[i] = lq_rng_normal(&d->rng) * (i % 31 ? 1 : 8), v[i] = lq_rng_normal(&d->rng);
    cache c = bare_cache(d, s, type, k, v);
    put_all(d, s, &c, k, v);
    free(k);
    free(v);
    return c;
}

static void drop_cache(cache *c) {
    free(c->k), free(c->v);
    for (int i = 0; i < 2; i++) free(c->codes[i]), free(c->steps[i]);
}

/* One query of one head: scores are off by their sums' rounding, weights by e to that, outputs by the weights and their own sums. */
static void check_query(ckd *d, const shape *s, const cache *c, uint32_t q, uint32_t pos, uint32_t head, const float *x, float scale, const float *y) {
    const uint32_t kh = head / (s->heads / s->kv_heads), first = s->window && pos + 1 > s->window ? pos + 1 - s->window : 0;
    const size_t width = (size_t)s->kv_heads * s->dim;
    const float *k = c->k + (size_t)q * s->positions * width + (size_t)kh * s->dim, *v = c->v + (size_t)q * s->positions * width + (size_t)kh * s->dim;
    double *p = ck_exact(8 * (size_t)(pos + 1)), max = -INFINITY, sum = 0, off = 0, k_half = c->kv.dtype == LQ_F32 ? 0 : 0x1p-21;
    for (uint32_t j = first; j <= pos; j++) {
        double dot = 0, mass = 0;
        for (uint32_t i = 0; i < s->dim; i++) dot += (double)x[i] * (double)k[j * width + i], mass += fabs((double)x[i] * (double)k[j * width + i]);
        p[j] = dot * (double)scale;
        off = fmax(off, ((s->dim + 8) * EPS + k_half) * mass * fabs((double)scale) + 4 * EPS * fabs(p[j]));
        if (s->cap > 0) p[j] = (double)s->cap * tanh(p[j] / (double)s->cap);
        max = fmax(max, p[j]);
    }
    for (uint32_t j = first; j <= pos; j++) sum += p[j] = exp(p[j] - max);
    for (uint32_t i = 0; i < s->dim; i++) {
        double want = 0, mass = 0;
        for (uint32_t j = first; j <= pos; j++) want += p[j] / sum * (double)v[j * width + i], mass += p[j] / sum * fabs((double)v[j * width + i]);
        double k_v = 2 * off + 8 * EPS * (1 + (s->cap > 0 ? (double)s->cap : 0)) + (pos - first + 64) * EPS + k_half;
        ckd_near(d, y[i], want, k_v * (mass + fabs(want)) + 1e-30, "attention", i);
    }
    free(p);
}

static void check_shape(ckd *d, const shape *s, lq_dtype type) {
    const uint32_t n = s->n * s->seqs;
    const size_t width = (size_t)s->heads * s->dim, bytes = n * width * 4;
    cache c = make_cache(d, s, type);
    float *q = ck_exact(bytes), *y = ck_exact(bytes), scale = s->dim == 64 ? 0.1f : 1 / sqrtf((float)s->dim);
    uint32_t *pos = ck_exact(8 * (size_t)n), *seq = pos + n;
    get_cache(d, &c);
    compare_cache(d, s, &c);
    for (uint32_t t = 0; t < n; t++) pos[t] = s->positions - s->n + t % s->n, seq[t] = t / s->n;
    lq_device_tokens at = {n, ckd_in(d, pos, 4 * (size_t)n), s->seqs > 1 ? ckd_in(d, seq, 4 * (size_t)n) : NULL, s->room - 1};
    lq_device_attn a = {s->heads, s->window, scale, s->cap};
    float *dq = ckd_floats(d, q, n * width), *dy = ckd_out(d, bytes);
    for (int run = 0; run < CKD_RUNS; run++) {
        ckd_run(d, d->d->ops->attn(&a, &c.kv, dq, &at, dy), "attn");
        ckd_same(d, run, dy, bytes, y, "attn");
    }
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t h = 0; h < s->heads; h++) check_query(d, s, &c, seq[t], pos[t], h, q + t * width + (size_t)h * s->dim, scale, y + t * width + (size_t)h * s->dim);
    drop_cache(&c);
    ckd_release(d);
    free(q), free(y), free(pos);
}

static void device_attention_is_within_its_bound(void **state) {
    ckd d = ckd_open(*state);
    ck_worst = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t t = 0; t < TYPES; t++) check_shape(&d, &shapes[i], types[t]);
    print_message("    %s: worst error %.2f of its bound\n", d.name, ck_worst);
    ckd_close(&d);
}

/* ---- rope and putting at once ---- */

/* All tokens of all sequences in one launch, in an order of their own. */
static void check_turn(ckd *d, const shape *s, lq_dtype type, uint32_t rot, bool pairs) {
    const uint32_t n = s->seqs * s->positions, half = rot / 2;
    const size_t qw = (size_t)s->heads * s->dim, kw = (size_t)s->kv_heads * s->dim, table = (size_t)s->room * half + 1;
    float *q = ck_exact(n * qw * 4), *k = ck_exact(n * kw * 4), *v = ck_exact(n * kw * 4), *cosines = ck_exact(table * 4), *sines = ck_exact(table * 4);
    float *got = ck_exact(n * (qw + kw) * 4);
    uint32_t *pos = ck_exact(8 * (size_t)n), *seq = pos + n;
    ck_floats(q, n * qw, &d->rng, false);
    ck_floats(k, n * kw, &d->rng, false);
    ck_floats(v, n * kw, &d->rng, false);
    const float *dc = ckd_floats(d, cosines, table), *ds = ckd_floats(d, sines, table);
    float *dq = ckd_out(d, n * qw * 4), *dk = ckd_out(d, n * kw * 4);
    assert_true(d->d->put(dq, q, n * qw * 4) && d->d->put(dk, k, n * kw * 4));
    const float *dv = ckd_in(d, v, n * kw * 4);
    for (uint32_t t = 0; t < n; t++) pos[t] = t % s->positions, seq[t] = t / s->positions;
    for (uint32_t t = 0; t < n; t++) {
        (pairs ? lq_rope_pairs_c : lq_rope_c)(q + t * qw, s->heads, s->dim, rot, cosines + (size_t)pos[t] * half, sines + (size_t)pos[t] * half);
        (pairs ? lq_rope_pairs_c : lq_rope_c)(k + t * kw, s->kv_heads, s->dim, rot, cosines + (size_t)pos[t] * half, sines + (size_t)pos[t] * half);
    }
    cache c = bare_cache(d, s, type, k, v);
    const lq_device_tokens at = {n, ckd_in(d, pos, 4 * (size_t)n), s->seqs > 1 ? ckd_in(d, seq, 4 * (size_t)n) : NULL, s->room - 1};
    const lq_device_turn turn = {.kv = &c.kv, .q = dq, .k = dk, .v = dv, .cos = dc, .sin = ds, .heads = s->heads, .rot = rot, .pairs = pairs};
    ckd_run(d, d->d->ops->turn(&turn, &at), "turn");
    ckd_get(d, dq, n * qw * 4, got);
    ckd_get(d, dk, n * kw * 4, got + n * qw);
    ckd_same_floats(d, got, q, n * qw, "turned q");
    ckd_same_floats(d, got + n * qw, k, n * kw, "turned k");
    get_cache(d, &c);
    compare_cache(d, s, &c);
    drop_cache(&c);
    ckd_release(d);
    free(q), free(k), free(v), free(cosines), free(sines), free(got), free(pos);
}

static void device_turn_is_rope_and_putting(void **state) {
    static const shape of[] = {{4, 2, 16, 1, 9, 12, 1, 0, 0, false}, {3, 3, 20, 1, 13, 17, 1, 0, 0, true}, {6, 2, 32, 3, 7, 11, 1, 0, 0, false},
                               {9, 3, 64, 2, 5, 5, 1, 0, 0, true},   {71, 1, 8, 1, 3, 4, 1, 0, 0, false},  {1, 1, 97, 1, 2, 3, 1, 0, 0, false}, {1, 1, 1, 1, 1, 1, 1, 0, 0, false}};
    ckd d = ckd_open(*state);
    for (size_t i = 0; i < sizeof of / sizeof *of; i++)
        for (size_t t = 0; t < TYPES; t++) check_turn(&d, &of[i], types[t], (t % 2 ? of[i].dim : of[i].dim / 2) / 2 * 2, i % 2);
    ckd_close(&d);
}

void ck_device_attn_add(const ck_variant *v, lq_dtype t) {
    ck_add(device_attention_is_within_its_bound, "device_attn", v, NULL, t);
    ck_add(device_turn_is_rope_and_putting, "device_turn", v, NULL, t);
}
