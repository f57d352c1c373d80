/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What stands before and after the blocks: x = norm(P_in s E[id] + pos[offset + position]) and logits = cap((H P_out norm(x) + b) / c);
 * the model's tables and parameters say which of these it has. */
#include "calib/forward.h"
#include "calib/run.h"

#include <math.h>
#include <string.h>

static lq_status check_place(lq_ctx *ctx, const lq_model *m, const int32_t *ids, uint32_t n, uint32_t pos) {
    const lq_linear *learned = &m->outer.lin[LQ_R_POS_EMBED];
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= m->par.vocab)
            return lq_fail(ctx, LQ_ERR_FORMAT, "token id %d, the vocabulary has %u", ids[i], m->par.vocab);
    if (!learned->rows || (uint64_t)pos + n + m->par.pos_offset <= learned->rows) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u tokens at position %u: the model has learned positions for %u", n, pos, m->par.max_ctx);
}

/* out[n][hidden] += the learned positions */
static lq_status add_positions(lq_ctx *ctx, const lq_model *m, uint32_t n, uint32_t pos, float *out) {
    const lq_linear *learned = &m->outer.lin[LQ_R_POS_EMBED];
    if (!learned->rows) return LQ_OK;
    float *row = LQ_NEWN(float, learned->cols);
    if (!row) return lq_oom(ctx, learned->cols * sizeof *row);
    for (uint32_t i = 0; i < n; i++) {
        lq_linear_row(m->k, learned, m->par.pos_offset + pos + i, NULL, row);
        m->k->add(out + (size_t)i * learned->cols, row, learned->cols);
    }
    lq_free(row);
    return LQ_OK;
}

lq_status lq_embed(lq_ctx *ctx, const lq_model *m, const int32_t *ids, uint32_t n, uint32_t pos, float *out) {
    const lq_layer *o = &m->outer;
    const lq_linear *e = &o->lin[LQ_R_EMBED], *in = &o->lin[LQ_R_PROJ_IN];
    LQ_TRY(check_place(ctx, m, ids, n, pos));
    float *x = in->rows ? LQ_NEWN(float, (size_t)n * e->cols) : out, *mine = e->packed ? LQ_NEWN(float, (size_t)LQ_TILE * e->cols) : NULL;
    if (!x || (e->packed && !mine)) {
        if (x != out) lq_free(x);
        lq_free(mine);
        return lq_oom(ctx, (size_t)n * e->cols * sizeof *x);
    }
    for (uint32_t i = 0; i < n; i++) lq_linear_row(m->k, e, (uint32_t)ids[i], mine, x + (size_t)i * e->cols);
    lq_free(mine);
    for (size_t i = 0; m->par.embed_scale > 0 && i < (size_t)n * e->cols; i++) x[i] *= m->par.embed_scale;
    lq_status st = in->rows ? lq_linear_apply(ctx, m->k, in, x, n, out) : LQ_OK;
    if (x != out) lq_free(x);
    if (!st) st = add_positions(ctx, m, n, pos, out);
    if (!st && o->norm[LQ_R_EMBED_NORM]) lq_run_norm(m->k, &m->par, o->norm[LQ_R_EMBED_NORM], o->shift[LQ_R_EMBED_NORM], out, m->par.hidden, n, out);
    return st;
}

void lq_final_norm(const lq_model *m, const float *x, uint32_t n, float *y) {
    const lq_layer *o = &m->outer;
    if (!m->par.no_final_norm) lq_run_norm(m->k, &m->par, o->norm[LQ_R_FINAL_NORM], o->shift[LQ_R_FINAL_NORM], x, m->par.hidden, n, y);
    else if (y != x) memcpy(y, x, (size_t)n * m->par.hidden * sizeof *y);
}

static lq_linear head(const lq_model *m) { /* a tied one may still have its own bias */
    lq_linear h = m->outer.lin[m->par.tied ? LQ_R_EMBED : LQ_R_HEAD];
    h.bias = m->outer.lin[LQ_R_HEAD].bias;
    return h;
}

uint32_t lq_head_width(const lq_model *m) { return lq_params_dim(&m->par, LQ_DIM_EMBED); }

lq_status lq_head_input(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, float *y) {
    const lq_linear *out = &m->outer.lin[LQ_R_PROJ_OUT];
    if (out->rows) return lq_linear_apply(ctx, m->k, out, hidden, n, y);
    memcpy(y, hidden, (size_t)n * m->par.hidden * sizeof *y);
    return LQ_OK;
}

typedef struct finish { float *v, div, cap; uint32_t cols; } finish;
static void finish_row(void *arg, size_t i) {
    const finish *f = arg;
    float *v = f->v + i * f->cols;
    for (uint32_t c = 0; f->div > 0 && c < f->cols; c++) v[c] /= f->div;
    for (uint32_t c = 0; f->cap > 0 && c < f->cols; c++) v[c] = f->cap * tanhf(v[c] / f->cap);
}

static lq_status multiply(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, float *logits) {
    const lq_linear h = head(m);
    if (!m->outer.lin[LQ_R_PROJ_OUT].rows) return lq_linear_apply(ctx, m->k, &h, hidden, n, logits);
    float *x = LQ_NEWN(float, (size_t)n * lq_head_width(m));
    if (!x) return lq_oom(ctx, (size_t)n * lq_head_width(m) * sizeof *x);
    lq_status st = lq_head_input(ctx, m, hidden, n, x);
    if (!st) st = lq_linear_apply(ctx, m->k, &h, x, n, logits);
    lq_free(x);
    return st;
}

lq_status lq_logits(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, float *logits) {
    const lq_params *p = &m->par;
    LQ_TRY(multiply(ctx, m, hidden, n, logits));
    if (p->logit_div > 0 || p->logit_cap > 0)
        lq_spread(n, (uint64_t)n * p->vocab, finish_row, &(finish){logits, p->logit_div, p->logit_cap, p->vocab});
    return LQ_OK;
}
