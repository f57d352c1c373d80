/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Wanda (Sun, Liu, Bair, Kolter 2023, arXiv 2306.11695): the weights of least |w_rc| |x_c| become 0, per row or n:m group; the rest stays, or is
 * rounded to a grid whose scales are fitted to it (--scheme int4). As floats the result is an ordinary model with zeros. */
#include "quant/prune.h"
#include "quant/proxy.h"

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    (void)rows;
    return lq_prune_accept(ctx, opts, cols, s);
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out, lq_outcome *o) {
    bool measured = stats && (stats->needs & LQ_NEED_GRAM) && stats->n;
    lq_status st = LQ_OK;
    *o = (lq_outcome){.method = "wanda", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    LQ_TRY(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    LQ_GO(lq_prune_wanda(ctx, opts, w, measured ? stats : NULL, out));
    LQ_GO(lq_weight_error(ctx, w->w, out, &o->err_w));
    if (measured) LQ_GO(lq_proxy_error(ctx, w->w, out, &stats->gram, &o->err_h));
    else snprintf(o->fallback, sizeof o->fallback, "calibration gave it no tokens: pruned by magnitude");
    o->err_h_rtn = o->err_h;
    LQ_GO(lq_prune_report(ctx, opts, out, o));
done:
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

const lq_method lq_method_wanda = {
    .name = "wanda",
    .what = "prune by weight times activation, alone or with a grid that holds 0",
    .paper = "Sun et al. 2023, arXiv 2306.11695",
    .type = "float",
    .needs = LQ_NEED_GRAM,
    .opts = lq_prune_options,
    .opts_size = sizeof(lq_prune),
    .accept = accept,
    .quantize = quantize,
};
