/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): outlier channels of the activations are handed to the weights,
 *
 *   s_j = max_t |X_tj|^alpha / max_r |W_rj|^(1 - alpha)            (eq. 4)
 *
 * W: all readers that are quantized, together. Deviations: alpha is searched per site by default, "none" among the candidates,
 * scored by sum over readers |X W^T - Q(X / s) Q(W s)^T|^2 on sampled tokens, activations rounded as they will be deployed, weights
 * to nearest in their min-max range (a method may do better, but hardly for another alpha); scales are powers of two, so that the fold changes no bit; a channel the sample never reached keeps s = 1. algorithms.md 4. */
#include "quant/xform.h"

#include "calib/act.h"
#include "core/thread.h"
#include "kernels/linalg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SITES_NORMS, SITES_ALL, MAX_CANDIDATES = 16, SLICE = 32 };

typedef struct smooth_opts { const char *alpha; int any_factor, sites; } smooth_opts;

static const lq_opt options[] = {
    {"alpha", "smoothing-strength", LQ_OPT_STRING, offsetof(smooth_opts, alpha), "X|auto", "auto", NULL, 0, 0, 0,
     "how much difficulty moves to the weights, 0 to 1; auto: searched for each site"},
    {"pow2", NULL, LQ_OPT_SET, offsetof(smooth_opts, any_factor), NULL, NULL, NULL, 0, 0, 0, "scales are powers of two: the fold is bit-exact (default)"},
    {"no-pow2", NULL, LQ_OPT_SET, offsetof(smooth_opts, any_factor), NULL, NULL, NULL, 0, 0, 1, "any scale whose fold rounds nothing that is kept"},
    {"smooth-sites", NULL, LQ_OPT_CHOICE, offsetof(smooth_opts, sites), NULL, "norms", "norms|all", 0, 0, 0,
     "behind norms as in the paper; all: v-o, up-down and fc1-fc2 too"},
    {0}};

/* alpha as given; -1: searched */
static bool read_alpha(const smooth_opts *o, double *alpha) {
    char *end;
    *alpha = -1;
    if (!o->alpha || !strcmp(o->alpha, "auto")) return true;
    *alpha = strtod(o->alpha, &end);
    return *o->alpha && !*end && *alpha >= 0 && *alpha <= 1;
}

static lq_status accept(lq_ctx *ctx, const void *opts) {
    double alpha;
    if (read_alpha(opts, &alpha)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_USAGE, "--alpha %s: expected auto or a number from 0 to 1", ((const smooth_opts *)opts)->alpha);
}

static unsigned needs_of(const void *opts) {
    double alpha;
    return read_alpha(opts, &alpha) && alpha >= 0 ? LQ_NEED_ABSMAX : LQ_NEED_ABSMAX | LQ_NEED_SAMPLES;
}

static bool wants(const void *opts, lq_site_kind kind) { return kind == LQ_SITE_NORM || ((const smooth_opts *)opts)->sites == SITES_ALL; }

/* max over the columns that share a scale */
static void maxima(const lq_xsite *x, float *xmax, float *wmax) {
    for (uint32_t j = 0; j < x->scales; j++) xmax[j] = wmax[j] = 0;
    for (uint32_t c = 0; c < x->cols; c++) xmax[x->scale_of[c]] = fmaxf(xmax[x->scale_of[c]], x->stats->absmax[c]);
    for (uint32_t i = 0; i < x->n; i++)
        for (size_t r = 0; x->reader[i].target && r < x->reader[i].rows; r++)
            for (uint32_t c = 0; c < x->cols; c++) wmax[x->scale_of[c]] = fmaxf(wmax[x->scale_of[c]], fabsf(x->reader[i].w[r * x->cols + c]));
}

static lq_status scales_of(lq_ctx *ctx, const lq_xsite *x, const float *xmax, const float *wmax, double alpha, bool pow2, float *s) {
    for (uint32_t j = 0; j < x->scales; j++)
        s[j] = !(xmax[j] > 0) ? 1 : (float)(pow(fmax(xmax[j], 1e-5), alpha) / pow(fmax(wmax[j], 1e-5), 1 - alpha));
    return x->settle(ctx, x, pow2, s);
}

/* ---- the score ---- */

typedef struct trial {
    const lq_xsite *x;
    const lq_xreader *in;
    const float *s;       /* [cols], by column */
    float *xq, *smooth, *step; /* [n][cols] */
    float *y, *wq;        /* [n][rows], [rows][cols] */
    float fixed;          /* step of static activations */
    const float *want;    /* [n][rows] */
    double *sums;         /* [slices] */
    uint32_t n;
} trial;

/* x / s as the target's activations will hold it, times s: wq is Q(W s) / s. */
static void deploy_slice(void *arg, size_t i) {
    const trial *t = arg;
    uint32_t cols = t->x->cols, tiles = lq_act_tiles(&t->in->target->act, cols);
    const lq_act *a = &t->in->target->act;
    for (size_t k = i * SLICE; k < (i + 1) * SLICE && k < t->n; k++) {
        const float *x = t->x->stats->samples + k * cols;
        float *out = t->xq + k * cols, *smooth = t->smooth + k * cols, *step = t->step + k * cols;
        for (uint32_t c = 0; c < cols; c++) smooth[c] = x[c] / t->s[c];
        if (a->kind) lq_act_quantize(a, t->fixed, NULL, smooth, cols, out, step);
        for (uint32_t c = 0; c < cols; c++) {
            bool apart = !a->kind || (a->outlier > 0 && fabsf(smooth[c]) >= a->outlier);
            out[c] = (apart ? smooth[c] : out[c] * step[tiles > 1 ? c / a->tile : 0]) * t->s[c];
        }
    }
}

static float fixed_step(const trial *t) {
    float most = 0;
    for (uint32_t c = 0; c < t->x->cols; c++) most = fmaxf(most, t->x->stats->absmax[c] / t->s[c]);
    return most / lq_act_top(t->in->target->act.dtype);
}

static void error_slice(void *arg, size_t i) {
    const trial *t = arg;
    double sum = 0;
    size_t from = i * SLICE * t->in->rows, to = ((i + 1) * SLICE < t->n ? (i + 1) * SLICE : t->n) * (size_t)t->in->rows;
    for (size_t k = from; k < to; k++) {
        double d = (double)t->y[k] - t->want[k];
        sum += d * d;
    }
    t->sums[i] = sum;
}

static lq_status score(lq_ctx *ctx, trial *t, double *err) {
    const lq_xsite *x = t->x;
    size_t slices = (t->n + SLICE - 1) / SLICE;
    LQ_TRY(lq_xform_pseudo(ctx, t->in->target, t->in->w, t->in->rows, x->cols, t->s, LQ_FIT_MINMAX, NULL, t->wq));
    if (t->in->target->act.kind == LQ_ACT_STATIC) t->fixed = fixed_step(t);
    lq_parallel_for(slices, deploy_slice, t);
    lq_matmul(t->xq, x->cols, t->wq, x->cols, t->y, t->in->rows, t->n, t->in->rows, x->cols);
    lq_parallel_for(slices, error_slice, t);
    for (size_t i = 0; i < slices; i++) *err += t->sums[i];
    return LQ_OK;
}

/* err[k] of each candidate s[k][cols], over all quantized readers. */
static lq_status score_all(lq_ctx *ctx, const lq_xsite *x, const float *s, uint32_t n_candidates, double *err) {
    lq_status st = LQ_OK;
    uint32_t n = x->stats->n_samples;
    for (uint32_t i = 0; i < x->n && !st; i++) {
        const lq_xreader *in = &x->reader[i];
        if (!in->target) continue;
        trial t = {.x = x, .in = in, .n = n, .xq = LQ_NEWN(float, (size_t)n * x->cols), .y = LQ_NEWN(float, (size_t)n * in->rows)};
        float *want = LQ_NEWN(float, (size_t)n * in->rows);
        t.smooth = LQ_NEWN(float, (size_t)2 * n * x->cols);
        t.step = t.smooth ? t.smooth + (size_t)n * x->cols : NULL;
        t.wq = LQ_NEWN(float, (size_t)in->rows * x->cols);
        t.sums = LQ_NEWN(double, (n + SLICE - 1) / SLICE);
        if (!t.xq || !t.smooth || !t.y || !want || !t.wq || !t.sums) st = lq_oom(ctx, (size_t)in->rows * x->cols * 4);
        else lq_matmul(x->stats->samples, x->cols, in->w, x->cols, want, in->rows, n, in->rows, x->cols);
        t.want = want;
        for (uint32_t k = 0; k < n_candidates && !st; k++) {
            t.s = s + (size_t)k * x->cols;
            st = lq_check_cancel(ctx);
            if (!st) st = score(ctx, &t, &err[k]);
        }
        lq_free(t.xq);
        lq_free(t.smooth);
        lq_free(t.y);
        lq_free(want);
        lq_free(t.wq);
        lq_free(t.sums);
    }
    return st;
}

static lq_status search(lq_ctx *ctx, const smooth_opts *o, const lq_xsite *x, const float *xmax, const float *wmax, float *s, lq_xchoice *choice) {
    enum { NONE = 0, FIRST = 30, LAST = 95, STEP = 5 };
    uint32_t n = 1 + (LAST - FIRST) / STEP + 1, best = NONE;
    double err[MAX_CANDIDATES] = {0};
    float *each = LQ_NEWN(float, (size_t)n * x->scales), *by_column = LQ_NEWN(float, (size_t)n * x->cols);
    lq_status st = each && by_column ? LQ_OK : lq_oom(ctx, (size_t)n * x->cols * 8);
    for (uint32_t k = 0; k < n && !st; k++) {
        float *sk = each + (size_t)k * x->scales;
        for (uint32_t j = 0; j < x->scales; j++) sk[j] = 1;
        if (k != NONE) st = scales_of(ctx, x, xmax, wmax, (FIRST + STEP * (double)(k - 1)) / 100, !o->any_factor, sk);
        for (uint32_t c = 0; c < x->cols; c++) by_column[(size_t)k * x->cols + c] = sk[x->scale_of[c]];
    }
    if (!st) st = score_all(ctx, x, by_column, n, err);
    for (uint32_t k = 0; k < n && !st; k++)
        if (err[k] < err[best]) best = k;
    if (!st) {
        memcpy(s, each + (size_t)best * x->scales, x->scales * sizeof *s);
        choice->loss = err[best];
        choice->loss_before = err[NONE];
        if (best == NONE) snprintf(choice->chose, sizeof choice->chose, "none");
        else snprintf(choice->chose, sizeof choice->chose, "alpha %.2f", (FIRST + STEP * (double)(best - 1)) / 100);
    }
    lq_free(each);
    lq_free(by_column);
    return st;
}

static lq_status apply(lq_ctx *ctx, const void *opts, const lq_xsite *x, float *s, lq_xchoice *choice) {
    const smooth_opts *o = opts;
    double alpha;
    bool any = false;
    for (uint32_t i = 0; i < x->n; i++) any = any || x->reader[i].target;
    if (!any) {
        snprintf(choice->chose, sizeof choice->chose, "none: nothing here is quantized");
        return LQ_OK;
    }
    float *xmax = LQ_NEWN(float, (size_t)2 * x->scales), *wmax = xmax ? xmax + x->scales : NULL;
    lq_status st = xmax ? LQ_OK : lq_oom(ctx, (size_t)x->scales * 8);
    if (!st) maxima(x, xmax, wmax);
    read_alpha(o, &alpha);
    if (!st && alpha < 0) st = search(ctx, o, x, xmax, wmax, s, choice);
    else if (!st) {
        st = scales_of(ctx, x, xmax, wmax, alpha, !o->any_factor, s);
        snprintf(choice->chose, sizeof choice->chose, "alpha %.3g", alpha);
    }
    lq_free(xmax);
    return st;
}

const lq_xform lq_xform_smoothquant = {
    .name = "smoothquant",
    .format = "compressed-tensors",
    .what = "activation outliers moved into the weights, for W8A8",
    .paper = "Xiao et al. 2022, arXiv 2211.10438",
    .type = "W8A8",
    .needs_of = needs_of,
    .opts = options,
    .opts_size = sizeof(smooth_opts),
    .accept = accept,
    .wants = wants,
    .apply = apply,
};
