/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Causal attention of grouped heads, a tile of queries at a time; the heads that share keys go together, as rows of one product:
 *
 *   S = Q K^T over the keys the tile can see;  P = softmax(S / sqrt(d)) with the rest of each row zero;  out = P V
 *
 * (1/sqrt(d) is the scale unless the parameters state another; Gemma 2 caps the scaled scores by c tanh(s / c)), so that scores of one tile are
 * all that ever exists. A tile's keys start at its first query's window and end at its last query; the split follows from the shape alone. */
#include "calib/run.h"

#include "kernels/linalg.h"

#include <math.h>
#include <string.h>

enum { TILE_MIN = 8, SCORES = 1 << 20, ROWS = 2 * LQ_ATTN_TILE, ALONE = 8, NEAR = 256 << 10 }; /* floats a tile's scores may take; rows of a tile, queries
                                             times heads; queries below which each head has a task of its own; bytes of keys that a core's cache holds */

/* Queries of a tile when `heads` share it: fewer for long contexts. */
static uint32_t tile_of(uint32_t keys, uint32_t heads) {
    uint32_t tile = heads == 1 ? LQ_ATTN_TILE : ROWS / heads / TILE_MIN * TILE_MIN;
    while (tile > TILE_MIN && (uint64_t)tile * heads * keys > SCORES) tile /= 2;
    return tile < TILE_MIN ? TILE_MIN : tile;
}

/* Shorter contexts may take larger tiles: no tile has more scores than this, nor more rows than one of a short context. */
static uint64_t scratch_of(const lq_params *p, uint32_t positions, uint32_t heads) {
    uint64_t rows = (uint64_t)tile_of(1, heads) * heads, all = rows * positions, least = (uint64_t)TILE_MIN * heads * positions;
    return (all <= SCORES ? all : least > SCORES ? least : SCORES) + 2 * rows * p->head_dim;
}

size_t lq_attn_scratch(const lq_params *p, uint32_t positions) {
    uint64_t shared = scratch_of(p, positions, p->n_heads / p->n_kv_heads), own = scratch_of(p, positions, 1);
    return (shared > own ? shared : own) + (uint64_t)LQ_KV_TILE * p->head_dim;
}

typedef struct call {
    const lq_run *r;
    const float *q;
    float *out;
    uint32_t window;
    const lq_span *span;
    uint32_t tile, heads;      /* queries, and heads that share their keys, of a task */
} call;

static void capped(float *score, uint32_t n, float scale, float cap) {
    for (uint32_t i = 0; i < n; i++) score[i] = cap * tanhf(score[i] * scale / cap);
}

/* One query of each head has kernels of its own: a product of so few rows is all overhead. */
static void scores_with(const call *a, const float *q, uint32_t n, const float *keys, size_t ld, uint32_t nk, float *score, size_t lds) {
    uint32_t d = a->r->par->head_dim;
    if (a->span->n == 1) a->r->k->attn_scores(q, n, d, keys, ld, nk, score, lds);
    else lq_gemm_nt(q, d, keys, ld, score, lds, n, nk, d, false);
}

static void values_with(const call *a, const float *score, size_t lds, uint32_t n, const float *values, size_t ld, uint32_t nk, float *out, bool add) {
    uint32_t d = a->r->par->head_dim;
    if (a->span->n > 1) lq_gemm_nn(score, lds, values, ld, out, d, n, d, nk, 1, add);
    else {
        if (!add) memset(out, 0, (size_t)n * d * sizeof *out);
        a->r->k->attn_mix(score, lds, n, nk, values, ld, d, out);
    }
}

/* Rows that lie as floats: whose stride is *ld; NULL: they are packed. */
static const float *floats_of(const call *a, bool values, uint32_t k0, uint32_t kv, size_t *ld) {
    const lq_span *s = a->span;
    uint32_t d = a->r->par->head_dim;
    *ld = s->kv ? d : a->r->par->n_kv_heads * d;
    if (!s->kv) return (values ? s->values : s->keys) + k0 * *ld + kv * d;
    return s->kv->kind == LQ_KV_F32 ? lq_kv_floats(s->kv, s->layer, values, k0, kv) : NULL;
}

/* score[n][lds] = q[n][d] times keys k0 .. of a kv head; out[n][d] = score times its values. A packed cache is read a tile of keys at a time
 * into `keys`. */
static void scores_of(const call *a, const float *q, uint32_t n, uint32_t k0, uint32_t nk, uint32_t kv, float *keys, float *score, size_t lds) {
    const lq_span *s = a->span;
    size_t ld;
    const float *in = floats_of(a, false, k0, kv, &ld);
    if (in) scores_with(a, q, n, in, ld, nk, score, lds);
    for (uint32_t j = 0; !in && j < nk; j += LQ_KV_TILE) {
        uint32_t m = nk - j < LQ_KV_TILE ? nk - j : LQ_KV_TILE;
        lq_kv_get(s->kv, s->layer, false, k0 + j, m, kv, keys);
        scores_with(a, q, n, keys, ld, m, score + j, lds);
    }
}

static void values_of(const call *a, const float *score, uint32_t n, uint32_t k0, uint32_t nk, uint32_t kv, float *values, float *out) {
    const lq_span *s = a->span;
    size_t ld;
    const float *in = floats_of(a, true, k0, kv, &ld);
    if (in) values_with(a, score, nk, n, in, ld, nk, out, false);
    for (uint32_t j = 0; !in && j < nk; j += LQ_KV_TILE) {
        uint32_t m = nk - j < LQ_KV_TILE ? nk - j : LQ_KV_TILE;
        lq_kv_get(s->kv, s->layer, true, k0 + j, m, kv, values);
        values_with(a, score + j, nk, n, values, ld, m, out, j > 0);
    }
}

/* A row of scores over keys k0 .. of the query at position pos. */
static void weigh(const call *a, float *row, uint32_t pos, uint32_t k0, uint32_t nk) {
    const lq_params *p = a->r->par;
    float scale = p->attn_scale > 0 ? p->attn_scale : 1 / sqrtf((float)p->head_dim);
    uint32_t end = pos + 1 - k0, begin = a->window && pos + 1 > a->window ? pos + 1 - a->window - k0 : 0;
    memset(row, 0, begin * sizeof *row);
    if (p->attn_cap > 0) capped(row + begin, end - begin, scale, p->attn_cap);
    a->r->k->softmax(row + begin, end - begin, p->attn_cap > 0 ? 1 : scale);
    memset(row + end, 0, (nk - end) * sizeof *row);
}

/* Queries t0 .. of heads head .. head + a->heads, whose rows lie head after head in scratch. */
static void attend(const call *a, uint32_t t0, uint32_t head) {
    const lq_params *p = a->r->par;
    const lq_span *s = a->span;
    uint32_t d = p->head_dim, ld = p->n_heads * d, kv = head / (p->n_heads / p->n_kv_heads);
    uint32_t n = s->n - t0 < a->tile ? s->n - t0 : a->tile, pos = s->pos + t0;
    uint32_t k0 = a->window && pos + 1 > a->window ? pos + 1 - a->window : 0, nk = pos + n - k0, rows = n * a->heads;
    size_t from = (size_t)(s->first + t0) * ld + head * d;
    float *score = lq_work_mine(&a->r->work), *q = score + (size_t)rows * nk, *out = q + (size_t)rows * d, *keys = out + (size_t)rows * d;
    for (uint32_t r = 0; r < rows; r++) memcpy(q + (size_t)r * d, a->q + from + (size_t)(r % n) * ld + r / n * d, d * sizeof *q);
    scores_of(a, q, rows, k0, nk, kv, keys, score, nk);
    for (uint32_t r = 0; r < rows; r++) weigh(a, score + (size_t)r * nk, pos + r % n, k0, nk);
    values_of(a, score, rows, k0, nk, kv, keys, out);
    for (uint32_t r = 0; r < rows; r++) memcpy(a->out + from + (size_t)(r % n) * ld + r / n * d, out + (size_t)r * d, d * sizeof *out);
}

/* The call for one span, and how many tasks a tile of it has. */
static uint32_t share(call *a, const lq_span *s) {
    const lq_params *p = a->r->par;
    a->span = s;
    bool far = (s->kv && s->kv->kind) || (uint64_t)(s->pos + s->n) * p->head_dim * sizeof(float) > NEAR; /* reading keys again costs */
    a->heads = s->n >= ALONE || (s->n == 1 && far) ? p->n_heads / p->n_kv_heads : 1;
    a->tile = tile_of(s->pos + s->n, a->heads);
    return p->n_heads / a->heads;
}

static void attend_task(void *arg, size_t i) {
    const call *a = arg;
    uint32_t parts = a->r->par->n_heads / a->heads, tiles = (a->span->n + a->tile - 1) / a->tile;
    attend(a, (tiles - 1 - (uint32_t)(i / parts)) * a->tile, (uint32_t)(i % parts) * a->heads); /* the longest rows first */
}

typedef struct batch { const call *a; const lq_span *spans; } batch;
static void short_task(void *arg, size_t i) { /* a kv head of one short sequence */
    const batch *b = arg;
    call a = *b->a;
    const lq_params *p = a.r->par;
    uint32_t kv = (uint32_t)(i % p->n_kv_heads), per = p->n_heads / p->n_kv_heads;
    share(&a, &b->spans[i / p->n_kv_heads]);
    for (uint32_t t0 = 0; t0 < a.span->n; t0 += a.tile)
        for (uint32_t h = kv * per; h < (kv + 1) * per; h += a.heads) attend(&a, t0, h);
}

/* ---- one query of one long sequence: a few heads of keys are too few tasks ---- */

enum { KEYS = 512 }; /* of a task; the same bits as without the split */

typedef struct one { const call *a; float *score; uint32_t k0, nk, blocks; } one; /* score[n_heads][nk]; blocks: of a head's keys */

static uint32_t sharing(const call *a) { return a->r->par->n_heads / a->r->par->n_kv_heads; }
static size_t place(const call *a, size_t head) { return ((size_t)a->span->first * a->r->par->n_heads + head) * a->r->par->head_dim; }

static void keys_task(void *arg, size_t i) { /* a thread's run of tasks reads keys that follow each other */
    const one *o = arg;
    uint32_t kv = (uint32_t)(i / o->blocks), j = (uint32_t)(i % o->blocks) * KEYS, per = sharing(o->a), n = o->nk - j < KEYS ? o->nk - j : KEYS;
    scores_of(o->a, o->a->q + place(o->a, kv * per), per, o->k0 + j, n, kv, lq_work_mine(&o->a->r->work), o->score + (size_t)kv * per * o->nk + j, o->nk);
}

static void weigh_task(void *arg, size_t head) {
    const one *o = arg;
    weigh(o->a, o->score + head * o->nk, o->a->span->pos, o->k0, o->nk);
}

static void mix_task(void *arg, size_t kv) {
    const one *o = arg;
    uint32_t per = sharing(o->a);
    values_of(o->a, o->score + kv * per * o->nk, per, o->k0, o->nk, (uint32_t)kv, lq_work_mine(&o->a->r->work), o->a->out + place(o->a, kv * per));
}

size_t lq_attn_shared(const lq_params *p, uint32_t positions) { return positions > 2 * KEYS ? (size_t)p->n_heads * positions * sizeof(float) : 0; }

static bool split_one(const call *a) {
    const lq_params *p = a->r->par;
    uint32_t pos = a->span->pos, k0 = a->window && pos + 1 > a->window ? pos + 1 - a->window : 0, nk = pos + 1 - k0;
    one o = {a, a->r->work.shared, k0, nk, (nk + KEYS - 1) / KEYS};
    if (a->span->n > 1 || nk <= 2 * KEYS || a->heads != sharing(a) || a->r->work.bytes < (size_t)p->n_heads * nk * sizeof(float)) return false;
    lq_parallel_for((size_t)o.blocks * p->n_kv_heads, keys_task, &o);
    lq_parallel_for(p->n_heads, weigh_task, &o);
    lq_parallel_for(p->n_kv_heads, mix_task, &o);
    return true;
}

void lq_attn(const lq_run *r, uint32_t window, const float *q, float *out, const lq_span *spans, uint32_t n_spans) {
    call a = {.r = r, .q = q, .out = out, .window = window};
    uint64_t work = 0;
    for (uint32_t i = 0; i < n_spans; i++) work += (uint64_t)spans[i].n * (spans[i].pos + spans[i].n) * r->width[T_Q];
    if (n_spans > 1) {
        lq_spread((size_t)n_spans * r->par->n_kv_heads, work, short_task, &(batch){&a, spans});
        return;
    }
    uint32_t parts = share(&a, spans);
    if (split_one(&a)) return;
    lq_spread((size_t)((spans->n + a.tile - 1) / a.tile) * parts, work, attend_task, &a);
}
