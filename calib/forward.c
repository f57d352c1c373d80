/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A sequence through all blocks: block by block, and inside a block chunk by chunk, so that activations take a fixed amount
 * of memory. The residual stream lives in the caller's `hidden`. */
#include "calib/forward.h"
#include "calib/held.h"
#include "calib/ops.h"

#include <string.h>

struct lq_state {
    const lq_model *m;
    lq_run run;
    float *keys, *values;      /* [chunk][kv dim], on their way to */
    lq_kv kv;
    lq_held_kv *far;           /* instead of them, on a device; a reference; */
    uint32_t slot;             /* which of its sequences */
    uint32_t max_ctx, pos, kv_layers;
};

static lq_status new_cache(lq_ctx *ctx, lq_state *s, const lq_kv_opts *o) {
    const lq_params *p = &s->m->par;
    size_t n = (size_t)s->run.chunk * s->run.width[T_K];
    LQ_TRY(lq_kv_init(ctx, &s->kv, (lq_kv_kind)o->kind, s->kv_layers, s->max_ctx, p->n_kv_heads, p->head_dim, o->fixed ? s->m->kv_steps : NULL));
    return (s->keys = LQ_NEWN(float, n)) && (s->values = LQ_NEWN(float, n)) ? LQ_OK : lq_oom(ctx, n * 8);
}

/* far: a slab of a device's sequences, whose slot-th is this state's; NULL: its own cache. */
static lq_status new_state(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, bool scoring, const lq_kv_opts *o, lq_held_kv *far, uint32_t slot, lq_state **out) {
    uint32_t kv_layers = scoring ? 1 : m->par.n_layers;
    *out = NULL;
    if (!m->arch || !max_ctx) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a model of unknown architecture cannot be run");
    if (lq_arch_tensor(m->arch, LQ_R_POS_EMBED, LQ_PART_WEIGHT) && max_ctx > m->par.max_ctx)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a context of %u tokens: the model has learned positions for %u", max_ctx, m->par.max_ctx);
    lq_state *s = *out = LQ_NEW(lq_state);
    if (!s) return lq_oom(ctx, sizeof *s);
    *s = (lq_state){.m = m, .max_ctx = max_ctx, .kv_layers = kv_layers};
    lq_status st = lq_run_init(ctx, &s->run, m, max_ctx, max_ctx);
    s->slot = slot;
    if ((s->far = far)) far->refs++;
    else if (!st && m->held) st = lq_held_kv_new(ctx, m, (lq_kv_kind)o->kind, o->fixed, kv_layers, max_ctx, 1, &s->far);
    else if (!st) st = new_cache(ctx, s, o);
    if (st) lq_state_free(out);
    return st;
}

lq_status lq_state_new(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, lq_state **out) {
    return new_state(ctx, m, max_ctx, false, &(lq_kv_opts){0}, NULL, 0, out);
}

lq_status lq_state_new_scoring(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, lq_state **out) {
    return new_state(ctx, m, max_ctx, true, &(lq_kv_opts){0}, NULL, 0, out);
}

static lq_status check_scales(lq_ctx *ctx, const lq_model *m, const lq_kv_opts *o) {
    if (o->fixed && (o->kind == LQ_KV_INT8 || o->kind == LQ_KV_FP8) && !m->kv_steps)
        return lq_fail(ctx, LQ_ERR_USAGE, "--kv-scales: the model stores no scales of its keys and values (quantize with --kv-scales)");
    return LQ_OK;
}

lq_status lq_state_new_kv(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, bool scoring, const lq_kv_opts *o, lq_state **out) {
    LQ_TRY(check_scales(ctx, m, o));
    return new_state(ctx, m, max_ctx, scoring, o, NULL, 0, out);
}

lq_status lq_states_new(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, const lq_kv_opts *o, uint32_t n, lq_state **out) {
    lq_held_kv *far = NULL;
    LQ_TRY(check_scales(ctx, m, o));
    if (m->held) LQ_TRY(lq_held_kv_new(ctx, m, (lq_kv_kind)o->kind, o->fixed, m->par.n_layers, max_ctx, n, &far));
    lq_status st = LQ_OK;
    uint32_t made = 0;
    while (!st && made < n) {
        st = new_state(ctx, m, max_ctx, false, o, far, made, &out[made]);
        made += !st;
    }
    while (st && made) lq_state_free(&out[--made]);
    if (far) lq_held_kv_free(&far);
    return st;
}

uint64_t lq_state_kv_bytes(const lq_state *s) {
    return s->far ? lq_held_kv_bytes(s->far) : lq_kv_bytes(&s->kv);
}

void lq_state_reset(lq_state *s) { s->pos = 0; }
void lq_state_rewind(lq_state *s, uint32_t pos) { s->pos = pos < s->pos ? pos : s->pos; }
void lq_state_clock(lq_state *s, double *clock) { s->run.clock = clock; }
uint32_t lq_state_pos(const lq_state *s) { return s->pos; }
uint32_t lq_state_room(const lq_state *s) { return s->max_ctx; }

void lq_state_free(lq_state **s) {
    if (!*s) return;
    lq_run_free(&(*s)->run);
    lq_free((*s)->keys);
    lq_free((*s)->values);
    lq_kv_free(&(*s)->kv);
    lq_held_kv_free(&(*s)->far);
    lq_free(*s);
    *s = NULL;
}

static uint32_t ops_of(const lq_arch *a) {
    uint32_t n = 0;
    while (a->block[n].kind) n++;
    return n;
}

/* One block over n tokens at s->pos.. */
static void run_block(lq_state *s, uint32_t layer, uint32_t n) {
    lq_run *r = &s->run;
    for (uint32_t i = 0; i < n; i += r->chunk) {
        uint32_t m = n - i < r->chunk ? n - i : r->chunk;
        r->at = i;
        lq_span span = {.n = m, .pos = s->pos + i, .kv = s->far ? NULL : &s->kv, .layer = layer, .far = s->far, .slot = s->slot};
        r->t[T_RESID] = r->stream + (size_t)i * r->width[T_RESID];
        if (!s->far) r->t[T_K] = s->keys;
        if (!s->far) r->t[T_V] = s->values;
        lq_run_ops(r, &s->m->layers[layer], layer, 0, ops_of(r->arch), m, &span, 1);
    }
}

static bool ready(const lq_model *m, const lq_layer *l) { return m->held || l->loaded; }

static lq_status run_pass(lq_ctx *ctx, lq_state *s, uint32_t n) {
    lq_run *r = &s->run;
    const lq_model *m = s->m;
    LQ_TRY(lq_run_fit(ctx, r, &m->outer));
    for (uint32_t i = 0; i < n; i += r->chunk) lq_run_embed(r, i, n - i < r->chunk ? n - i : r->chunk);
    for (uint32_t b = 0; b < m->par.n_layers; b++) {
        if (!ready(m, &m->layers[b])) return lq_fail(ctx, LQ_ERR_INTERNAL, "block %u is not loaded", b);
        LQ_TRY(lq_run_fit(ctx, r, &m->layers[b]));
        LQ_TRY(lq_check_cancel(ctx));
        run_block(s, b, n);
        LQ_TRY(r->ops->check(ctx, r));
    }
    lq_run_final_norm(r, r->stream, n, r->stream);
    return LQ_OK;
}

lq_status lq_forward(lq_ctx *ctx, lq_state *s, const int32_t *ids, uint32_t n, float *hidden) {
    const lq_model *m = s->m;
    if (s->kv_layers < m->par.n_layers) s->pos = 0;
    if (!n) return LQ_OK;
    if (n > s->max_ctx - s->pos) return lq_fail(ctx, LQ_ERR_INTERNAL, "%u tokens at position %u of a context of %u", n, s->pos, s->max_ctx);
    if (!ready(m, &m->outer)) return lq_fail(ctx, LQ_ERR_INTERNAL, "the embedding is not loaded");
    LQ_TRY(lq_check_place(ctx, m, ids, n, s->pos));
    LQ_TRY(s->run.ops->begin(ctx, &s->run, ids, &(lq_span){.n = n, .pos = s->pos}, 1, n, hidden));
    if (!s->run.ops->again(&s->run, n == 1 ? 1 : 0)) {
        lq_status st = run_pass(ctx, s, n);
        s->run.ops->passed(&s->run, !st);
        if (st) return st;
    }
    LQ_TRY(s->run.ops->end(ctx, &s->run, n, hidden));
    s->pos += n;
    return LQ_OK;
}

/* ---- several sequences ---- */

static bool alike(const lq_state *a, const lq_state *b) {
    return a->m == b->m && a->max_ctx == b->max_ctx && a->kv_layers == b->kv_layers && a->kv.kind == b->kv.kind && a->kv.row_bytes == b->kv.row_bytes &&
           !a->far == !b->far && (!a->far || (a->far->row_bytes == b->far->row_bytes && !a->far->kv[0].key_step == !b->far->kv[0].key_step));
}

lq_status lq_state_copy(lq_ctx *ctx, lq_state *dst, const lq_state *src) {
    if (!alike(dst, src)) return lq_fail(ctx, LQ_ERR_INTERNAL, "a state copied to one of another model or room");
    if (src->far) LQ_TRY(lq_held_kv_copy(ctx, dst->far, dst->slot, src->far, src->slot, src->pos));
    else lq_kv_copy(&dst->kv, &src->kv, src->pos);
    dst->pos = src->pos;
    return LQ_OK;
}

static lq_span span_of(lq_state *s, uint32_t i, uint32_t layer) {
    if (s->far) return (lq_span){.first = i, .n = 1, .pos = s->pos, .layer = layer, .far = s->far, .slot = s->slot};
    return (lq_span){.first = i, .n = 1, .pos = s->pos, .kv = &s->kv, .layer = layer};
}

static lq_status run_batch(lq_ctx *ctx, lq_state *const *s, uint32_t n, float *rows) {
    lq_run *r = &s[0]->run;
    const lq_model *m = s[0]->m;
    lq_span spans[LQ_BATCH];
    LQ_TRY(lq_run_fit(ctx, r, &m->outer));
    lq_run_embed(r, 0, n);
    r->at = 0;
    r->t[T_RESID] = r->stream;
    if (rows) r->t[T_K] = rows;
    if (rows) r->t[T_V] = rows + (size_t)n * r->width[T_K];
    for (uint32_t b = 0; b < m->par.n_layers; b++) {
        if (!ready(m, &m->layers[b])) return lq_fail(ctx, LQ_ERR_INTERNAL, "block %u is not loaded", b);
        LQ_TRY(lq_run_fit(ctx, r, &m->layers[b]));
        for (uint32_t i = 0; i < n; i++) spans[i] = span_of(s[i], i, b);
        lq_run_ops(r, &m->layers[b], b, 0, ops_of(r->arch), n, spans, n);
        LQ_TRY(r->ops->check(ctx, r));
    }
    lq_run_final_norm(r, r->stream, n, r->stream);
    return LQ_OK;
}

static lq_status check_batch(lq_ctx *ctx, lq_state *const *s, uint32_t n) {
    if (n > LQ_BATCH || n > s[0]->run.chunk) return lq_fail(ctx, LQ_ERR_INTERNAL, "%u sequences at once, at most %u", n, LQ_BATCH < s[0]->run.chunk ? LQ_BATCH : s[0]->run.chunk);
    if (!ready(s[0]->m, &s[0]->m->outer)) return lq_fail(ctx, LQ_ERR_INTERNAL, "the embedding is not loaded");
    for (uint32_t i = 0; i < n; i++) {
        bool one = alike(s[0], s[i]) && s[i]->kv_layers == s[i]->m->par.n_layers;
        if (!one) return lq_fail(ctx, LQ_ERR_INTERNAL, "sequences of another model or room in one batch");
        if (s[i]->pos >= s[i]->max_ctx) return lq_fail(ctx, LQ_ERR_INTERNAL, "a token at position %u of a context of %u", s[i]->pos, s[i]->max_ctx);
    }
    return LQ_OK;
}

/* Sequences of one slab are told apart by what the device reads, so their pass may be recorded. */
static uint64_t batch_key(lq_state *const *s, uint32_t n) {
    for (uint32_t i = 1; i < n; i++)
        if (s[i]->far != s[0]->far) return 0;
    return n > 1 ? n : 1;
}

/* next not NULL, on a device: the likeliest tokens, chosen in the same pass. */
static lq_status forward_batch(lq_ctx *ctx, lq_state *const *s, const int32_t *ids, uint32_t n, float *hidden, int32_t *next) {
    enum { WITH_HEAD = 1 << 16 };
    if (!n) return LQ_OK;
    LQ_TRY(check_batch(ctx, s, n));
    lq_run *r = &s[0]->run;
    uint64_t key = batch_key(s, n);
    if (key && next) key |= WITH_HEAD;
    lq_span spans[LQ_BATCH];
    float *rows = s[0]->far ? NULL : LQ_NEWN(float, (size_t)n * (r->width[T_K] + r->width[T_V]));
    lq_status st = rows || s[0]->far ? LQ_OK : lq_oom(ctx, (size_t)n * (r->width[T_K] + r->width[T_V]) * sizeof *rows);
    for (uint32_t i = 0; i < n && !st; i++) {
        spans[i] = (lq_span){.first = i, .n = 1, .pos = s[i]->pos, .slot = s[i]->slot};
        st = lq_check_place(ctx, s[0]->m, ids + i, 1, s[i]->pos);
    }
    if (!st) st = r->ops->begin(ctx, r, ids, spans, n, n, hidden);
    if (!st && next) st = lq_held_choosing(ctx, r, n);
    if (!st && !r->ops->again(r, key)) {
        st = run_batch(ctx, s, n, rows);
        if (!st && next) lq_held_choose(r, n);
        r->ops->passed(r, !st);
    }
    if (!st) st = r->ops->end(ctx, r, n, hidden);
    if (!st && next) st = lq_held_chosen(ctx, r, n, next);
    for (uint32_t i = 0; i < n && !st; i++) s[i]->pos++;
    lq_free(rows);
    return st;
}

lq_status lq_forward_batch(lq_ctx *ctx, lq_state *const *s, const int32_t *ids, uint32_t n, float *hidden) { return forward_batch(ctx, s, ids, n, hidden, NULL); }

lq_status lq_held_next(lq_ctx *ctx, lq_state *const *s, const int32_t *ids, uint32_t n, int32_t *next) { return forward_batch(ctx, s, ids, n, NULL, next); }

uint64_t lq_layer_step_bytes(const lq_model *m, const lq_layer *l) {
    uint64_t n = 0, experts = 0;
    if (l == &m->outer) return lq_linear_bytes(&l->lin[m->par.tied ? LQ_R_EMBED : LQ_R_HEAD]);
    for (int r = 0; r < LQ_R_N; r++) n += l->lin[r].rows ? lq_linear_bytes(&l->lin[r]) : 0;
    for (size_t i = 0; i < (size_t)l->n_experts * LQ_EXPERT_ROLES; i++) experts += l->experts[i].rows ? lq_linear_bytes(&l->experts[i]) : 0;
    return n + (l->n_experts ? experts / l->n_experts * m->par.top_k : 0);
}

uint64_t lq_model_step_bytes(const lq_model *m) {
    if (m->held) return m->held->step_bytes;
    uint64_t n = lq_layer_step_bytes(m, &m->outer);
    for (uint32_t b = 0; b < m->par.n_layers; b++) n += lq_layer_step_bytes(m, &m->layers[b]);
    return n;
}
