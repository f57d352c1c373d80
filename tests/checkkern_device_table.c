/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* No kernel of a device goes unchecked: checks get the device through a table of counters, one for every entry, and the last check asks that each
 * was called. An entry that is new in lq_device_ops and has no line here stays NULL in that table, which fails too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern_device.h"

#include <string.h>

typedef const char *(*entry)(void);
enum { ENTRIES = sizeof(lq_device_ops) / sizeof(entry), GEMV = ENTRIES, IDOT, REPLAY, ALL };

static struct side { lq_device real, counted; lq_device_ops ops; uint32_t calls[ALL]; } sides[2], *at; /* of cuda, of emu; whose check runs */

#define AT(op) (offsetof(lq_device_ops, op) / sizeof(entry))
#define OPS(X) \
    X(dense, (const lq_device_dense *w, const float *x, uint32_t n, float *y), (w, x, n, y)) \
    X(gemm, (const lq_device_matrix *m, const float *x, uint32_t n, float *y), (m, x, n, y)) \
    X(sparse, (const lq_device_sparse *s, const float *x, uint32_t n, float *y), (s, x, n, y)) \
    X(embed, (const lq_device_dense *w, const int32_t *ids, uint32_t n, float *y), (w, ids, n, y)) \
    X(embed_packed, (const lq_device_matrix *m, const int32_t *ids, uint32_t n, float *y), (m, ids, n, y)) \
    X(norm, (const lq_device_norm *o, const float *x, uint32_t d, uint32_t n, float *y), (o, x, d, n, y)) \
    X(rope, (float *x, uint32_t h, uint32_t d, uint32_t r, int p, const float *c, const float *s, const lq_device_tokens *t), (x, h, d, r, p, c, s, t)) \
    X(glu, (int f, const float *gate, const float *up, float *y, uint64_t n), (f, gate, up, y, n)) \
    X(add, (float *y, const float *x, float scale, uint64_t n), (y, x, scale, n)) \
    X(bias, (float *y, const float *b, uint32_t width, uint32_t n), (y, b, width, n)) \
    X(clamp, (const float *x, float most, float *y, uint64_t n), (x, most, y, n)) \
    X(token_gate, (const float *x, const float *gate, uint32_t width, uint32_t n, float *y), (x, gate, width, n, y)) \
    X(split, (const float *x, uint32_t w, uint32_t f, uint32_t run, uint32_t step, uint32_t rows, uint32_t n, float *y), (x, w, f, run, step, rows, n, y)) \
    X(kv_put, (const lq_device_kv *kv, const float *k, const float *v, const lq_device_tokens *t), (kv, k, v, t)) \
    X(attn, (const lq_device_attn *a, const lq_device_kv *kv, const float *q, const lq_device_tokens *t, float *out), (a, kv, q, t, out)) \
    X(score, (const float *l, uint32_t vocab, uint32_t n, const int32_t *target, double *nll, int32_t *best), (l, vocab, n, target, nll, best)) \
    X(round, (const lq_device_matrix *m, const lq_device_round *o, const float *x, uint32_t n, int8_t *c, float *step, int32_t *sum), (m, o, x, n, c, step, sum)) \
    X(act, (const lq_device_round *o, const float *x, uint32_t cols, uint32_t n, float *y), (o, x, cols, n, y)) \
    X(scale, (float *x, float times, float cap, uint64_t n), (x, times, cap, n)) \
    X(scatter, (float *y, const float *x, const int32_t *ids, const float *weight, uint32_t width, uint32_t n), (y, x, ids, weight, width, n)) \
    X(product, (const lq_device_product *p), (p)) \
    X(turn, (const lq_device_turn *o, const lq_device_tokens *t), (o, t)) \
    X(route, (float *s, uint32_t e, uint32_t n, uint32_t k, int shares, float times, int32_t *p, float *w, int32_t *t), (s, e, n, k, shares, times, p, w, t)) \
    X(merge, (float *y, const float *x, const float *weight, uint32_t k, uint32_t width, uint32_t n), (y, x, weight, k, width, n)) \
    X(move, (void *to, const void *from, uint64_t bytes), (to, from, bytes))

#define COUNT(op, given, passed) \
    static const char *counted_##op given { \
        at->calls[AT(op)]++; \
        return at->real.ops->op passed; \
    }
OPS(COUNT)

static const char *counted_gemv(const lq_device_matrix *m, const float *x, uint32_t n, float *y) {
    at->calls[GEMV]++;
    return at->real.gemv(m, x, n, y);
}
static const char *counted_idot(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *sum, uint32_t n, float *y) {
    at->calls[IDOT]++;
    return at->real.idot(m, x, step, sum, n, y);
}
static const char *counted_replay(void *pass) {
    at->calls[REPLAY]++;
    return at->real.replay(pass);
}

#define LINE(op, given, passed) .op = counted_##op,
static const lq_device_ops counters = {OPS(LINE)};

const lq_device *ckd_device(const ck_probe *p) {
    const bool cuda = p->dtype == LQ_F16;
    at = &sides[!cuda];
    if (at->counted.name) return &at->counted;
    at->real = at->counted = cuda ? *lq_device_cuda() : *lq_device_emu();
    if (!at->real.ahead(!cuda || ck_ahead()) && ck_ahead()) fail_msg("%s: kernels cannot begin early on %s", p->name, at->real.describe());
    assert_non_null(at->real.ops);
    at->ops = counters;
    at->counted.ops = &at->ops;
    at->counted.gemv = counted_gemv;
    at->counted.idot = counted_idot;
    at->counted.replay = counted_replay;
    return &at->counted;
}

static const char *name_of(size_t i) {
#define NAME(op, given, passed) if (i == AT(op)) return #op;
    OPS(NAME)
    return i == GEMV ? "gemv" : i == IDOT ? "idot" : i == REPLAY ? "replay" : "one that this table does not know";
}

static void every_entry_of_the_device_has_a_check(void **state) {
    static const unsigned char none[sizeof(entry)];
    const ck_probe *p = *state;
    ckd_device(p);
    for (size_t i = 0; i < ENTRIES; i++) {
        const unsigned char *line = (const unsigned char *)&at->ops + i * sizeof(entry), *real = (const unsigned char *)at->real.ops + i * sizeof(entry);
        if (!memcmp(line, none, sizeof none)) fail_msg("%s: entry %zu of lq_device_ops (%s) is not counted", p->name, i, name_of(i));
        if (!memcmp(real, none, sizeof none)) fail_msg("%s: the device has no entry %s", p->name, name_of(i));
    }
    if (!strstr("_emu", ck_only()) && !strstr("_cuda", ck_only()) && !strstr("device_", ck_only())) skip(); /* some checks only */
    for (size_t i = 0; i < ALL; i++)
        if (!at->calls[i]) fail_msg("%s: no check calls %s", p->name, name_of(i));
}

void ck_device_table_add(const ck_variant *v, lq_dtype t) { ck_add(every_entry_of_the_device_has_a_check, "device_table", v, NULL, t); }
