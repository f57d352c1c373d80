/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/importance.h"

#include "quant/gather.h"

#include <string.h>

const char *lq_importance_form(const char *out) {
    size_t n = strlen(out);
    if (n > 5 && !strcmp(out + n - 5, ".gguf")) return "model.gguf";
    return n > 4 && !strcmp(out + n - 4, ".dat") ? "model.dat" : NULL;
}

typedef struct collect { lq_ctx *ctx; const lq_model *m; lq_imatrix *out; } collect;

static lq_status put(collect *c, const lq_row *row, const lq_stats *s) {
    bool expert = lq_role_is_expert((lq_role)row->slot.role);
    uint32_t at = expert ? (uint32_t)row->slot.expert : 0, mats = expert ? c->m->par.n_experts : 1;
    if (!row->gguf_name) return LQ_OK;
    lq_importance *e = lq_imatrix_add(c->out, row->gguf_name, s->cols, mats);
    if (!e) return lq_oom(c->ctx, 4 * (size_t)s->cols * mats);
    uint64_t n = expert ? s->routed : s->n;
    for (uint32_t i = 0; i < s->cols; i++) e->mean[(size_t)at * s->cols + i] = n ? (float)(lq_stats_second(s, i) / (double)n) : 1;
    e->count[at] = (float)n;
    return LQ_OK;
}

static lq_status on_stage(void *user, const lq_stage *stage, const lq_stats *stats) {
    for (uint32_t i = 0; i < stage->n; i++)
        if (stage->lin[i]->row->slot.block >= 0) LQ_TRY(put(user, stage->lin[i]->row, stats));
    return LQ_OK;
}

lq_status lq_importance_gather(lq_ctx *ctx, lq_model *m, const lq_rows *rows, uint64_t cache_budget, const char *work_dir, lq_imatrix *out) {
    collect c = {ctx, m, out};
    lq_gather g = {.rows = rows, .needs = LQ_NEED_SQUARES, .work_dir = work_dir, .cache_budget = cache_budget, .on_stage = on_stage, .user = &c};
    lq_expert_opts was = m->expert_opts;
    m->expert_opts = (lq_expert_opts){.prior = 0, .flat = 1};
    lq_status st = lq_gather_run(ctx, m, &g);
    m->expert_opts = was;
    out->chunks = (uint32_t)rows->n;
    out->chunk_size = (uint32_t)rows->seqlen;
    return st;
}

lq_status lq_importance_stats(lq_ctx *ctx, const lq_imatrix *m, const lq_row *row, lq_stats *out, bool *have) {
    const lq_importance *e = lq_imatrix_find(m, row->gguf_name ? row->gguf_name : row->name);
    bool expert = lq_role_is_expert((lq_role)row->slot.role);
    uint32_t cols = lq_row_cols(row), at = expert ? (uint32_t)row->slot.expert : 0;
    *have = e != NULL;
    if (!e) return LQ_OK;
    size_t values = (size_t)e->cols * e->mats;
    if (values % cols || (size_t)(at + 1) * cols > values || (!expert && values != cols))
        return lq_fail(ctx, LQ_ERR_MISMATCH, "the importance of '%s' has %zu values, the matrix %u columns", e->name, values, cols);
    LQ_TRY(lq_stats_init(ctx, out, LQ_NEED_SQUARES, cols));
    out->n = 1;
    for (uint32_t i = 0; i < cols; i++) out->squares[i] = (double)e->mean[(size_t)at * cols + i];
    return LQ_OK;
}
