/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Statistics of a file in place of the model's run. They are those of the unquantized model: no linear sees the error of the ones
 * before it, and a transform sees what it would see on the first block of a run. A fold divides the input of its readers: their
 * statistics are divided with it. */
#include "quant/road.h"

#include "quant/statistics.h"

static const struct { unsigned need; const char *what, *lacks, *flag; } kinds[] = {
    {LQ_NEED_GRAM, "the Gram matrices", "diagonals only", "--hessians"},
    {LQ_NEED_SAMPLES, "sampled activations", "none", "--samples"},
};

/* Whose need it is: the first of the recipe that has it. */
static const char *who_needs(const road *r, unsigned need) {
    const lq_recipe *rec = &r->run->recipe;
    for (uint32_t i = 0; i < rec->n_xforms; i++)
        if (lq_xform_needs(rec->xform[i].x, rec->xform[i].opts) & need) return rec->xform[i].x->name;
    return rec->method->name;
}

/* A calibrated run with transforms gathers Gram matrices to measure by, needed or not. */
static unsigned needed(const road *r) {
    const lq_recipe *rec = &r->run->recipe;
    unsigned own = lq_method_needs(rec->method, rec->opts), needs = r->needs;
    if (rec->n_xforms && !(own & LQ_NEED_GRAM) && !r->run->opts.target_correction) needs &= ~(unsigned)LQ_NEED_GRAM;
    return needs | lq_recipe_xform_needs(rec);
}

lq_status lq_stored_open(road *r) {
    const char *path = r->run->opts.stats;
    unsigned needs = needed(r), missing;
    if (!path) return LQ_OK;
    if (r->run->opts.kv_scales) return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "--stats with --kv-scales: keys and values are not in the statistics");
    if (r->imatrix.n) {
        if (needs) return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "%s: %s needs more of the activations than the diagonals of an importance matrix", path, who_needs(r, needs));
        return LQ_OK;
    }
    LQ_TRY(lq_stats_open(r->ctx, path, &r->stats));
    if (needs & LQ_NEED_CROSS)
        return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "%s: target correction compares with the quantized model as it comes about, which no file knows: leave out --stats%s", path,
                       r->run->opts.target_correction ? " or --target-correction" : " or say --no-correction");
    missing = needs & (LQ_NEED_GRAM | LQ_NEED_SAMPLES) & ~r->stats.extra;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (missing & kinds[i].need)
            return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "%s: %s needs %s, this file has %s; `lquant calibrate%s%s IN -o STATS` makes one that has them", path,
                           who_needs(r, kinds[i].need), kinds[i].what, kinds[i].lacks, needs & LQ_NEED_GRAM ? " --hessians" : "", needs & LQ_NEED_SAMPLES ? " --samples" : "");
    r->stats_needs = needs;
    r->needs = 0;
    return LQ_OK;
}

static lq_status of_imatrix(road *r, const lq_row *row, const lq_stats **out) {
    bool have;
    lq_stats_free(&r->item);
    LQ_TRY(lq_importance_stats(r->ctx, &r->imatrix, row, &r->item, &have));
    *out = have ? &r->item : NULL;
    return LQ_OK;
}

/* Read once for all linears that share an input. */
lq_status lq_stored_stats(road *r, const lq_row *row, const lq_stats **out) {
    char name[256];
    if (r->imatrix.n) return of_imatrix(r, row, out);
    const lq_row *leader = r->stats.n ? lq_statistics_leader(&r->model->cat, row) : NULL;
    *out = leader ? &r->item : NULL;
    if (!leader || leader == r->item_of) return LQ_OK;
    r->item_of = NULL;
    lq_stats_free(&r->item);
    LQ_TRY(lq_stats_read(r->ctx, &r->stats, lq_row_module(leader, name, sizeof name), LQ_NEED_GRAM | (r->stats_needs & LQ_NEED_SAMPLES), &r->item));
    if (r->item.cols != lq_row_cols(row))
        return lq_fail(r->ctx, LQ_ERR_MISMATCH, "%s: statistics of %u columns, '%s' has %u", r->run->opts.stats, r->item.cols, row->name, lq_row_cols(row));
    const float *by = r->divided ? r->divided[leader - r->model->cat.rows] : NULL;
    if (by) lq_stats_divide(&r->item, by);
    r->item_of = leader;
    return LQ_OK;
}

static lq_status visit(road *r, uint32_t b, uint32_t index, int32_t expert, const lq_stage_hook *hook) {
    const lq_stats *stats;
    lq_stage stage;
    lq_stage_fill(r->model, (int32_t)b, index, expert, &stage);
    LQ_TRY(lq_check_cancel(r->ctx));
    LQ_TRY(lq_stored_stats(r, stage.lin[0]->row, &stats));
    return hook->on_stage(hook->user, (int32_t)b, &stage, stats);
}

lq_status lq_stored_block(road *r, uint32_t b, const lq_stage_hook *hook) {
    lq_stage stage[LQ_MAX_OPS];
    uint32_t n = lq_block_stages(r->model, (int32_t)b, stage, LQ_MAX_OPS);
    for (uint32_t s = 0; s < n; s++) {
        int32_t last = stage[s].expert < 0 ? 0 : (int32_t)r->model->layers[b].n_experts - 1;
        for (int32_t e = 0; e <= last; e++) LQ_TRY(visit(r, b, s, stage[s].expert < 0 ? -1 : e, hook));
    }
    return LQ_OK;
}

lq_status lq_stored_divide(road *r, const lq_stage *stage, const lq_site *site, const float *s) {
    const lq_catalog *cat = &r->model->cat;
    const lq_row *leader = lq_statistics_leader(cat, stage->lin[0]->row);
    if (!r->divided && !(r->divided = LQ_NEWN(float *, cat->n + 1))) return lq_oom(r->ctx, cat->n * sizeof *r->divided);
    float **by = &r->divided[leader - cat->rows];
    bool fresh = !*by;
    if (fresh && !(*by = LQ_NEWN(float, stage->cols))) return lq_oom(r->ctx, stage->cols * sizeof **by);
    for (uint32_t c = 0; c < stage->cols; c++) (*by)[c] = (fresh ? 1 : (*by)[c]) * s[lq_site_scale(&r->model->par, site, c)];
    if (leader == r->item_of) r->item_of = NULL;
    return LQ_OK;
}

void lq_stored_forget(road *r) {
    for (size_t i = 0; r->divided && i < r->model->cat.n; i++) lq_free(r->divided[i]);
    lq_free(r->divided);
    r->divided = NULL;
    r->item_of = NULL;
}
