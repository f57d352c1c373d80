/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* RTN: every weight to the nearest point of its group's grid. Data-free; the field's min-max range by default, a search for
 * the scales on request, weighted by the activations' second moments when calibration gathered them. algorithms.md 1. */
#include "quant/grid.h"
#include "quant/method.h"
#include "quant/proxy.h"

typedef struct rtn_opts { int search, signed_scales; } rtn_opts;

static const lq_opt options[] = {
    {"search", NULL, LQ_OPT_SET, offsetof(rtn_opts, search), NULL, NULL, NULL, 0, 0, 1, "search the scales that lose least instead of min-max"},
    {"signed-scales", NULL, LQ_OPT_SET, offsetof(rtn_opts, signed_scales), NULL, NULL, NULL, 0, 0, 1, "let --search use negative scales (symmetric grids)"},
    {0}};

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    (void)opts, (void)rows;
    return lq_grid_accept(ctx, s, cols);
}

static lq_status second_moments(lq_ctx *ctx, const lq_stats *stats, float **out) {
    *out = lq_calloc(stats->cols, sizeof **out);
    if (!*out) return lq_oom(ctx, stats->cols * sizeof **out);
    double mean = 0;
    for (uint32_t c = 0; c < stats->cols; c++) mean += lq_gram_at(&stats->gram, c, c) / stats->cols;
    for (uint32_t c = 0; c < stats->cols; c++) /* the floor keeps columns the sample hardly touched */
        (*out)[c] = mean > 0 ? (float)(lq_gram_at(&stats->gram, c, c) / mean + 0.01) : 1;
    return LQ_OK;
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out,
                          lq_outcome *o) {
    const rtn_opts *opt = opts;
    bool measured = stats && (stats->needs & LQ_NEED_GRAM) && stats->n;
    lq_fit how = !opt->search ? LQ_FIT_MINMAX : opt->signed_scales ? LQ_FIT_SEARCH_SIGNED : LQ_FIT_SEARCH;
    float *h = NULL;
    lq_status st = LQ_OK;
    *o = (lq_outcome){.method = "rtn", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    LQ_TRY(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    if (measured && opt->search) LQ_GO(second_moments(ctx, stats, &h));
    LQ_GO(lq_grid_fit(ctx, out, w->w, h, how));
    lq_grid_round(out, w->w);
    LQ_GO(lq_weight_error(ctx, w->w, out, &o->err_w));
    if (measured) LQ_GO(lq_proxy_error(ctx, w->w, out, &stats->gram, &o->err_h));
    o->err_h_rtn = o->err_h;
done:
    lq_free(h);
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

static bool searches(const void *opts) { return ((const rtn_opts *)opts)->search; }

const lq_method lq_method_rtn = {
    .name = "rtn",
    .what = "round to nearest: no calibration data",
    .paper = "folklore; grids as in Frantar et al. 2022, arXiv 2210.17323",
    .opts = options,
    .opts_size = sizeof(rtn_opts),
    .searches = searches,
    .accept = accept,
    .quantize = quantize,
};
