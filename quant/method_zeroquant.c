/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ZeroQuant (Yao et al. 2022, arXiv 2206.01861): groups of weights, activations per token. Its layer-by-layer distillation trains
 * each layer towards the unquantized one's output on the quantized layers' input; for the linears that objective is
 * min_Q |W x - Q x^|^2, done here in closed form: the pipeline's target correction (quant/target.h), then GPTQ's rounding with the
 * Gram matrix of x^. --no-lkd: nearest rounding, data-free. --lorc adds ZeroQuant-V2's low-rank compensation. */
#include "quant/grid.h"
#include "quant/lorc.h"
#include "quant/method.h"
#include "quant/proxy.h"

extern const lq_method lq_method_rtn, lq_method_gptq;

enum { LORC_GRAM, LORC_PLAIN };

typedef struct zeroquant_opts {
    int no_lkd, no_correction, lorc_error;
    int64_t lorc;
} zeroquant_opts;

static const lq_opt options[] = {
    {"no-lkd", NULL, LQ_OPT_SET, offsetof(zeroquant_opts, no_lkd), NULL, NULL, NULL, 0, 0, 1, "no distillation: nearest rounding, data-free"},
    {"no-correction", NULL, LQ_OPT_SET, offsetof(zeroquant_opts, no_correction), NULL, NULL, NULL, 0, 0, 1, "aim at the weights, not at the unquantized model's output"},
    {"lorc", NULL, LQ_OPT_INT, offsetof(zeroquant_opts, lorc), "RANK", "0", NULL, 0, 256, 0, "low-rank compensation of what rounding lost, in F16"},
    {"lorc-error", NULL, LQ_OPT_CHOICE, offsetof(zeroquant_opts, lorc_error), NULL, "output", "output|weight", 0, 0, 0,
     "the error --lorc reduces: of the output (Gram matrix) or of the weights"},
    {0}};

static unsigned needs_of(const void *opts) {
    const zeroquant_opts *o = opts;
    if (o->no_lkd) return o->lorc && o->lorc_error == LORC_GRAM ? LQ_NEED_GRAM : 0;
    return LQ_NEED_GRAM | (o->no_correction ? 0 : LQ_NEED_CROSS);
}

static void refine(const void *opts, lq_scheme *s) {
    const zeroquant_opts *o = opts;
    if (!o->lorc) return;
    s->extra |= LQ_X_LOWRANK;
    s->rank = (uint16_t)o->lorc;
}

static lq_scheme bare(const lq_scheme *s) {
    lq_scheme b = *s;
    b.extra &= ~(uint32_t)LQ_X_LOWRANK;
    return b;
}

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    const zeroquant_opts *opt = opts;
    lq_scheme b = bare(s);
    return (opt->no_lkd ? &lq_method_rtn : &lq_method_gptq)->accept(ctx, NULL, rows, cols, &b);
}

/* The codes, by another method with its own defaults. */
static lq_status codes(lq_ctx *ctx, const lq_method *m, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out, lq_outcome *o) {
    void *opts = lq_calloc(1, m->opts_size + 1);
    if (!opts) return lq_oom(ctx, m->opts_size);
    lq_optset sets[] = {{m->opts, opts, NULL}, {0}};
    lq_status st = lq_opts_defaults(ctx, sets);
    if (!st) st = m->quantize(ctx, opts, w, s, stats, out, o);
    lq_opts_free(sets);
    lq_free(opts);
    return st;
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out, lq_outcome *o) {
    const zeroquant_opts *opt = opts;
    lq_status st = LQ_OK;
    bool gram = stats && stats->needs & LQ_NEED_GRAM && stats->n;
    LQ_TRY(codes(ctx, opt->no_lkd ? &lq_method_rtn : &lq_method_gptq, w, s, stats, out, o));
    o->method = "zeroquant";
    if (!(s->extra & LQ_X_LOWRANK)) return LQ_OK;
    LQ_GO(lq_lorc_fit(ctx, w, gram && opt->lorc_error == LORC_GRAM ? &stats->gram : NULL, out));
    LQ_GO(lq_weight_error(ctx, w->w, out, &o->err_w));
    if (gram) LQ_GO(lq_proxy_error(ctx, w->w, out, &stats->gram, &o->err_h));
done:
    if (st) lq_qtensor_free(out);
    return st;
}

const lq_method lq_method_zeroquant = {
    .name = "zeroquant",
    .format = "compressed-tensors",
    .what = "groups of weights, activations per token, distillation in closed form",
    .paper = "Yao et al. 2022, arXiv 2206.01861; LoRC: arXiv 2303.08302",
    .type = "W*A8",
    .needs_of = needs_of,
    .refine = refine,
    .opts = options,
    .opts_size = sizeof(zeroquant_opts),
    .accept = accept,
    .quantize = quantize,
};
