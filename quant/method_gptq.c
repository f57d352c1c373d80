/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GPTQ (Frantar, Ashkboos, Hoefler, Alistarh 2022, arXiv 2210.17323): minimise tr((W-Q) H (W-Q)^T) column by column with
 * feedback. Deviations, all from algorithms.md 5 and 26: one reversed Cholesky of the equilibrated H instead of an inverse;
 * scales fixed before the loop by a search weighted with the diagonal of H (static groups), so that columns may be processed
 * by falling diagonal and groups stay contiguous; columns without data are rounded, not zeroed; rows where plain rounding
 * with the same scales does better keep it; a Hessian that cannot be factored leads to RTN, and is reported. */
#include "quant/gptq_solve.h"
#include "quant/grid.h"
#include "quant/method.h"
#include "quant/proxy.h"

#include <stdio.h>

enum { SCALES_SIGNED, SCALES_POSITIVE, SCALES_MINMAX };

typedef struct gptq_opts {
    double damp;
    int64_t block;
    int in_order, scales, static_groups;
} gptq_opts;

static const lq_opt options[] = {
    {"damp-percent", "percdamp,dampening-frac", LQ_OPT_REAL, offsetof(gptq_opts, damp), "X", "0.01", NULL, 0, 1, 0,
     "added to the Hessian's diagonal, a part of its mean; raised if Cholesky fails"},
    {"desc-act", "act-order", LQ_OPT_SET, offsetof(gptq_opts, in_order), NULL, NULL, NULL, 0, 0, 0, "process columns by falling activation (default)"},
    {"no-desc-act", "no-act-order", LQ_OPT_SET, offsetof(gptq_opts, in_order), NULL, NULL, NULL, 0, 0, 1, "process columns in their order"},
    {"static-groups", NULL, LQ_OPT_SET, offsetof(gptq_opts, static_groups), NULL, NULL, NULL, 0, 0, 1,
     "scales before the loop: always so, groups stay contiguous and no g_idx is needed"},
    {"scales", NULL, LQ_OPT_CHOICE, offsetof(gptq_opts, scales), NULL, "signed", "signed|positive|minmax", 0, 0, 0,
     "group scales: searched with either sign, searched, or min-max"},
    {"block-size", NULL, LQ_OPT_INT, offsetof(gptq_opts, block), "N", "128", NULL, 1, 256, 0, "columns per lazy update; changes speed only"},
    {0}};

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    (void)opts, (void)rows;
    if (s->grid.kind == LQ_GRID_F32) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "f32 holds every weight: there is nothing to round");
    if (s->extra & ~(uint32_t)LQ_X_LUT_PER_ROW) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "gptq keeps nothing beside the codes");
    return lq_grid_accept(ctx, s, cols);
}

static lq_fit fit_of(const gptq_opts *o) {
    return o->scales == SCALES_MINMAX ? LQ_FIT_MINMAX : o->scales == SCALES_POSITIVE ? LQ_FIT_SEARCH : LQ_FIT_SEARCH_SIGNED;
}

static lq_status fall_back(lq_ctx *ctx, const char *why, const lq_weights *w, const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    o->method = "rtn";
    o->damp = -1;
    snprintf(o->fallback, sizeof o->fallback, "%s", why);
    lq_log(ctx, LQ_LOG_WARN, "%s: gptq not possible, rounded to nearest: %s", w->name, why);
    lq_grid_round(q, w->w);
    if (!stats->n) return LQ_OK;
    LQ_TRY(lq_proxy_error(ctx, w->w, q, &stats->gram, &o->err_h));
    o->err_h_rtn = o->err_h;
    return LQ_OK;
}

static lq_status solve(lq_ctx *ctx, const gptq_opts *opt, const lq_weights *w, const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    lq_gptq_factor f;
    lq_gptq_sums sums;
    lq_status st = LQ_OK;
    LQ_TRY(lq_gptq_factor_init(ctx, &f, &stats->gram, opt->damp, !opt->in_order));
    o->dead_cols = f.dead;
    LQ_GO(lq_grid_fit(ctx, q, w->w, f.weight, fit_of(opt)));
    if (f.failed[0]) {
        LQ_GO(fall_back(ctx, f.failed, w, stats, q, o));
        goto done;
    }
    o->damp = f.damp;
    if (f.own || f.damp > opt->damp)
        lq_log(ctx, LQ_LOG_INFO, "%s: damping raised from %g to %g%s", w->name, opt->damp, f.damp, f.own ? " of each column's own diagonal" : "");
    LQ_GO(lq_gptq_solve(ctx, &f, w->w, (uint32_t)opt->block, true, q, &sums));
    o->guarded_rows = sums.guarded;
    o->err_h = sums.w > 0 ? sums.gptq / sums.w : 0;
    o->err_h_rtn = sums.w > 0 ? sums.rtn / sums.w : 0;
done:
    lq_gptq_factor_free(&f);
    return st;
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out,
                          lq_outcome *o) {
    lq_status st = LQ_OK;
    *o = (lq_outcome){.method = "gptq", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    if (!stats || !(stats->needs & LQ_NEED_GRAM) || stats->cols != w->cols)
        return lq_fail(ctx, LQ_ERR_INTERNAL, "%s: gptq needs the Gram matrix of its %u inputs", w->name, w->cols);
    LQ_TRY(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    lq_grid_fuse(out, w->fuse_absmax);
    if (stats->n) {
        LQ_GO(solve(ctx, opts, w, stats, out, o));
    } else {
        LQ_GO(lq_grid_fit(ctx, out, w->w, NULL, fit_of(opts)));
        LQ_GO(fall_back(ctx, "calibration gave it no tokens", w, stats, out, o));
    }
    LQ_GO(lq_weight_error(ctx, w->w, out, &o->err_w));
done:
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

static bool searches(const void *opts) { return fit_of(opts) != LQ_FIT_MINMAX; }

const lq_method lq_method_gptq = {
    .name = "gptq",
    .what = "rounding with second-order feedback, act-order, searched scales",
    .paper = "Frantar et al. 2022, arXiv 2210.17323",
    .needs = LQ_NEED_GRAM,
    .opts = options,
    .opts_size = sizeof(gptq_opts),
    .searches = searches,
    .accept = accept,
    .quantize = quantize,
};
