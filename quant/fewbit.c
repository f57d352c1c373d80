/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Ternary: for a given s the best t is sign(w) where |w| > s/2, so the optimal support is a prefix of the weights by falling |w|; with
 * it s = sum h|w| / sum h and the error falls by (sum h|w|)^2 / sum h: one sort, one scan (Li et al. 2016, arXiv 1605.04711, without
 * their approximation). Sign: s = sum h|w| / sum h (Rastegari et al. 2016, XNOR-Net). */
#include "quant/fewbit.h"

#include "core/thread.h"
#include "quant/gptq_solve.h"
#include "quant/grid.h"
#include "quant/proxy.h"
#include "quant/rescale.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct item { float a; uint32_t at; } item;

static int by_falling(const void *x, const void *y) {
    const item *a = x, *b = y;
    if (a->a != b->a) return a->a > b->a ? -1 : 1;
    return a->at < b->at ? -1 : a->at > b->at;
}

_Static_assert(sizeof(item) == 2 * sizeof(uint32_t), "order has room for items");

double lq_ternary_scale(const float *w, const float *h, size_t n, uint32_t *order) {
    item *v = (item *)(void *)order;
    double sum = 0, weight = 0, best = 0, scale = 0;
    for (size_t i = 0; i < n; i++) v[i] = (item){fabsf(w[i]), (uint32_t)i};
    qsort(v, n, sizeof *v, by_falling);
    for (size_t i = 0; i < n; i++) {
        double x = h ? (double)h[v[i].at] : 1;
        sum += x * (double)v[i].a;
        weight += x;
        if (weight > 0 && sum * sum / weight > best) best = sum * sum / weight, scale = sum / weight;
    }
    return scale;
}

double lq_sign_scale(const float *w, const float *h, size_t n) {
    double sum = 0, weight = 0;
    for (size_t i = 0; i < n; i++) {
        double x = h ? (double)h[i] : 1;
        sum += x * fabs((double)w[i]);
        weight += x;
    }
    return weight > 0 ? sum / weight : 0;
}

/* Error of the nearest of {-a-b, -a+b, a-b, a+b}, and the sums of the least squares for those signs. */
static double signs2(const float *w, const float *h, size_t n, double a, double b, double sums[4]) {
    double err = 0;
    memset(sums, 0, 4 * sizeof *sums);
    for (size_t i = 0; i < n; i++) {
        double x = h ? (double)h[i] : 1, v = fabs((double)w[i]), t = v >= a ? 1 : -1, d = v - a - b * t;
        err += x * d * d;
        sums[0] += x;
        sums[1] += x * t;
        sums[2] += x * v;
        sums[3] += x * v * t;
    }
    return err;
}

void lq_sign_scales2(const float *w, const float *h, size_t n, double *a, double *b) {
    double sums[4], rest = 0, weight = 0;
    *a = lq_sign_scale(w, h, n);
    for (size_t i = 0; i < n; i++) {
        double x = h ? (double)h[i] : 1;
        rest += x * fabs(fabs((double)w[i]) - *a);
        weight += x;
    }
    *b = weight > 0 ? rest / weight : 0;
    double err = signs2(w, h, n, *a, *b, sums);
    for (int round = 0; round < 100; round++) {
        double det = sums[0] * sums[0] - sums[1] * sums[1], next[4];
        if (!(det > 0)) return;
        double p = (sums[0] * sums[2] - sums[1] * sums[3]) / det, q = (sums[0] * sums[3] - sums[1] * sums[2]) / det;
        double now = signs2(w, h, n, p, q, next);
        if (!(now < err) || !(p >= q && q >= 0)) return;
        *a = p;
        *b = q;
        err = now;
        memcpy(sums, next, sizeof sums);
    }
}

/* ---- planes ---- */

bool lq_fewbit_tiles(const lq_scheme *s, uint32_t cols) {
    const lq_plane_desc *d = &s->scale;
    if (d->parent != LQ_NONE || (d->dtype != LQ_F32 && d->dtype != LQ_F16 && d->dtype != LQ_BF16)) return false;
    if (d->tile_r == 1) return !d->tile_c || cols % d->tile_c == 0;
    return !d->tile_r && !d->tile_c;
}

typedef struct fit_job { lq_qtensor *q; const float *w, *h; lq_tile_scale rule; uint32_t *order; size_t n; uint32_t per_row; } fit_job;

static void fit_tile(void *arg, size_t i) {
    const fit_job *j = arg;
    const lq_plane_desc *d = &j->q->sch.scale;
    uint32_t c = d->tile_r ? (uint32_t)(i % j->per_row) * (uint32_t)j->n : 0;
    bool zero = j->q->sch.grid.kind == LQ_GRID_INT; /* the grid itself can say 0 */
    double s = j->rule(j->w + i * j->n, j->h ? j->h + c : NULL, j->n, j->order + 2 * j->n * (size_t)lq_worker());
    float least = d->dtype == LQ_F32 ? 0x1p-126f : 0x1p-14f, v = lq_plane_round(d, (float)s);
    if (zero || s > 0) v = v > least ? v : least;
    lq_plane_set(d, &j->q->scale, i, v);
}

static float *spread(const float *h, uint32_t rows, uint32_t cols) {
    float *all = lq_calloc((size_t)rows * cols, sizeof *all);
    for (uint32_t r = 0; all && r < rows; r++) memcpy(all + (size_t)r * cols, h, cols * sizeof *all);
    return all;
}

lq_status lq_fewbit_fit(lq_ctx *ctx, lq_qtensor *q, const float *w, const float *h, lq_tile_scale rule) {
    const lq_plane_desc *d = &q->sch.scale;
    bool whole = !d->tile_r;
    fit_job j = {.q = q, .w = w, .h = h, .rule = rule, .n = whole ? (size_t)q->rows * q->cols : d->tile_c ? d->tile_c : q->cols};
    j.per_row = whole ? 1 : (uint32_t)(q->cols / j.n);
    float *all = whole && h ? spread(h, q->rows, q->cols) : NULL;
    j.order = lq_calloc(2 * j.n * (whole ? 1 : (size_t)lq_threads()), sizeof *j.order);
    lq_status st = j.order && (!whole || !h || all) ? LQ_OK : lq_oom(ctx, 2 * j.n * sizeof *j.order);
    if (all) j.h = all;
    if (!st && whole) fit_tile(&j, 0);
    else if (!st) lq_parallel_for((size_t)q->rows * j.per_row, fit_tile, &j);
    lq_free(all);
    lq_free(j.order);
    return st;
}

/* ---- codes ---- */

enum { BLOCK = 128, ROUNDS = 4 };

/* A weight that is off by its own size feeds back as much, and scales that fitted the weights do not fit what is rounded: codes and
 * scales by turns, while the loss falls. */
static lq_status alternate(lq_ctx *ctx, const lq_weights *w, const lq_gptq_factor *f, lq_qtensor *q, lq_gptq_sums *sums) {
    const lq_plane_desc *d = &q->sch.scale;
    size_t codes = (size_t)q->rows * q->row_bytes;
    if (d->tile_r != 1 || !d->dtype) return LQ_OK; /* one scale for all, or a codebook */
    uint8_t *kept = lq_alloc(codes);
    lq_status st = kept ? LQ_OK : lq_oom(ctx, codes);
    for (int i = 0; i < ROUNDS && !st; i++) {
        lq_gptq_sums next;
        if ((st = lq_rescale(ctx, w->w, f->h, f->damp, q))) break;
        memcpy(kept, q->codes, codes);
        if ((st = lq_gptq_solve(ctx, f, w->w, BLOCK, true, q, &next))) break;
        if (!(next.damped < sums->damped)) {
            memcpy(q->codes, kept, codes);
            break;
        }
        *sums = next;
    }
    if (!st) st = lq_rescale(ctx, w->w, f->h, f->damp, q);
    lq_free(kept);
    return st;
}

lq_status lq_fewbit_codes(lq_ctx *ctx, const lq_weights *w, const lq_gptq_factor *f, const lq_stats *stats, lq_qtensor *q, lq_outcome *o) {
    bool measured = stats && (stats->needs & LQ_NEED_GRAM) && stats->n;
    if (f && f->feed) {
        lq_gptq_sums sums;
        LQ_TRY(lq_gptq_solve(ctx, f, w->w, BLOCK, true, q, &sums));
        double rtn = sums.rtn;
        LQ_TRY(alternate(ctx, w, f, q, &sums));
        o->damp = f->damp;
        o->dead_cols = f->dead;
        o->guarded_rows = sums.guarded;
        if (measured) LQ_TRY(lq_proxy_error(ctx, w->w, q, &stats->gram, &o->err_h));
        o->err_h_rtn = sums.w > 0 ? rtn / sums.w : 0;
    } else {
        lq_grid_round(q, w->w);
        if (measured) LQ_TRY(lq_proxy_error(ctx, w->w, q, &stats->gram, &o->err_h));
        o->err_h_rtn = o->err_h;
    }
    return lq_weight_error(ctx, w->w, q, &o->err_w);
}

lq_status lq_fewbit_gate(lq_ctx *ctx, const char *what, bool force, const lq_outcome *o) {
    if (force || o->err_w <= 1e-3) return LQ_OK;
    char output[80] = "";
    if (o->err_h >= 0) snprintf(output, sizeof output, " and %.0f %% of its outputs' energy", 100 * o->err_h);
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s codes lose %.0f %% of this matrix's energy%s: the model was not trained for them and will not be of use; "
                   "--force quantizes it all the same", what, 100 * o->err_w, output);
}
