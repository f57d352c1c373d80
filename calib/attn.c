/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Causal attention of grouped heads, a tile of queries of one head at a time:
 *
 *   S = Q K^T over the keys the tile can see;  P = softmax(S / sqrt(d)) with the rest of each row zero;  out = P V
 *
 * (1/sqrt(d) is the scale unless the parameters state another; Gemma 2 caps the scaled scores by c tanh(s / c)), so that scores of one tile are all that ever exists. A tile's keys start at its first query's window and end at its last
 * query; the split follows from the shape alone. */
#include "calib/run.h"

#include "kernels/linalg.h"

#include <math.h>
#include <string.h>

enum { TILE_MIN = 8, SCORES = 1 << 20 }; /* floats a tile's scores may take, long contexts use fewer queries per tile */

static uint32_t tile_of(uint32_t keys) {
    uint32_t tile = LQ_ATTN_TILE;
    while (tile > TILE_MIN && (uint64_t)tile * keys > SCORES) tile /= 2;
    return tile;
}

size_t lq_attn_scratch(uint32_t positions) {
    uint64_t n = (uint64_t)LQ_ATTN_TILE * positions, least = (uint64_t)TILE_MIN * positions;
    return n <= SCORES ? n : least > SCORES ? least : SCORES;
}

typedef struct call {
    const lq_run *r;
    const float *q;
    float *out;
    uint32_t window;
    const lq_span *span;
    uint32_t tile;
} call;

static void capped(float *score, uint32_t n, float scale, float cap) {
    for (uint32_t i = 0; i < n; i++) score[i] = cap * tanhf(score[i] * scale / cap);
}

/* The packed cache, read a tile of keys at a time into scratch behind the scores. */
static void stored_scores(const call *a, const float *q, uint32_t n, uint32_t k0, uint32_t nk, uint32_t head, float *score) {
    uint32_t d = a->r->par->head_dim;
    float *tile = score + (size_t)n * nk;
    for (uint32_t j = 0; j < nk; j += LQ_KV_TILE) {
        uint32_t m = nk - j < LQ_KV_TILE ? nk - j : LQ_KV_TILE;
        lq_kv_get(a->span->kv, a->span->layer, false, k0 + j, m, head, tile);
        lq_gemm_nt(q, (size_t)a->r->par->n_heads * d, tile, d, score + j, nk, n, m, d, false);
    }
}

static void stored_values(const call *a, float *score, uint32_t n, uint32_t k0, uint32_t nk, uint32_t head, float *out) {
    uint32_t d = a->r->par->head_dim;
    float *tile = score + (size_t)n * nk;
    for (uint32_t j = 0; j < nk; j += LQ_KV_TILE) {
        uint32_t m = nk - j < LQ_KV_TILE ? nk - j : LQ_KV_TILE;
        lq_kv_get(a->span->kv, a->span->layer, true, k0 + j, m, head, tile);
        lq_gemm_nn(score + j, nk, tile, d, out, (size_t)a->r->par->n_heads * d, n, d, m, 1, j > 0);
    }
}

static void attend(const call *a, uint32_t t0, uint32_t head) {
    const lq_params *p = a->r->par;
    const lq_span *s = a->span;
    uint32_t d = p->head_dim, ldq = p->n_heads * d, ldk = p->n_kv_heads * d, kv = head / (p->n_heads / p->n_kv_heads);
    uint32_t n = s->n - t0 < a->tile ? s->n - t0 : a->tile, pos = s->pos + t0;
    uint32_t k0 = a->window && pos + 1 > a->window ? pos + 1 - a->window : 0, nk = pos + n - k0;
    const float *q = a->q + (size_t)(s->first + t0) * ldq + head * d;
    float *score = lq_work_mine(&a->r->work), *out = a->out + (size_t)(s->first + t0) * ldq + head * d, scale = p->attn_scale > 0 ? p->attn_scale : 1 / sqrtf((float)d);
    if (s->kv) stored_scores(a, q, n, k0, nk, kv, score);
    else lq_gemm_nt(q, ldq, s->keys + (size_t)k0 * ldk + kv * d, ldk, score, nk, n, nk, d, false);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t end = pos + i + 1 - k0, begin = a->window && pos + i + 1 > a->window ? pos + i + 1 - a->window - k0 : 0;
        float *row = score + (size_t)i * nk;
        memset(row, 0, begin * sizeof *row);
        if (p->attn_cap > 0) capped(row + begin, end - begin, scale, p->attn_cap);
        a->r->k->softmax(row + begin, end - begin, p->attn_cap > 0 ? 1 : scale);
        memset(row + end, 0, (nk - end) * sizeof *row);
    }
    if (s->kv) stored_values(a, score, n, k0, nk, kv, out);
    else lq_gemm_nn(score, nk, s->values + (size_t)k0 * ldk + kv * d, ldk, out, ldq, n, d, nk, 1, false);
}

static void attend_task(void *arg, size_t i) {
    const call *a = arg;
    uint32_t heads = a->r->par->n_heads, tiles = (a->span->n + a->tile - 1) / a->tile;
    attend(a, (tiles - 1 - (uint32_t)(i / heads)) * a->tile, (uint32_t)(i % heads)); /* the longest rows first */
}

typedef struct batch { const call *a; const lq_span *spans; } batch;
static void short_task(void *arg, size_t i) { /* one head of one short sequence */
    const batch *b = arg;
    call a = *b->a;
    a.span = &b->spans[i / a.r->par->n_heads];
    a.tile = tile_of(a.span->pos + a.span->n);
    for (uint32_t t0 = 0; t0 < a.span->n; t0 += a.tile) attend(&a, t0, (uint32_t)(i % a.r->par->n_heads));
}

void lq_attn(const lq_run *r, uint32_t window, const float *q, float *out, const lq_span *spans, uint32_t n_spans) {
    call a = {r, q, out, window, spans, 0};
    uint64_t work = 0;
    for (uint32_t i = 0; i < n_spans; i++) work += (uint64_t)spans[i].n * (spans[i].pos + spans[i].n) * r->width[T_Q];
    if (n_spans > 1) {
        lq_spread((size_t)n_spans * r->par->n_heads, work, short_task, &(batch){&a, spans});
        return;
    }
    a.tile = tile_of(spans->pos + spans->n);
    lq_spread((size_t)((spans->n + a.tile - 1) / a.tile) * r->par->n_heads, work, attend_task, &a);
}
