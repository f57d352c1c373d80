/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What stands before and after the blocks: x = norm(P_in s E[id] + pos[offset + position]) and logits = cap((H P_out norm(x) + b) / c);
 * the model's tables and parameters say which of these it has. */
#include "calib/forward.h"
#include "calib/held.h"
#include "calib/ops.h"

#include <string.h>

lq_status lq_check_place(lq_ctx *ctx, const lq_model *m, const int32_t *ids, uint32_t n, uint32_t pos) {
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= m->par.vocab)
            return lq_fail(ctx, LQ_ERR_FORMAT, "token id %d, the vocabulary has %u", ids[i], m->par.vocab);
    if (!lq_arch_tensor(m->arch, LQ_R_POS_EMBED, LQ_PART_WEIGHT) || (uint64_t)pos + n <= m->par.max_ctx) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u tokens at position %u: the model has learned positions for %u", n, pos, m->par.max_ctx);
}

static bool has(const lq_run *r, lq_role role) {
    const lq_arch_name *t = lq_arch_tensor(r->arch, role, LQ_PART_WEIGHT);
    return t && lq_params_has(r->par, t->only_if);
}

uint32_t lq_run_mid(const lq_run *r) {
    uint32_t width = lq_params_dim(r->par, LQ_DIM_EMBED);
    return !has(r, LQ_R_PROJ_IN) && !has(r, LQ_R_POS_EMBED) ? 0 : width > r->par->hidden ? width : r->par->hidden;
}

static void outer(lq_run *r) {
    r->l = &r->m->outer;
    r->layer = -1;
}

void lq_run_embed(lq_run *r, uint32_t first, uint32_t n) {
    const lq_ops *o = r->ops;
    const lq_params *p = r->par;
    bool projects = has(r, LQ_R_PROJ_IN);
    float *x = r->stream + (size_t)first * p->hidden, *e = projects ? r->mid : x;
    outer(r);
    o->embed(r, LQ_R_EMBED, r->ids + first, n, e);
    if (p->embed_scale > 0) o->scale(r, e, p->embed_scale, lq_params_dim(p, LQ_DIM_EMBED), n);
    if (projects) o->linear(r, LQ_R_PROJ_IN, e, n, x);
    if (has(r, LQ_R_POS_EMBED)) {
        o->embed(r, LQ_R_POS_EMBED, r->places + first, n, r->mid);
        o->add(r, x, r->mid, 0, p->hidden, n);
    }
    if (has(r, LQ_R_EMBED_NORM)) o->norm(r, LQ_R_EMBED_NORM, x, p->hidden, n, x);
}

/* A run without buffers, of the CPU, over n tokens. */
static lq_status borrow(lq_ctx *ctx, const lq_model *m, uint32_t n, bool fit, lq_run *r) {
    if (!m->outer.loaded) return lq_fail(ctx, LQ_ERR_INTERNAL, "the embedding and the head are not loaded");
    lq_run_bare(r, m);
    r->chunk = n;
    size_t mid = (size_t)n * lq_run_mid(r);
    lq_status st = fit ? lq_run_fit(ctx, r, &m->outer) : LQ_OK;
    if (!st && mid && !(r->mid = r->ops->alloc(r, mid))) st = lq_oom(ctx, mid * 4);
    return st;
}

lq_status lq_embed(lq_ctx *ctx, const lq_model *m, const int32_t *ids, uint32_t n, uint32_t pos, float *out) {
    lq_run r = {0};
    lq_status st = LQ_OK;
    LQ_TRY(lq_check_place(ctx, m, ids, n, pos));
    LQ_GO(borrow(ctx, m, n, m->outer.lin[LQ_R_EMBED].packed || m->outer.lin[LQ_R_PROJ_IN].rows, &r));
    LQ_GO(r.ops->begin(ctx, &r, ids, &(lq_span){.n = n, .pos = pos}, 1, n, out));
    lq_run_embed(&r, 0, n);
    LQ_GO(r.ops->check(ctx, &r));
done:
    lq_run_free(&r);
    return st;
}

void lq_run_final_norm(lq_run *r, const float *x, uint32_t n, float *y) {
    outer(r);
    if (!r->par->no_final_norm) r->ops->norm(r, LQ_R_FINAL_NORM, x, r->par->hidden, n, y);
}

void lq_final_norm(const lq_model *m, const float *x, uint32_t n, float *y) {
    lq_run r;
    lq_run_bare(&r, m);
    if (m->par.no_final_norm && y != x) memcpy(y, x, (size_t)n * m->par.hidden * sizeof *y);
    lq_run_final_norm(&r, x, n, y);
}

uint32_t lq_head_width(const lq_model *m) { return lq_params_dim(&m->par, LQ_DIM_EMBED); }

lq_status lq_head_input(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, float *y) {
    const lq_linear *out = &m->outer.lin[LQ_R_PROJ_OUT];
    if (out->rows) return lq_linear_apply(ctx, m->k, out, hidden, n, y);
    memcpy(y, hidden, (size_t)n * m->par.hidden * sizeof *y);
    return LQ_OK;
}

void lq_run_head(lq_run *r, const float *x, uint32_t n, float *logits) {
    const lq_params *p = r->par;
    outer(r);
    if (has(r, LQ_R_PROJ_OUT)) r->ops->linear(r, LQ_R_PROJ_OUT, x, n, r->mid);
    r->ops->linear(r, LQ_R_HEAD, has(r, LQ_R_PROJ_OUT) ? r->mid : x, n, logits);
    if (p->logit_div > 0 || p->logit_cap > 0) r->ops->cap(r, logits, p->logit_div, p->logit_cap, p->vocab, n);
}

lq_status lq_logits(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, float *logits) {
    const lq_layer *o = &m->outer;
    lq_run r = {0};
    lq_status st = LQ_OK;
    if (!n) return LQ_OK;
    if (m->held) return lq_held_logits(ctx, m, hidden, n, logits);
    LQ_GO(borrow(ctx, m, n, n > 1 || o->lin[LQ_R_PROJ_OUT].q || o->lin[m->par.tied ? LQ_R_EMBED : LQ_R_HEAD].q, &r));
    lq_run_head(&r, hidden, n, logits);
    LQ_GO(r.ops->check(ctx, &r));
done:
    lq_run_free(&r);
    return st;
}
