/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The interpreter: one op after the other over a chunk, on whatever carries operations out (calib/ops.h). */
#include "calib/forward.h"
#include "calib/ops.h"
#include "core/os.h"

enum { RUN_BYTES = 48 << 20, CHUNK_MIN = 256, CHUNK_MAX = 2048 }; /* tokens */

void lq_run_bare(lq_run *r, const lq_model *m) {
    *r = (lq_run){.ops = &lq_ops_cpu, .m = m, .k = m->k, .arch = m->arch, .par = &m->par, .l = &m->outer, .layer = -1};
}

/* Set by the caller for each chunk. */
static bool callers(const lq_run *r, int t) { return t == T_RESID || (!r->ops->far && (t == T_K || t == T_V)); }

lq_status lq_run_init(lq_ctx *ctx, lq_run *r, const lq_model *m, uint32_t tokens, uint32_t positions) {
    lq_run_bare(r, m);
    if (m->held) r->ops = &lq_ops_device;
    lq_arch_widths(m->arch, &m->par, r->width);
    r->width[T_NONE] = m->par.hidden;
    uint64_t sum = 0;
    for (int t = 0; t < T_N; t++) sum += callers(r, t) ? 0 : r->width[t];
    r->chunk = CHUNK_MAX;
    while (r->chunk > CHUNK_MIN && r->chunk * sum * 4 > RUN_BYTES) r->chunk /= 2;
    if (r->chunk > tokens) r->chunk = tokens;
    lq_status st = (r->mem = r->ops->alloc(r, sum * r->chunk)) ? r->ops->open(ctx, r, positions) : lq_oom(ctx, sum * r->chunk * 4);
    size_t mid = (size_t)r->chunk * lq_run_mid(r);
    if (!st && mid && !(r->mid = r->ops->alloc(r, mid))) st = lq_oom(ctx, mid * 4);
    if (!st) st = lq_routing_init(ctx, &r->routing, r->par, r->chunk);
    if (st) return lq_run_free(r), st;
    float *at = r->mem;
    for (int t = 0; t < T_N; t++) {
        if (callers(r, t)) continue;
        r->t[t] = at;
        at += (size_t)r->width[t] * r->chunk;
    }
    return LQ_OK;
}

lq_status lq_run_fit(lq_ctx *ctx, lq_run *r, const lq_layer *l) { return r->ops->fit(ctx, r, l); }

void lq_run_free(lq_run *r) {
    if (!r->ops) return;
    r->ops->release(r, r->mem);
    r->ops->release(r, r->mid);
    r->ops->close(r);
    lq_routing_free(&r->routing);
    *r = (lq_run){0};
}

/* Where an op writes, and what is left to do then. */
static float *target(lq_run *r, const lq_op *op) { return r->t[op->out & LQ_OUT_ADD ? T_NONE : op->out]; }
static void add_branch(lq_run *r, const lq_op *op, uint32_t n) {
    int t = op->out & ~LQ_OUT_ADD;
    if (op->out & LQ_OUT_ADD) r->ops->add(r, r->t[t], r->t[T_NONE], r->par->resid_scale, r->width[t], n);
}

static int clock_of(const lq_op *op) {
    return op->kind == LQ_OP_LINEAR ? LQ_CLOCK_LINEAR : op->kind == LQ_OP_ATTN ? LQ_CLOCK_ATTENTION : LQ_CLOCK_OTHER;
}

void lq_run_ops(lq_run *r, const lq_layer *l, uint32_t layer, uint32_t from, uint32_t to, uint32_t n, const lq_span *spans, uint32_t n_spans) {
    const lq_ops *o = r->ops;
    for (const lq_op *op = r->arch->block + from; op < r->arch->block + to; op++) {
        if (!lq_params_at(r->par, op->only_if, layer)) continue;
        r->l = l;
        r->layer = (int32_t)layer;
        r->op = op;
        float *x = r->t[op->in[0]], *x2 = r->t[op->in[1]], *y = target(r, op);
        uint32_t width = r->width[op->in[0]], d = r->par->head_dim;
        double start = r->clock && !o->far ? lq_now() : 0;
        switch (op->kind) {
        case LQ_OP_NORM: o->norm(r, op->role, x, width, n, y); break;
        case LQ_OP_HEAD_NORM: o->norm(r, op->role, x, d, n * (width / d), y); break;
        case LQ_OP_LINEAR: o->linear(r, op->role, x, n, y); break;
        case LQ_OP_SPLIT:
        case LQ_OP_SPLIT_HEADS: o->split(r, op, x, n, y); break;
        case LQ_OP_ACT: o->glu(r, x, NULL, width, n, y); break;
        case LQ_OP_ROPE: o->rope(r, y, width, n, spans); break;
        case LQ_OP_ATTN: o->attn(r, op, x, n, y, spans, n_spans); break;
        case LQ_OP_GLU: o->glu(r, x, x2, width, n, y); break;
        case LQ_OP_CLAMP: o->clamp(r, x, r->par->clip_qkv, width, n, y); break;
        case LQ_OP_ROUTE: op = lq_run_experts(r, l, layer, op, n); continue;
        case LQ_OP_TOKEN_GATE: o->token_gate(r, x, x2, width, n, y); break;
        case LQ_OP_MERGE:
        case LQ_OP_END: return;
        }
        add_branch(r, op, n);
        if (r->clock && !o->far) r->clock[clock_of(op)] += lq_now() - start;
    }
}
