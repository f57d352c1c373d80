/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Ternary weights s {-1, 0, 1}.
 *   absmean   BitNet b1.58 (Ma et al. 2024, arXiv 2402.17764): s = max(mean |W|, 1e-5) of the whole matrix, q = clip(round(W / s), -1, 1):
 *             what a model trained so computes with; a matrix that is s {-1, 0, 1} already is kept bit for bit (with 8-bit activations,
 *             as BitNet's runtimes want it: to the last bit of a float's reciprocal)
 *   optimal   the support and scale of least squared error per group, exactly (fewbit.h)
 *   gptq      the same weighted by the Hessian, then codes with feedback (gptq_solve.h) and scales by turns (rescale.h)
 * A model of 6M parameters, groups of 128, 32 x 256 tokens of its own domain, KLD: absmean 0.87, optimal 0.27, gptq with scales fixed before
 * feedback 0.32, refitted 0.18. The default is what models trained for it need.
 * On any other model it is refused without --force, with the price. */
#include "core/num.h"
#include "quant/fewbit.h"
#include "quant/gptq_solve.h"
#include "quant/grid.h"

#include <math.h>

enum { FIT_ABSMEAN, FIT_OPTIMAL, FIT_GPTQ };
typedef struct ternary_opts { int fit, activations, force; } ternary_opts;

static const lq_opt options[] = {
    {"fit", NULL, LQ_OPT_CHOICE, offsetof(ternary_opts, fit), NULL, "absmean", "absmean|optimal|gptq", 0, 0, 0,
     "BitNet's rule; least error; feedback (calibrated): best for ordinary models"},
    {"activations", NULL, LQ_OPT_CHOICE, offsetof(ternary_opts, activations), NULL, "none", "none|int8", 0, 0, 0, "int8: per token, as BitNet b1.58 was trained"},
    {"force", NULL, LQ_OPT_SET, offsetof(ternary_opts, force), NULL, NULL, NULL, 0, 0, 1, "also a model that was not trained for it"},
    {0}};

static unsigned needs_of(const void *opts) { return ((const ternary_opts *)opts)->fit == FIT_GPTQ ? LQ_NEED_GRAM : 0; }

static void refine(const void *opts, lq_scheme *s) {
    const ternary_opts *o = opts;
    if (o->activations) s->act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .scope = LQ_ACT_BITNET};
    if (o->fit == FIT_ABSMEAN && s->grid.kind == LQ_GRID_INT && s->grid.bits == 2) /* BitNet's runtimes store and use 1 / s */
        s->scale = (lq_plane_desc){.dtype = LQ_F32, .sig = s->act.kind ? LQ_SIG_INVERSE : 0};
}

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    char name[64];
    (void)opts, (void)rows;
    if (s->grid.kind == LQ_GRID_INT && s->grid.bits == 2 && s->grid.bias == 1 && s->zero_kind == LQ_ZERO_NONE && !s->extra && lq_fewbit_tiles(s, cols)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s on %u columns: ternary makes type ternary, with groups that divide the columns, rows or one scale", lq_scheme_name(s, name, sizeof name), cols);
}

/* s when every weight is -s, 0 or s, else 0. */
static float ternary_already(const float *w, size_t n) {
    float s = 0;
    for (size_t i = 0; i < n; i++) {
        float a = fabsf(w[i]);
        if (a == 0) continue;
        if (s == 0) s = a;
        if (a != s) return 0;
    }
    return s;
}

static double absmean(const float *w, const float *h, size_t n, uint32_t *order) {
    (void)h, (void)order;
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += fabs((double)w[i]);
    return fmax(sum / (double)n, 1e-5);
}

static lq_status fit(lq_ctx *ctx, const ternary_opts *opt, const lq_weights *w, const lq_gptq_factor *f, lq_qtensor *q) {
    const lq_plane_desc *d = &q->sch.scale;
    float same = ternary_already(w->w, (size_t)w->rows * w->cols);
    if (same > 0 && (lq_plane_round(d, same) == same || d->sig == LQ_SIG_INVERSE)) { /* the last bit of a reciprocal is all it may lose */
        for (size_t i = 0, n = lq_plane_count(d, w->rows, w->cols); i < n; i++) lq_plane_set(d, &q->scale, i, same);
        return LQ_OK;
    }
    return lq_fewbit_fit(ctx, q, w->w, f ? f->weight : NULL, opt->fit == FIT_ABSMEAN ? absmean : lq_ternary_scale);
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out, lq_outcome *o) {
    const ternary_opts *opt = opts;
    lq_gptq_factor f = {0};
    bool feedback = opt->fit == FIT_GPTQ && stats && stats->n;
    lq_status st = LQ_OK;
    *o = (lq_outcome){.method = "ternary", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    LQ_TRY(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    if (feedback) LQ_GO(lq_gptq_factor_init(ctx, &f, &stats->gram, LQ_FEWBIT_DAMP, true));
    LQ_GO(fit(ctx, opt, w, feedback ? &f : NULL, out));
    LQ_GO(lq_fewbit_codes(ctx, w, feedback ? &f : NULL, stats, out, o));
    if (opt->fit == FIT_GPTQ && (!feedback || f.failed[0])) snprintf(o->fallback, sizeof o->fallback, "%s", feedback ? f.failed : "calibration gave it no tokens");
    st = lq_fewbit_gate(ctx, "ternary", opt->force, o);
done:
    lq_gptq_factor_free(&f);
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

const lq_method lq_method_ternary = {
    .name = "ternary",
    .format = "bitnet",
    .what = "-1, 0, 1 times a scale: for models trained so (BitNet b1.58); others with --force",
    .paper = "Ma et al. 2024, arXiv 2402.17764; Li et al. 2016, arXiv 1605.04711",
    .type = "ternary",
    .needs_of = needs_of,
    .tries_first = true,
    .refine = refine,
    .opts = options,
    .opts_size = sizeof(ternary_opts),
    .accept = accept,
    .quantize = quantize,
};
