/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* SqueezeLLM (Kim et al. 2023, arXiv 2306.07629): per row a codebook of 2^b values that minimises sum F (w - c)^2, F the diagonal of
 * the Fisher information, plus a sparse matrix of the weights that a codebook serves worst (dense-and-sparse, 4.2).
 *
 * Deviations: k-means is exact (kmeans.h), not Lloyd's from a random start; without a Fisher file F_rc is the second moment of input
 * c, which needs no gradients; sensitive weights are those with the largest F w^2; a sparse value is what the nearest codebook entry
 * leaves of the weight, so its F16 rounding error shrinks with it; table entries are rounded to F16 before codes are chosen. */
#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"
#include "quant/grid.h"
#include "quant/kmeans.h"
#include "quant/method.h"
#include "quant/proxy.h"
#include "quant/select.h"

#include <math.h>

typedef struct squeeze_opts { double sparse, sensitive; } squeeze_opts;

static const lq_opt options[] = {
    {"sparse", NULL, LQ_OPT_REAL, offsetof(squeeze_opts, sparse), "PERCENT", "0.45", NULL, 0, 50, 0, "weights of largest magnitude kept apart in F16"},
    {"sensitive", NULL, LQ_OPT_REAL, offsetof(squeeze_opts, sensitive), "PERCENT", "0.05", NULL, 0, 50, 0, "the same, of largest sensitivity times square"},
    {0}};

static uint16_t per_10000(double percent) { return (uint16_t)lrint(100 * percent); }

static void refine(const void *opts, lq_scheme *s) {
    const squeeze_opts *o = opts;
    s->sparse = (uint16_t)(per_10000(o->sparse) + per_10000(o->sensitive));
    s->extra = (s->extra & ~(uint32_t)LQ_X_OUTLIERS) | (s->sparse ? LQ_X_OUTLIERS : 0);
}

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    char name[64];
    (void)opts, (void)rows, (void)cols;
    bool own = s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_DATA && s->extra & LQ_X_LUT_PER_ROW && s->grid.bits <= 4;
    if (own && s->scale.dtype == LQ_NONE && s->zero_kind == LQ_ZERO_NONE && !(s->extra & ~(uint32_t)(LQ_X_LUT_PER_ROW | LQ_X_OUTLIERS))) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: squeezellm makes lut2, lut3 and lut4", lq_scheme_name(s, name, sizeof name));
}

/* Sensitivities: one row for all from the Gram matrix, or the Fisher's own. A floor keeps weights that the sample did not touch. */
static lq_status sensitivities(lq_ctx *ctx, const lq_weights *w, const lq_stats *stats, float **out, size_t *stride) {
    size_t n = w->fisher ? (size_t)w->rows * w->cols : w->cols;
    double mean = 0;
    *stride = w->fisher ? w->cols : 0;
    if (!(*out = lq_calloc(n, sizeof **out))) return lq_oom(ctx, n * sizeof **out);
    for (size_t i = 0; i < n; i++) mean += w->fisher ? (double)w->fisher[i] : stats ? lq_gram_at(&stats->gram, (uint32_t)i, (uint32_t)i) : 0;
    mean /= (double)n;
    for (size_t i = 0; i < n; i++) {
        double v = w->fisher ? (double)w->fisher[i] : stats ? lq_gram_at(&stats->gram, (uint32_t)i, (uint32_t)i) : 0;
        (*out)[i] = mean > 0 ? (float)(v / mean + 0.001) : 1;
    }
    return LQ_OK;
}

/* Which weights go into the sparse matrix. */
static lq_status choose_sparse(lq_ctx *ctx, const squeeze_opts *o, const lq_weights *w, const float *h, size_t stride, uint8_t *mark) {
    size_t n = (size_t)w->rows * w->cols, large = n * per_10000(o->sparse) / 10000, all = n * (size_t)(per_10000(o->sparse) + per_10000(o->sensitive)) / 10000;
    float *key = lq_calloc(n, sizeof *key);
    if (!key) return lq_oom(ctx, n * sizeof *key);
    for (size_t i = 0; i < n; i++) key[i] = fabsf(w->w[i]);
    lq_select(key, n, large, true, 1, mark);
    for (uint32_t r = 0; r < w->rows; r++)
        for (uint32_t c = 0; c < w->cols; c++) key[(size_t)r * w->cols + c] = h[r * stride + c] * w->w[(size_t)r * w->cols + c] * w->w[(size_t)r * w->cols + c];
    lq_select(key, n, all - large, true, 1, mark);
    lq_free(key);
    return LQ_OK;
}

static uint16_t half_of(float v) { return lq_f32_f16(v > 65504 ? 65504 : v < -65504 ? -65504 : v); }

static lq_status fill_sparse(lq_ctx *ctx, const lq_weights *w, const uint8_t *mark, lq_qtensor *q) {
    size_t all = (size_t)w->rows * w->cols;
    uint32_t n = 0;
    for (size_t i = 0; i < all; i++) n += mark[i];
    LQ_TRY(lq_qtensor_outliers(ctx, q, n));
    n = 0;
    for (uint32_t r = 0; r < w->rows; r++) {
        for (uint32_t c = 0; c < w->cols; c++) {
            size_t i = (size_t)r * w->cols + c;
            if (!mark[i]) continue;
            q->outliers.col[n] = c;
            q->outliers.v[n++] = half_of(w->w[i] - lq_qtensor_code_weight(q, r, c));
        }
        q->outliers.row[r + 1] = n;
    }
    return LQ_OK;
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out, lq_outcome *o) {
    bool measured = stats && (stats->needs & LQ_NEED_GRAM) && stats->n;
    float *h = NULL;
    size_t stride;
    lq_status st = LQ_OK;
    *o = (lq_outcome){.method = "squeezellm", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    uint8_t *mark = lq_alloc((size_t)w->rows * w->cols);
    if (!mark) return lq_oom(ctx, (size_t)w->rows * w->cols);
    LQ_GO(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    LQ_GO(sensitivities(ctx, w, measured ? stats : NULL, &h, &stride));
    if (s->extra & LQ_X_OUTLIERS) LQ_GO(choose_sparse(ctx, opts, w, h, stride, mark));
    LQ_GO(lq_lut_fit(ctx, out, w->w, h, stride, mark));
    lq_grid_round(out, w->w);
    if (s->extra & LQ_X_OUTLIERS) LQ_GO(fill_sparse(ctx, w, mark, out));
    LQ_GO(lq_weight_error(ctx, w->w, out, &o->err_w));
    if (measured) LQ_GO(lq_proxy_error(ctx, w->w, out, &stats->gram, &o->err_h));
    o->err_h_rtn = o->err_h;
    if (!measured && !w->fisher) snprintf(o->fallback, sizeof o->fallback, "calibration gave it no tokens: all weights count alike");
done:
    lq_free(mark);
    lq_free(h);
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

const lq_method lq_method_squeezellm = {
    .name = "squeezellm",
    .format = "squeezellm",
    .what = "a codebook per row by exact weighted k-means, the worst weights kept apart",
    .paper = "Kim et al. 2023, arXiv 2306.07629",
    .type = "lut*",
    .needs = LQ_NEED_GRAM,
    .takes_fisher = true,
    .refine = refine,
    .opts = options,
    .opts_size = sizeof(squeeze_opts),
    .accept = accept,
    .quantize = quantize,
};
