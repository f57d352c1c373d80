/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A sequence through all blocks: block by block, and inside a block chunk by chunk, so that activations take a fixed amount
 * of memory. The residual stream lives in the caller's `hidden`. */
#include "calib/forward.h"
#include "calib/run.h"

#include <string.h>

struct lq_state {
    const lq_model *m;
    lq_run run;
    float *keys, *values;      /* [kv_layers][max_ctx][kv dim]; with a packed cache [chunk][kv dim] */
    lq_kv kv;                  /* kind F32: none */
    uint32_t max_ctx, pos, kv_layers;
};

static lq_status new_state(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, bool scoring, const lq_kv_opts *o, lq_state **out) {
    uint32_t kv_layers = scoring ? 1 : m->par.n_layers;
    *out = NULL;
    if (!m->arch || !max_ctx) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a model of unknown architecture cannot be run");
    if (lq_arch_tensor(m->arch, LQ_R_POS_EMBED, LQ_PART_WEIGHT) && max_ctx > m->par.max_ctx)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a context of %u tokens: the model has learned positions for %u", max_ctx, m->par.max_ctx);
    lq_state *s = *out = LQ_NEW(lq_state);
    if (!s) return lq_oom(ctx, sizeof *s);
    *s = (lq_state){.m = m, .max_ctx = max_ctx, .kv_layers = kv_layers};
    lq_status st = lq_run_init(ctx, &s->run, m, max_ctx, max_ctx);
    uint64_t n = 0;
    bool fits = lq_mul_ok(o->kind ? s->run.chunk : (uint64_t)kv_layers * max_ctx, s->run.width[T_K], &n);
    if (!st && o->kind) st = lq_kv_init(ctx, &s->kv, (lq_kv_kind)o->kind, kv_layers, max_ctx, m->par.n_kv_heads, m->par.head_dim, o->fixed ? m->kv_steps : NULL);
    if (!st && !(fits && (s->keys = LQ_NEWN(float, n)) && (s->values = LQ_NEWN(float, n)))) st = lq_oom(ctx, n * 8);
    if (st) lq_state_free(out);
    return st;
}

lq_status lq_state_new(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, lq_state **out) {
    return new_state(ctx, m, max_ctx, false, &(lq_kv_opts){0}, out);
}

lq_status lq_state_new_scoring(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, lq_state **out) {
    return new_state(ctx, m, max_ctx, true, &(lq_kv_opts){0}, out);
}

lq_status lq_state_new_kv(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, bool scoring, const lq_kv_opts *o, lq_state **out) {
    if (o->fixed && (o->kind == LQ_KV_INT8 || o->kind == LQ_KV_FP8) && !m->kv_steps)
        return lq_fail(ctx, LQ_ERR_USAGE, "--kv-scales: the model stores no scales of its keys and values (quantize with --kv-scales)");
    return new_state(ctx, m, max_ctx, scoring, o, out);
}

uint64_t lq_state_kv_bytes(const lq_state *s) {
    return s->kv.kind ? lq_kv_bytes(&s->kv) : 8 * (uint64_t)s->kv_layers * s->max_ctx * s->run.width[T_K];
}

void lq_state_reset(lq_state *s) { s->pos = 0; }
uint32_t lq_state_pos(const lq_state *s) { return s->pos; }

void lq_state_free(lq_state **s) {
    if (!*s) return;
    lq_run_free(&(*s)->run);
    lq_free((*s)->keys);
    lq_free((*s)->values);
    lq_kv_free(&(*s)->kv);
    lq_free(*s);
    *s = NULL;
}

/* One block over n tokens at s->pos.. */
static void run_block(lq_state *s, uint32_t layer, uint32_t n, float *hidden) {
    lq_run *r = &s->run;
    uint32_t n_ops = 0;
    bool packed = s->kv.kind;
    size_t base = s->kv_layers > 1 && !packed ? (size_t)layer * s->max_ctx : 0;
    const float *keys = s->keys + base * r->width[T_K], *values = s->values + base * r->width[T_V];
    while (r->arch->block[n_ops].kind) n_ops++;
    for (uint32_t i = 0; i < n; i += r->chunk) {
        uint32_t m = n - i < r->chunk ? n - i : r->chunk, pos = s->pos + i;
        r->t[T_RESID] = hidden + (size_t)i * r->width[T_RESID];
        r->t[T_K] = s->keys + (packed ? 0 : base + pos) * r->width[T_K];
        r->t[T_V] = s->values + (packed ? 0 : base + pos) * r->width[T_V];
        lq_run_ops(r, &s->m->layers[layer], layer, 0, n_ops, m, &(lq_span){0, m, pos, keys, values, packed ? &s->kv : NULL, layer}, 1);
    }
}

lq_status lq_forward(lq_ctx *ctx, lq_state *s, const int32_t *ids, uint32_t n, float *hidden) {
    const lq_model *m = s->m;
    if (s->kv_layers < m->par.n_layers) s->pos = 0;
    if (!n) return LQ_OK;
    if (n > s->max_ctx - s->pos) return lq_fail(ctx, LQ_ERR_INTERNAL, "%u tokens at position %u of a context of %u", n, s->pos, s->max_ctx);
    if (!m->outer.loaded) return lq_fail(ctx, LQ_ERR_INTERNAL, "the embedding is not loaded");
    LQ_TRY(lq_embed(ctx, m, ids, n, s->pos, hidden));
    for (uint32_t b = 0; b < m->par.n_layers; b++) {
        if (!m->layers[b].loaded) return lq_fail(ctx, LQ_ERR_INTERNAL, "block %u is not loaded", b);
        LQ_TRY(lq_run_fit(ctx, &s->run, &m->layers[b]));
        LQ_TRY(lq_check_cancel(ctx));
        run_block(s, b, n, hidden);
        LQ_TRY(lq_work_check(ctx, &s->run.work));
    }
    lq_final_norm(m, hidden, n, hidden);
    s->pos += n;
    return LQ_OK;
}
