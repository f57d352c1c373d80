/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* AWQ (Lin et al. 2023, arXiv 2306.00978): salient input channels are scaled up before rounding, found by search,
 *
 *   s_j = x_j^r                      x_j = mean_t |X_tj|                             (eq. 5)
 *   s_j = x_j^r / (w_j^(1-r) + 1e-4) w_j = mean_r |W_rj| / max |group of W_rj|       (AutoAWQ)
 *
 * r = 0, 1/20 .. 19/20, and s = 1, scored by sum over readers tr(E H E^T), E = W - Q(W s) / s, H the Gram matrix of the input. Then
 * each group's range is cut to the part of its largest weight that loses least on the group's own block of H; q and k are not
 * cut. --awq-loss block: the candidates best by that measure are judged by the error of the block's output, the block run with each (the
 * paper runs it for all). Deviations: the Gram loss in place of a forward pass; v -> o under grouped queries, one scale per kv channel, exactly;
 * scales only as far as what is kept stays representable. algorithms.md 7. */
#include "quant/xform.h"

#include "core/num.h"
#include "core/thread.h"
#include "kernels/linalg.h"
#include "quant/proxy.h"

#include <string.h>

enum { SITES_ALL, SITES_NORMS, CLIP_AUTO = 0, CLIP_ON, CLIP_OFF, FAMILY_BOTH = 0, FAMILY_X, FAMILY_XW, LOSS_GRAM = 0, LOSS_BLOCK, CUTS = 10, JUDGED = 6 };

typedef struct awq_opts { int64_t ratios; int sites, clip, family, pow2, loss; } awq_opts;

static const lq_opt options[] = {
    {"awq-ratios", NULL, LQ_OPT_INT, offsetof(awq_opts, ratios), "N", "20", NULL, 1, 100, 0, "ratios tried: 0/N .. (N-1)/N, and no scale at all"},
    {"awq-scales", NULL, LQ_OPT_CHOICE, offsetof(awq_opts, family), NULL, "both", "both|x|xw", 0, 0, 0, "~from activations (llm-awq), with weights too (AutoAWQ), or both"},
    {"clip", NULL, LQ_OPT_CHOICE, offsetof(awq_opts, clip), NULL, "auto", "auto|on|off", 0, 0, 0,
     "cut the ranges of groups; auto: unless the method searches its scales"},
    {"awq-loss", NULL, LQ_OPT_CHOICE, offsetof(awq_opts, loss), NULL, "gram", "gram|block", 0, 0, 0, "block: the best by the Gram matrix are judged by the block's output"},
    {"awq-sites", NULL, LQ_OPT_CHOICE, offsetof(awq_opts, sites), NULL, "all", "all|norms", 0, 0, 0, "~where to fold"},
    {"awq-pow2", NULL, LQ_OPT_SET, offsetof(awq_opts, pow2), NULL, NULL, NULL, 0, 0, 1, "~powers of two only: the fold is bit-exact"},
    {0}};

static bool wants(const void *opts, lq_site_kind kind) { return kind == LQ_SITE_NORM || ((const awq_opts *)opts)->sites == SITES_ALL; }

static bool runs_block(const void *opts) { return ((const awq_opts *)opts)->loss == LOSS_BLOCK; }

static uint32_t group_of(const lq_scheme *s, uint32_t cols) {
    bool grouped = s->scale.tile_r == 1 && s->scale.tile_c && cols % s->scale.tile_c == 0;
    return grouped ? s->scale.tile_c : cols;
}

static float largest(const float *w, uint32_t n) { /* fmaxf and fminf are calls, and these loops are hot */
    float most = 0;
    for (uint32_t c = 0; c < n; c++) most = fabsf(w[c]) > most ? fabsf(w[c]) : most;
    return most;
}

/* ---- what the scales are made of ---- */

static void add_weight_means(const lq_xreader *in, uint32_t cols, double *sum) {
    uint32_t g = group_of(in->target, cols);
    for (size_t r = 0; r < in->rows; r++)
        for (uint32_t c0 = 0; c0 < cols; c0 += g) {
            const float *w = in->w + r * cols + c0;
            float most = largest(w, g);
            for (uint32_t c = 0; c < g; c++) sum[c0 + c] += fabsf(w[c]) / ((double)most + 1e-6);
        }
}

/* xm, wm [scales]: means over tokens, rows, and the columns that share a scale */
static lq_status means(lq_ctx *ctx, const lq_xsite *x, double *xm, double *wm) {
    double *sum = LQ_NEWN(double, x->cols), rows = 0, share = (double)x->cols / x->scales;
    if (!sum) return lq_oom(ctx, x->cols * 8);
    for (uint32_t i = 0; i < x->n; i++) {
        if (!x->reader[i].target) continue;
        add_weight_means(&x->reader[i], x->cols, sum);
        rows += x->reader[i].rows;
    }
    for (uint32_t j = 0; j < x->scales; j++) xm[j] = wm[j] = 0;
    for (uint32_t c = 0; c < x->cols; c++) {
        xm[x->scale_of[c]] += x->stats->abssum[c] / ((double)x->stats->n * share);
        wm[x->scale_of[c]] += rows > 0 ? sum[c] / (rows * share) : 0;
    }
    lq_free(sum);
    return LQ_OK;
}

static lq_status scales_of(lq_ctx *ctx, const lq_xsite *x, const double *xm, const double *wm, double r, bool with_w, bool pow2, float *s) {
    double least = INFINITY, most = 0;
    for (uint32_t j = 0; j < x->scales; j++) {
        double v = pow(fmax(xm[j], 1e-8), r);
        if (with_w) v /= pow(fmax(wm[j], 1e-8), 1 - r) + 1e-4;
        v = fmax(v, 1e-4);
        s[j] = (float)v;
        if (!(xm[j] > 0)) continue;
        least = fmin(least, v);
        most = fmax(most, v);
    }
    double mid = most > 0 ? sqrt(most * least) : 1;
    for (uint32_t j = 0; j < x->scales; j++) s[j] = xm[j] > 0 ? (float)(s[j] / mid) : 1;
    return x->settle(ctx, x, pow2, s);
}

/* ---- the Gram loss ---- */

typedef struct bench {      /* a reader, or a sample of its rows, being scored */
    const float *h;         /* [cols][cols] */
    const float *moment;    /* [cols] its diagonal, for fits that are weighted */
    const float *w;
    float *q, *scratch;     /* [rows][cols]; [workers][LQ_PROXY_ROWS * 2][cols] */
    double *sums;
    uint32_t rows, cols;
} bench;

static void loss_slice(void *arg, size_t i) {
    const bench *b = arg;
    size_t k = b->cols, r0 = i * LQ_PROXY_ROWS, nr = b->rows - r0 < LQ_PROXY_ROWS ? b->rows - r0 : LQ_PROXY_ROWS;
    float *e = b->scratch + 2 * LQ_PROXY_ROWS * k * (size_t)lq_worker();
    double loss[LQ_PROXY_ROWS], sum = 0;
    for (size_t c = 0; c < nr * k; c++) e[c] = b->w[r0 * k + c] - b->q[r0 * k + c];
    memset(e + nr * k, 0, (LQ_PROXY_ROWS - nr) * k * sizeof *e);
    lq_proxy_rows(b->h, b->cols, e, e + LQ_PROXY_ROWS * k, loss);
    for (size_t r = 0; r < nr; r++) sum += loss[r];
    b->sums[i] = sum;
}

static lq_status bench_loss(lq_ctx *ctx, const bench *b, const lq_scheme *target, const float *s, lq_fit fit, double *loss) {
    size_t slices = (b->rows + LQ_PROXY_ROWS - 1) / LQ_PROXY_ROWS;
    LQ_TRY(lq_xform_pseudo(ctx, target, b->w, b->rows, b->cols, s, fit, b->moment, b->q));
    lq_parallel_for(slices, loss_slice, (void *)b);
    for (size_t i = 0; i < slices; i++) *loss += b->sums[i];
    return LQ_OK;
}

/* Rows that are looked at in the search: all of a small matrix; of a large one as many as keep the product with H affordable, in
 * even steps. */
static uint32_t sample_rows(const lq_xsite *x, const lq_xreader *in) {
    uint64_t most = (uint64_t)4e8 / ((uint64_t)x->cols * x->cols), searched = (1u << 15) / x->cols, least = x->n > 8 ? 32 : 64;
    if (x->fit != LQ_FIT_MINMAX && searched < most) most = searched; /* a search looks at every weight a hundred times */
    most = most * 4 / (x->n < 4 ? 4 : x->n);
    if (most < least) most = least;
    return in->rows < most ? in->rows : (uint32_t)most;
}

/* loss[k] of the scales s[k][cols] (NULL: all one) on the sample's rows of each quantized reader, or on all. */
static lq_status score(lq_ctx *ctx, const lq_xsite *x, const float *h, const float *moment, const float *const *s, uint32_t n, bool all, double *loss) {
    lq_status st = LQ_OK;
    for (uint32_t i = 0; i < x->n && !st; i++) {
        const lq_xreader *in = &x->reader[i];
        if (!in->target) continue;
        uint32_t rows = all ? in->rows : sample_rows(x, in);
        size_t size = (size_t)rows * x->cols;
        bench b = {.h = h, .moment = moment, .w = in->w, .rows = rows, .cols = x->cols, .q = LQ_NEWN(float, size)};
        float *sample = rows < in->rows ? LQ_NEWN(float, size) : NULL;
        b.scratch = LQ_NEWN(float, (size_t)lq_threads() * 2 * LQ_PROXY_ROWS * x->cols);
        b.sums = LQ_NEWN(double, (rows + LQ_PROXY_ROWS - 1) / LQ_PROXY_ROWS);
        if (!b.q || !b.scratch || !b.sums || (rows < in->rows && !sample)) st = lq_oom(ctx, size * 4);
        for (uint32_t r = 0; sample && !st && r < rows; r++)
            memcpy(sample + (size_t)r * x->cols, in->w + (size_t)((uint64_t)r * in->rows / rows) * x->cols, x->cols * sizeof *sample);
        if (sample) b.w = sample;
        for (uint32_t k = 0; k < n && !st; k++) {
            st = lq_check_cancel(ctx);
            if (!st) st = bench_loss(ctx, &b, in->target, s[k], x->fit, &loss[k]);
        }
        lq_free(b.q);
        lq_free(b.scratch);
        lq_free(b.sums);
        lq_free(sample);
    }
    return st;
}

static bool samples_all(const lq_xsite *x) {
    for (uint32_t i = 0; i < x->n; i++)
        if (x->reader[i].target && sample_rows(x, &x->reader[i]) < x->reader[i].rows) return false;
    return true;
}

typedef struct candidates {
    uint32_t n;
    float *s, *by_column;     /* [n][scales], [n][cols]; 0: all one */
    const float **at;         /* [n] into by_column; 0: NULL */
    double *loss;
} candidates;

static void name_choice(const awq_opts *o, uint32_t k, uint32_t n_x, char *out, size_t n) {
    if (!k) snprintf(out, n, "none");
    else if (k <= n_x) snprintf(out, n, "ratio %.3g", (double)k / (double)o->ratios);
    else snprintf(out, n, "ratio %.3g with weights", (double)(k - n_x - 1) / (double)o->ratios);
}

static lq_status make(lq_ctx *ctx, const awq_opts *o, const lq_xsite *x, uint32_t n_x, candidates *c) {
    double *xm = LQ_NEWN(double, (size_t)2 * x->scales);
    c->s = LQ_NEWN(float, (size_t)c->n * x->scales);
    c->by_column = LQ_NEWN(float, (size_t)c->n * x->cols);
    c->loss = LQ_NEWN(double, c->n);
    c->at = LQ_NEWN(const float *, c->n);
    lq_status st = xm && c->s && c->by_column && c->loss && c->at ? means(ctx, x, xm, xm + x->scales) : lq_oom(ctx, (size_t)c->n * x->cols * 8);
    for (uint32_t k = 0; k < c->n && !st; k++) {
        float *s = c->s + (size_t)k * x->scales;
        c->at[k] = k ? c->by_column + (size_t)k * x->cols : NULL;
        for (uint32_t j = 0; j < x->scales; j++) s[j] = 1;
        if (k) st = scales_of(ctx, x, xm, xm + x->scales, (double)(k <= n_x ? k : k - n_x - 1) / (double)o->ratios, k > n_x, o->pow2, s);
        for (uint32_t col = 0; col < x->cols; col++) c->by_column[(size_t)k * x->cols + col] = s[x->scale_of[col]];
    }
    lq_free(xm);
    return st;
}

static lq_status choose(lq_ctx *ctx, const lq_xsite *x, const float *h, const float *moment, candidates *c, uint32_t *best, double *before) {
    double both[2] = {0, 0};
    *best = 0;
    LQ_TRY(score(ctx, x, h, moment, c->at, c->n, false, c->loss));
    for (uint32_t k = 1; k < c->n; k++)
        if (c->loss[k] < c->loss[*best]) *best = k;
    *before = c->loss[0];
    if (!*best || samples_all(x)) return LQ_OK;
    LQ_TRY(score(ctx, x, h, moment, (const float *[]){NULL, c->at[*best]}, 2, true, both)); /* the sample's winner must beat doing nothing on every row */
    *before = both[0];
    if (!(both[1] < both[0])) *best = 0;
    c->loss[*best] = *best ? both[1] : both[0];
    return LQ_OK;
}

/* The candidate of the least loss among those that have not had their turn; 0: none is left. */
static uint32_t next_best(candidates *c) {
    uint32_t k = 0;
    for (uint32_t i = 1; i < c->n; i++)
        if (isfinite(c->loss[i]) && (!k || c->loss[i] < c->loss[k])) k = i;
    if (k) c->loss[k] = INFINITY;
    return k;
}

/* Doing nothing, and the JUDGED best by their Gram, by what they do to the block's output. */
static lq_status judge(lq_ctx *ctx, const lq_xsite *x, const float *h, const float *moment, candidates *c, uint32_t *best, double *before) {
    double least, loss;
    if (!x->output_loss) return lq_fail(ctx, LQ_ERR_INTERNAL, "%s: no block to run", x->name);
    LQ_TRY(score(ctx, x, h, moment, c->at, c->n, false, c->loss));
    LQ_TRY(x->output_loss(ctx, x, NULL, moment, before));
    least = *before;
    *best = 0;
    for (uint32_t i = 0, k; i < JUDGED && (k = next_best(c)); i++) {
        LQ_TRY(x->output_loss(ctx, x, c->at[k], moment, &loss));
        if (!(loss < least)) continue;
        least = loss;
        *best = k;
    }
    c->loss[*best] = least;
    return LQ_OK;
}

static lq_status apply(lq_ctx *ctx, const void *opts, const lq_xsite *x, float *s, lq_xchoice *choice) {
    const awq_opts *o = opts;
    bool any = false;
    for (uint32_t i = 0; i < x->n; i++) any = any || x->reader[i].target;
    if (!any) {
        snprintf(choice->chose, sizeof choice->chose, "none: nothing here is quantized");
        return LQ_OK;
    }
    uint32_t n_x = o->family == FAMILY_XW ? 0 : (uint32_t)o->ratios - 1, n_xw = o->family == FAMILY_X ? 0 : (uint32_t)o->ratios, best;
    candidates c = {.n = 1 + n_x + n_xw};
    float *h = LQ_NEWN(float, (size_t)x->cols * x->cols), *moment = LQ_NEWN(float, x->cols);
    lq_status st = h && moment ? LQ_OK : lq_oom(ctx, (size_t)x->cols * x->cols * 4);
    if (!st) lq_proxy_hessian(&x->stats->gram, h);
    for (uint32_t i = 0; !st && i < x->cols; i++) moment[i] = h[(size_t)i * x->cols + i];
    if (!st) st = make(ctx, o, x, n_x, &c);
    if (!st) st = (o->loss == LOSS_BLOCK ? judge : choose)(ctx, x, h, moment, &c, &best, &choice->loss_before);
    if (!st) {
        memcpy(s, c.s + (size_t)best * x->scales, x->scales * sizeof *s);
        choice->loss = c.loss[best];
        name_choice(o, best, n_x, choice->chose, sizeof choice->chose);
    }
    lq_free(c.s);
    lq_free(c.by_column);
    lq_free(c.loss);
    lq_free(c.at);
    lq_free(h);
    lq_free(moment);
    return st;
}

/* ---- the clip ---- */

typedef struct clipper {
    const lq_xsite *x;
    const lq_xreader *in;
    const float *s;        /* [scales] */
    const float *h;        /* [cols / group][group][group], of the scaled input */
    const float *q;        /* [rows][cols] the candidate's pseudo-quantized weights */
    float *scaled, *tried; /* [rows][cols] W s; the same cut */
    float *scratch;        /* [workers][2][LQ_PROXY_ROWS][group] */
    double *least;         /* [rows][groups] */
    float *limit, part;
    uint32_t group, per;
} clipper;

static void scale_slice(void *arg, size_t i) {
    const clipper *a = arg;
    uint32_t cols = a->x->cols;
    for (size_t r = i * LQ_PROXY_ROWS; r < (i + 1) * LQ_PROXY_ROWS && r < a->in->rows; r++)
        for (uint32_t c = 0; c < cols; c++) a->scaled[r * cols + c] = a->in->w[r * cols + c] * a->s[a->x->scale_of[c]];
}

static void cut_slice(void *arg, size_t i) {
    const clipper *a = arg;
    for (size_t r = i * LQ_PROXY_ROWS; r < (i + 1) * LQ_PROXY_ROWS && r < a->in->rows; r++)
        for (uint32_t g = 0; g < a->per; g++) {
            const float *w = a->scaled + r * a->x->cols + (size_t)g * a->group;
            float *v = a->tried + r * a->x->cols + (size_t)g * a->group, most = largest(w, a->group) * a->part;
            for (uint32_t c = 0; c < a->group; c++) v[c] = w[c] > most ? most : w[c] < -most ? -most : w[c];
        }
}

static void judge_slice(void *arg, size_t i) {
    const clipper *a = arg;
    size_t g = a->group, r0 = i * LQ_PROXY_ROWS, nr = a->in->rows - r0 < LQ_PROXY_ROWS ? a->in->rows - r0 : LQ_PROXY_ROWS;
    float *e = a->scratch + 2 * LQ_PROXY_ROWS * g * (size_t)lq_worker();
    double loss[LQ_PROXY_ROWS];
    for (uint32_t k = 0; k < a->per; k++) {
        for (size_t r = 0; r < LQ_PROXY_ROWS; r++)
            for (size_t c = 0; c < g; c++) {
                size_t at = (r0 + r) * a->x->cols + k * g + c;
                e[r * g + c] = r < nr ? a->scaled[at] - a->q[at] : 0;
            }
        lq_proxy_rows(a->h + k * g * g, a->group, e, e + LQ_PROXY_ROWS * g, loss);
        for (size_t r = 0; r < nr; r++) {
            size_t at = (r0 + r) * a->per + k;
            if (a->part < 1 && !(loss[r] < a->least[at])) continue;
            a->least[at] = loss[r];
            if (a->part < 1) a->limit[at] = largest(a->scaled + (r0 + r) * a->x->cols + k * g, a->group) * a->part;
        }
    }
}

static void group_grams(const lq_xsite *x, const float *s, uint32_t group, float *h) {
    double n = (double)x->stats->n;
    for (uint32_t i = 0; i < x->cols; i++)
        for (uint32_t c = 0; c < group; c++) {
            uint32_t j = i / group * group + c;
            h[(size_t)i * group + c] = (float)(lq_gram_at(&x->stats->gram, i, j) / n / ((double)s[x->scale_of[i]] * (double)s[x->scale_of[j]]));
        }
}

static lq_status clip(lq_ctx *ctx, const void *opts, const lq_xsite *x, uint32_t i, const float *s, uint32_t group, float *limit, lq_xchoice *choice) {
    const awq_opts *o = opts;
    const lq_xreader *in = &x->reader[i];
    if (o->clip == CLIP_OFF || in->makes_scores || (o->clip == CLIP_AUTO && x->fit != LQ_FIT_MINMAX)) return LQ_OK;
    size_t size = (size_t)in->rows * x->cols, slices = (in->rows + LQ_PROXY_ROWS - 1) / LQ_PROXY_ROWS;
    float *h = LQ_NEWN(float, (size_t)x->cols * group), *q = LQ_NEWN(float, size);
    clipper a = {.x = x, .in = in, .s = s, .h = h, .q = q, .limit = limit, .group = group, .per = x->cols / group};
    a.scaled = LQ_NEWN(float, size);
    a.tried = LQ_NEWN(float, size);
    a.scratch = LQ_NEWN(float, (size_t)lq_threads() * 2 * LQ_PROXY_ROWS * group);
    a.least = LQ_NEWN(double, (size_t)in->rows * a.per);
    lq_status st = h && q && a.scaled && a.tried && a.scratch && a.least ? LQ_OK : lq_oom(ctx, size * 4);
    if (!st) group_grams(x, s, group, h);
    if (!st) lq_parallel_for(slices, scale_slice, &a);
    for (int k = 0; k < CUTS && !st; k++) {
        a.part = 1 - 0.05f * (float)k;
        lq_parallel_for(slices, cut_slice, &a);
        st = lq_xform_pseudo(ctx, in->target, a.tried, in->rows, x->cols, NULL, LQ_FIT_MINMAX, NULL, q);
        if (!st) lq_parallel_for(slices, judge_slice, &a);
        if (!st) st = lq_check_cancel(ctx);
    }
    for (size_t k = 0; k < (size_t)in->rows * a.per && !st; k++) choice->cut += isfinite(limit[k]);
    choice->groups += (uint64_t)in->rows * a.per;
    lq_free(h);
    lq_free(q);
    lq_free(a.scaled);
    lq_free(a.tried);
    lq_free(a.scratch);
    lq_free(a.least);
    return st;
}

const lq_xform lq_xform_awq = {
    .name = "awq",
    .format = "awq",
    .what = "salient channels scaled up, ranges cut, before rounding",
    .paper = "Lin et al. 2023, arXiv 2306.00978",
    .type = "int*-asym",
    .needs = LQ_NEED_ABSMAX | LQ_NEED_GRAM,
    .opts = options,
    .opts_size = sizeof(awq_opts),
    .runs_block = runs_block,
    .wants = wants,
    .apply = apply,
    .clip = clip,
};
