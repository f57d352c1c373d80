/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* SparseGPT (Frantar, Alistarh 2023, arXiv 2301.00774): prune.c's loop, alone or together with rounding; rows that Wanda prunes better keep
 * Wanda's, so the proxy loss is never above its. */
#include "quant/prune.h"
#include "quant/proxy.h"

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    (void)rows;
    return lq_prune_accept(ctx, opts, cols, s);
}

static lq_status solve(lq_ctx *ctx, const lq_prune *p, const lq_weights *w, const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    lq_gptq_factor f;
    lq_gptq_sums sums;
    lq_status st = LQ_OK;
    LQ_TRY(lq_gptq_factor_init(ctx, &f, &stats->gram, 0.01, false));
    o->dead_cols = f.dead;
    if (f.failed[0]) {
        snprintf(o->fallback, sizeof o->fallback, "%s: pruned as Wanda does", f.failed);
        LQ_GO(lq_proxy_error(ctx, w->w, q, &stats->gram, &o->err_h));
        o->err_h_rtn = o->err_h;
        goto done;
    }
    LQ_GO(lq_prune_sparsegpt(ctx, p, &f, w->w, q, &sums));
    o->damp = f.damp;
    o->guarded_rows = sums.guarded;
    o->err_h = sums.w > 0 ? sums.gptq / sums.w : 0;
    o->err_h_rtn = sums.w > 0 ? sums.rtn / sums.w : 0;
done:
    lq_gptq_factor_free(&f);
    return st;
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out, lq_outcome *o) {
    bool measured = stats && (stats->needs & LQ_NEED_GRAM) && stats->n;
    lq_status st = LQ_OK;
    *o = (lq_outcome){.method = "sparsegpt", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    LQ_TRY(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    LQ_GO(lq_prune_wanda(ctx, opts, w, measured ? stats : NULL, out));
    if (measured) LQ_GO(solve(ctx, opts, w, stats, out, o));
    else snprintf(o->fallback, sizeof o->fallback, "calibration gave it no tokens: pruned by magnitude");
    LQ_GO(lq_weight_error(ctx, w->w, out, &o->err_w));
    LQ_GO(lq_prune_report(ctx, opts, out, o));
done:
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

const lq_method lq_method_sparsegpt = {
    .name = "sparsegpt",
    .what = "prune with second-order feedback, alone or with a grid that holds 0",
    .paper = "Frantar and Alistarh 2023, arXiv 2301.00774",
    .type = "float",
    .needs = LQ_NEED_GRAM,
    .opts = lq_prune_options,
    .opts_size = sizeof(lq_prune),
    .accept = accept,
    .quantize = quantize,
};
