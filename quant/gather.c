/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/gather.h"

lq_status lq_gather_embed(lq_ctx *ctx, lq_model *m, const lq_rows *rows, uint64_t budget, const char *work_dir, lq_cache **out) {
    size_t T = rows->seqlen, d = m->par.hidden;
    float *x = NULL;
    lq_status st;
    LQ_TRY(lq_cache_new(ctx, rows->n, budget, work_dir, out));
    LQ_GO(lq_model_load(ctx, m, -1, LQ_LOAD_STORED));
    x = lq_calloc(T * d, sizeof *x);
    if (!x) LQ_GO(lq_oom(ctx, T * d * sizeof *x));
    for (size_t i = 0; i < rows->n; i++) {
        LQ_GO(lq_embed(ctx, m, rows->ids + i * T, rows->len[i], 0, x));
        LQ_GO(lq_cache_put(ctx, *out, i, x, rows->len[i] * d));
    }
done:
    lq_free(x);
    lq_model_unload(m, -1);
    return st;
}

lq_status lq_gather_head(lq_ctx *ctx, lq_model *m, const lq_rows *rows, lq_cache *resid, lq_stats *stats) {
    size_t T = rows->seqlen, d = m->par.hidden;
    float *x = lq_calloc(T * d, sizeof *x), *in = lq_calloc(T * stats->cols, sizeof *in);
    lq_status st = x && in ? LQ_OK : lq_oom(ctx, T * d * sizeof *x);
    for (size_t i = 0; i < rows->n && !st; i++) {
        uint32_t len = rows->len[i];
        st = lq_cache_get(ctx, resid, i, x, len * d);
        if (!st) lq_final_norm(m, x, len, x);
        if (!st) st = lq_head_input(ctx, m, x, len, in);
        if (!st) st = lq_stats_add(ctx, stats, in, len);
    }
    lq_free(x);
    lq_free(in);
    return st;
}

static lq_status one_stage(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    const lq_gather *g = user;
    (void)block;
    return g->on_stage(g->user, stage, stats);
}

static lq_status one_block(lq_ctx *ctx, lq_model *m, const lq_gather *g, lq_cache *resid, int32_t b) {
    lq_stage_hook hook = {.needs = g->needs, .on_stage = one_stage, .user = (void *)g};
    LQ_TRY(lq_check_cancel(ctx));
    lq_status st = lq_model_load(ctx, m, b, LQ_LOAD_STORED);
    if (!st) st = lq_block_calibrate(ctx, m, b, resid, g->rows->len, &hook, g->cache_budget / 2, g->work_dir);
    lq_model_unload(m, b);
    return st;
}

static lq_status head(lq_ctx *ctx, lq_model *m, const lq_gather *g, lq_cache *resid) {
    if (!lq_catalog_find(&m->cat, (lq_slot){-1, LQ_R_HEAD, -1}, LQ_PART_WEIGHT)) return LQ_OK;
    lq_stats stats = {0};
    lq_stage stage = {.n = 1, .lin = {&m->outer.lin[LQ_R_HEAD]}, .cols = lq_head_width(m)};
    lq_status st = lq_model_load(ctx, m, -1, LQ_LOAD_STORED);
    if (!st) st = lq_stats_init(ctx, &stats, g->needs, stage.cols);
    if (!st) st = lq_gather_head(ctx, m, g->rows, resid, &stats);
    if (!st) st = g->on_stage(g->user, &stage, &stats);
    lq_stats_free(&stats);
    lq_model_unload(m, -1);
    return st;
}

lq_status lq_gather_run(lq_ctx *ctx, lq_model *m, const lq_gather *g) {
    lq_cache *resid = NULL;
    lq_progress bar = lq_progress_start(ctx, "block", m->par.n_layers);
    lq_status st = lq_gather_embed(ctx, m, g->rows, g->cache_budget / 2, g->work_dir, &resid);
    for (uint32_t b = 0; b < m->par.n_layers && !st; b++) {
        st = one_block(ctx, m, g, resid, (int32_t)b);
        if (!st) lq_progress_step(&bar, 1, "%u/%u", b + 1, m->par.n_layers);
    }
    if (!st) st = head(ctx, m, g, resid);
    lq_progress_end(&bar);
    lq_cache_free(&resid);
    return st;
}
