/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* HQQ (Badri, Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"): data-free; with the scale fixed, the zero
 * point minimises sum |w - s (q - z)|^p, p < 1, so that a few large errors do not bend the grid. Half-quadratic steps:
 *
 *   e = shrink(w - s (q - z), beta),   shrink(x) = sign(x) max(|x| - |x|^(p-1) / beta, 0)
 *   z = mean over the group of q - (w - e) / s,   beta = kappa beta
 *
 * Deviations, algorithms.md 12: a group stops by itself; the zero is judged after rounding to its stored type and the best one seen is
 * kept, min-max's own among them, so a group never ends worse than round-to-nearest; two starts (the range as it is and the range
 * that holds 0); --refit ends with a least-squares scale and zero where they lower the same measure. That measure is |e|^1.5: a group
 * that goes by |e|^p stops too early, at larger squares (BENCHMARKS.md, against hqq); the package goes by |e| over the whole matrix. */
#include "core/num.h"
#include "core/thread.h"
#include "quant/grid.h"
#include "quant/method.h"
#include "quant/proxy.h"

#include <math.h>
#include <string.h>

typedef struct hqq_opts { double p, beta, kappa; int64_t iters; int refit; } hqq_opts;

static const lq_opt options[] = {
    {"lp", NULL, LQ_OPT_REAL, offsetof(hqq_opts, p), "P", "0.7", NULL, 0.1, 1, 0, "exponent of the error"},
    {"beta", NULL, LQ_OPT_REAL, offsetof(hqq_opts, beta), "X", "10", NULL, 0.01, 1e6, 0, "first weight of the half-quadratic term"},
    {"kappa", NULL, LQ_OPT_REAL, offsetof(hqq_opts, kappa), "X", "1.01", NULL, 1, 10, 0, "its growth per step"},
    {"iterations", "iters", LQ_OPT_INT, offsetof(hqq_opts, iters), "N", "20", NULL, 0, 1000, 0, "steps per group at most"},
    {"refit", NULL, LQ_OPT_SET, offsetof(hqq_opts, refit), NULL, NULL, NULL, 0, 0, 1, "scale and zero by least squares at the end, where that is better"},
    {0}};

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    char name[64];
    (void)opts, (void)rows;
    bool real = s->grid.kind == LQ_GRID_INT && !s->grid.bias && s->zero_kind == LQ_ZERO_CODE && s->zero.dtype != LQ_U8 && !s->extra;
    if (real && s->scale.tile_r == 1 && s->zero.tile_r == 1 && s->zero.tile_c == s->scale.tile_c) return lq_grid_accept(ctx, s, cols);
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: hqq makes integers with a real zero per group (int4-fz-g64)", lq_scheme_name(s, name, sizeof name));
}

typedef struct group {       /* one group of one row */
    const hqq_opts *o;
    const lq_rounder *round;
    const lq_plane_desc *scale, *zero;
    const float *w;
    uint32_t n;
    float top, *code, *err;  /* [n padded to LQ_LANES] code and w - value under the zero judged last */
    float s, z;              /* the best so far */
    double loss;
} group;

/* sum |w - s (q - z)|^1.5, leaving codes and errors. */
static double judge(group *g, float s, float z) {
    float scale[LQ_LANES], zero[LQ_LANES];
    double sum = 0;
    for (int l = 0; l < LQ_LANES; l++) scale[l] = s, zero[l] = z;
    for (uint32_t i = 0; i < g->n; i += LQ_LANES) {
        float x[LQ_LANES] = {0}, value[LQ_LANES];
        uint32_t code[LQ_LANES], n = g->n - i < LQ_LANES ? g->n - i : LQ_LANES;
        memcpy(x, g->w + i, n * sizeof *x);
        lq_round_lanes(g->round, x, scale, zero, code, value);
        for (uint32_t l = 0; l < n; l++) {
            g->code[i + l] = (float)code[l];
            g->err[i + l] = x[l] - value[l];
            double a = fabs((double)g->err[i + l]);
            sum += a * sqrt(a);
        }
    }
    return sum;
}

static bool keep_better(group *g, float s, float z, double loss) {
    if (!(loss < g->loss)) return false;
    g->s = s;
    g->z = z;
    g->loss = loss;
    return true;
}

static void descend(group *g, float s, float z) {
    double beta = g->o->beta, last = INFINITY;
    for (int64_t k = 0;; k++, beta *= g->o->kappa) {
        double loss = judge(g, s, z), sum = 0;
        keep_better(g, s, z, loss);
        if (k == g->o->iters || !(loss < last)) return;
        last = loss;
        for (uint32_t i = 0; i < g->n; i++) {
            double x = (double)g->err[i], a = fabs(x), left = a > 0 ? a - pow(a, g->o->p - 1) / beta : 0;
            double e = left > 0 ? copysign(left, x) : 0;
            sum += (double)g->code[i] - ((double)g->w[i] - e) / (double)s;
        }
        z = lq_plane_round(g->zero, (float)(sum / g->n));
    }
}

/* w ~ s q - s z by least squares for the codes of the best. */
static void refit(group *g) {
    double n = g->n, q = 0, qq = 0, w = 0, wq = 0;
    judge(g, g->s, g->z);
    for (uint32_t i = 0; i < g->n; i++) {
        q += (double)g->code[i];
        qq += (double)g->code[i] * (double)g->code[i];
        w += (double)g->w[i];
        wq += (double)g->code[i] * (double)g->w[i];
    }
    double det = n * qq - q * q, slope = det > 0 ? (n * wq - q * w) / det : 0;
    float s = lq_plane_round(g->scale, (float)slope);
    if (!(s > 0x1p-14f)) return;
    float z = lq_plane_round(g->zero, (float)((q - w / (double)s) / n));
    keep_better(g, s, z, judge(g, s, z));
}

static void solve_group(group *g) {
    float lo = g->w[0], hi = g->w[0];
    for (uint32_t i = 1; i < g->n; i++) {
        lo = g->w[i] < lo ? g->w[i] : lo;
        hi = g->w[i] > hi ? g->w[i] : hi;
    }
    for (int start = 0; start < 2; start++) {
        if (start && lo <= 0 && hi >= 0) break; /* the same range */
        if (start) lo = lo < 0 ? lo : 0, hi = hi > 0 ? hi : 0;
        float s = lq_plane_round(g->scale, (hi - lo) / g->top);
        if (!(s >= 0x1p-14f)) s = lq_plane_round(g->scale, 0x1p-14f); /* a group of equal weights: the zero does it */
        float z = lq_plane_round(g->zero, -lo / s);
        if (isfinite(s) && isfinite(z)) descend(g, s, z);
    }
    for (int round = 0; g->o->refit && round < 3; round++) {
        double before = g->loss;
        refit(g);
        if (!(g->loss < before)) break;
        descend(g, g->s, g->z);
    }
}

typedef struct job { const hqq_opts *o; lq_qtensor *q; const float *w; float *scratch; size_t per; } job;

static void solve_row(void *arg, size_t r) {
    const job *j = arg;
    lq_qtensor *q = j->q;
    const lq_scheme *s = &q->sch;
    uint32_t tile = s->scale.tile_c ? s->scale.tile_c : q->cols;
    float *room = j->scratch + j->per * (size_t)lq_worker();
    lq_rounder round;
    lq_rounder_init(&round, q, (uint32_t)r, 0);
    for (uint32_t c = 0; c < q->cols; c += tile) {
        group g = {.o = j->o, .round = &round, .scale = &s->scale, .zero = &s->zero, .w = j->w + r * q->cols + c, .n = tile,
                   .top = (float)((1u << s->grid.bits) - 1), .code = room, .err = room + j->per / 2, .loss = INFINITY};
        size_t at = lq_plane_index(&s->scale, q->cols, (uint32_t)r, c);
        g.s = lq_plane_get(&s->scale, &q->scale, at); /* round-to-nearest's own */
        g.z = lq_plane_get(&s->zero, &q->zero, at);
        g.loss = judge(&g, g.s, g.z);
        solve_group(&g);
        lq_plane_set(&s->scale, &q->scale, at, g.s);
        lq_plane_set(&s->zero, &q->zero, at, g.z);
    }
}

static lq_status solve(lq_ctx *ctx, const hqq_opts *o, const float *w, lq_qtensor *q) {
    uint32_t tile = q->sch.scale.tile_c ? q->sch.scale.tile_c : q->cols;
    job j = {o, q, w, NULL, 2 * (((size_t)tile + LQ_LANES - 1) / LQ_LANES * LQ_LANES)};
    if (!(j.scratch = lq_calloc(j.per * (size_t)lq_threads(), sizeof *j.scratch))) return lq_oom(ctx, j.per * sizeof *j.scratch);
    lq_parallel_for(q->rows, solve_row, &j);
    lq_free(j.scratch);
    lq_grid_round(q, w);
    return LQ_OK;
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out, lq_outcome *o) {
    bool measured = stats && (stats->needs & LQ_NEED_GRAM) && stats->n;
    lq_status st = LQ_OK;
    *o = (lq_outcome){.method = "hqq", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    LQ_TRY(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    LQ_GO(lq_grid_fit(ctx, out, w->w, NULL, LQ_FIT_MINMAX));
    LQ_GO(solve(ctx, opts, w->w, out));
    LQ_GO(lq_weight_error(ctx, w->w, out, &o->err_w));
    if (measured) LQ_GO(lq_proxy_error(ctx, w->w, out, &stats->gram, &o->err_h));
    o->err_h_rtn = o->err_h;
done:
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

const lq_method lq_method_hqq = {
    .name = "hqq",
    .what = "half-quadratic zero points: robust to large weights, no calibration data",
    .paper = "Badri and Shaji 2023, mobiusml.github.io/hqq_blog",
    .type = "int*-fz",
    .opts = options,
    .opts_size = sizeof(hqq_opts),
    .accept = accept,
    .quantize = quantize,
};
