/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* One bit per weight: s sign(w), s = mean |w| of the group (Rastegari et al. 2016, XNOR-Net, arXiv 1603.05279), weighted by the
 * activations where asked, or with GPTQ's feedback. --planes 2 adds the signs of what is left, a sign(w) + b sign(w - a sign(w)), as four values per
 * row (residual binarization: Li et al. 2017; BiLLM, Huang et al. 2024, arXiv 2402.04291), greedy then jointly least squares.
 * --activations binarizes inputs too, sign(x) mean |x| per token (BiPFT, Xing et al. 2023, arXiv 2312.08937). BiPFT trains its models
 * with it; this is rounding after training, and destroys ordinary models: --force.
 *
 * Feedback with the scales of the weights loses to no feedback, in domain and out of it: what is fed back is as large as the weights, so
 * the compensated weights outgrow their scales. Refitted by turns with the codes (quant/rescale.h) it wins: a model of 6M parameters,
 * groups of 128, 32 x 256 tokens of its own domain, KLD: mean 0.79, weighted 0.77, gptq with fixed scales 1.18, with refitted ones 0.53. */
#include "core/num.h"
#include "core/thread.h"
#include "quant/fewbit.h"
#include "quant/gptq_solve.h"
#include "quant/grid.h"

#include <math.h>

enum { FIT_MEAN, FIT_WEIGHTED, FIT_GPTQ };
typedef struct binary_opts { int64_t planes; int fit, activations, force; } binary_opts;

static const lq_opt options[] = {
    {"fit", NULL, LQ_OPT_CHOICE, offsetof(binary_opts, fit), NULL, "gptq", "mean|weighted|gptq", 0, 0, 0,
     "mean |w|; weighted by the inputs' energy; feedback, scales refitted"},
    {"planes", NULL, LQ_OPT_INT, offsetof(binary_opts, planes), "N", "1", NULL, 1, 2, 0, "2: the signs of the residual too, two bits per weight, two scales per row"},
    {"activations", NULL, LQ_OPT_SET, offsetof(binary_opts, activations), NULL, NULL, NULL, 0, 0, 1, "inputs as signs too, with one scale per token"},
    {"force", NULL, LQ_OPT_SET, offsetof(binary_opts, force), NULL, NULL, NULL, 0, 0, 1, "also a model that was not trained for it"},
    {0}};

static unsigned needs_of(const void *opts) { return ((const binary_opts *)opts)->fit == FIT_MEAN ? 0 : LQ_NEED_GRAM; }

static bool is_sign(const lq_scheme *s) { return s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_SIGN; }

static void refine(const void *opts, lq_scheme *s) {
    const binary_opts *o = opts;
    if (!is_sign(s)) return;
    if (o->activations) s->act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_BOOL};
    if (o->planes < 2) return;
    s->grid = (lq_grid){.kind = LQ_GRID_LUT, .bits = 2, .vec = 1, .bias = LQ_LUT_DATA};
    s->scale = (lq_plane_desc){0};
    s->extra = LQ_X_LUT_PER_ROW;
}

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    char name[64];
    (void)rows;
    bool two = ((const binary_opts *)opts)->planes == 2;
    bool one_ok = !two && is_sign(s) && !s->extra && lq_fewbit_tiles(s, cols);
    bool two_ok = two && s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_DATA && s->grid.bits == 2 && s->extra == LQ_X_LUT_PER_ROW && s->scale.dtype == LQ_NONE;
    if (one_ok || two_ok) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s on %u columns: binary makes type binary, with groups that divide the columns, rows or one scale", lq_scheme_name(s, name, sizeof name), cols);
}

static double mean_abs(const float *w, const float *h, size_t n, uint32_t *order) {
    (void)order;
    return lq_sign_scale(w, h, n);
}

typedef struct planes_job { lq_qtensor *q; const float *w, *h; } planes_job;

static void two_planes(void *arg, size_t r) {
    const planes_job *j = arg;
    double a, b;
    lq_sign_scales2(j->w + r * j->q->cols, j->h, j->q->cols, &a, &b);
    const double v[4] = {-a - b, -a + b, a - b, a + b};
    for (size_t i = 0; i < 4; i++) j->q->lut[4 * r + i] = lq_f16_f32(lq_f32_f16((float)fmax(-65504, fmin(65504, v[i])))) + 0.0f;
}

static lq_status fit(lq_ctx *ctx, const lq_weights *w, const float *h, lq_qtensor *q) {
    if (is_sign(&q->sch)) return lq_fewbit_fit(ctx, q, w->w, h, mean_abs);
    planes_job j = {q, w->w, h};
    lq_parallel_for(q->rows, two_planes, &j);
    return LQ_OK;
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out, lq_outcome *o) {
    const binary_opts *opt = opts;
    lq_gptq_factor f = {0};
    bool weighted = opt->fit != FIT_MEAN && stats && (stats->needs & LQ_NEED_GRAM) && stats->n;
    lq_status st = LQ_OK;
    *o = (lq_outcome){.method = "binary", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    LQ_TRY(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    if (weighted) LQ_GO(lq_gptq_factor_init(ctx, &f, &stats->gram, LQ_FEWBIT_DAMP, true));
    LQ_GO(fit(ctx, w, weighted ? f.weight : NULL, out));
    LQ_GO(lq_fewbit_codes(ctx, w, weighted && opt->fit == FIT_GPTQ ? &f : NULL, stats, out, o));
    if (opt->fit != FIT_MEAN && (!weighted || f.failed[0])) snprintf(o->fallback, sizeof o->fallback, "%s", weighted ? f.failed : "calibration gave it no tokens");
    st = lq_fewbit_gate(ctx, "binary", opt->force, o);
done:
    lq_gptq_factor_free(&f);
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

const lq_method lq_method_binary = {
    .name = "binary",
    .what = "signs times a scale, one or two bits: destroys ordinary models (--force)",
    .paper = "Rastegari et al. 2016, arXiv 1603.05279; Xing et al. 2023, arXiv 2312.08937",
    .type = "binary",
    .needs_of = needs_of,
    .tries_first = true,
    .refine = refine,
    .opts = options,
    .opts_size = sizeof(binary_opts),
    .accept = accept,
    .quantize = quantize,
};
