/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Optimal 1-D clusters are runs of the sorted points, so dynamic programming over the runs' ends finds the optimum:
 *
 *   D_k(i) = min over j <= i of D_(k-1)(j - 1) + cost(j, i),   cost(j, i) = sum h x^2 - (sum h x)^2 / sum h over j..i
 *
 * from prefix sums. The best j does not fall as i grows (cost is concave Monge), so each layer is solved by divide and conquer in
 * O(n log n). Wu 1991, "Optimal quantization by matrix searching"; Gronlund et al. 2017, arXiv 1701.07204. Points are moved to
 * their mean first: the difference of squares then keeps its digits. */
#include "quant/kmeans.h"

#include "core/num.h"
#include "core/thread.h"

#include <stdlib.h>

lq_status lq_kmeans_init(lq_ctx *ctx, lq_kmeans *m, size_t n, uint32_t k) {
    *m = (lq_kmeans){.n = n, .k = k};
    m->p = lq_calloc(n, sizeof *m->p);
    m->sum = lq_calloc(3 * (n + 1), sizeof *m->sum);
    m->cost = lq_calloc(2 * n, sizeof *m->cost);
    m->from = lq_calloc(n * k, sizeof *m->from);
    if (m->p && m->sum && m->cost && m->from) return LQ_OK;
    lq_kmeans_free(m);
    return lq_oom(ctx, n * k * sizeof *m->from);
}

void lq_kmeans_free(lq_kmeans *m) {
    lq_free(m->p);
    lq_free(m->sum);
    lq_free(m->cost);
    lq_free(m->from);
    *m = (lq_kmeans){0};
}

static int by_value(const void *a, const void *b) {
    const lq_kmeans_point *x = a, *y = b;
    if (x->x != y->x) return x->x < y->x ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

typedef struct sums { const double *h, *hx, *hxx; } sums;

static double cost_of(const sums *s, size_t j, size_t i) {
    double h = s->h[i + 1] - s->h[j], x = s->hx[i + 1] - s->hx[j], c = s->hxx[i + 1] - s->hxx[j] - x * x / h;
    return c > 0 ? c : 0;
}

/* Layer values of points lo..hi, whose best j lie in a..b. */
static void layer(const sums *s, const double *before, double *now, uint32_t *from, size_t lo, size_t hi, size_t a, size_t b) {
    while (lo <= hi) {
        size_t mid = lo + (hi - lo) / 2, end = b < mid ? b : mid, best = a;
        double least = INFINITY;
        for (size_t j = a; j <= end; j++) {
            double c = before[j - 1] + cost_of(s, j, mid);
            if (c < least) least = c, best = j;
        }
        now[mid] = least;
        from[mid] = (uint32_t)best;
        if (mid > lo) layer(s, before, now, from, lo, mid - 1, a, best);
        lo = mid + 1;
        a = best;
    }
}

static sums prefix(lq_kmeans *m, size_t n, double *mean) {
    double *h = m->sum, *hx = h + n + 1, *hxx = hx + n + 1, all = 0, most = 0, first = 0;
    for (size_t i = 0; i < n; i++) {
        all += (double)m->p[i].h;
        first += (double)m->p[i].h * (double)m->p[i].x;
        most = fmax(most, (double)m->p[i].h);
    }
    *mean = all > 0 ? first / all : 0;
    h[0] = hx[0] = hxx[0] = 0;
    for (size_t i = 0; i < n; i++) { /* a weight is never quite zero: a cluster of such points still has a center */
        double w = all > 0 ? fmax((double)m->p[i].h, 1e-12 * most) : 1, x = (double)m->p[i].x - *mean;
        h[i + 1] = h[i] + w;
        hx[i + 1] = hx[i] + w * x;
        hxx[i + 1] = hxx[i] + w * x * x;
    }
    return (sums){h, hx, hxx};
}

double lq_kmeans_run(lq_kmeans *m, size_t n, uint32_t k, double *center) {
    double mean, *now = m->cost, *before = m->cost + m->n;
    uint32_t used = n < k ? (uint32_t)n : k;
    qsort(m->p, n, sizeof *m->p, by_value);
    sums s = prefix(m, n, &mean);
    for (size_t i = 0; i < n; i++) now[i] = cost_of(&s, 0, i);
    for (uint32_t c = 1; c < used; c++) {
        double *swap = before;
        before = now;
        now = swap;
        layer(&s, before, now, m->from + c * m->n, c, n - 1, c, n - 1);
    }
    double least = now[n - 1];
    for (size_t c = used, end = n; c-- > 0;) {
        size_t j = c ? m->from[c * m->n + end - 1] : 0;
        center[c] = mean + (s.hx[end] - s.hx[j]) / (s.h[end] - s.h[j]);
        end = j;
    }
    for (uint32_t c = 1; c < k; c++) /* equal points on both sides of a border: rounding must not swap their centers */
        if (c >= used || center[c] < center[c - 1]) center[c] = center[c - 1];
    return least;
}

/* ---- codebooks ---- */

typedef struct fit_job {
    lq_qtensor *q;
    const float *w, *h;
    size_t stride;
    const uint8_t *skip;
    lq_kmeans *room;     /* [workers] */
} fit_job;

static float entry(double v) {
    float f = (float)(v > 65504 ? 65504 : v < -65504 ? -65504 : v);
    return lq_f16_f32(lq_f32_f16(f)) + 0.0f; /* never -0 */
}

static void fit_row(void *arg, size_t r) {
    const fit_job *j = arg;
    lq_kmeans *m = &j->room[lq_worker()];
    uint32_t cols = j->q->cols, k = 1u << j->q->sch.grid.bits;
    const float *w = j->w + r * cols, *h = j->h ? j->h + r * j->stride : NULL;
    const uint8_t *skip = j->skip ? j->skip + r * cols : NULL;
    double center[LQ_KMEANS_MAX] = {0};
    size_t n = 0;
    for (uint32_t c = 0; c < cols; c++)
        if (!skip || !skip[c]) m->p[n++] = (lq_kmeans_point){w[c], h ? h[c] : 1, c};
    if (n) lq_kmeans_run(m, n, k, center);
    for (uint32_t c = 0; c < k; c++) j->q->lut[r * k + c] = entry(center[c]);
}

lq_status lq_lut_fit(lq_ctx *ctx, lq_qtensor *q, const float *w, const float *h, size_t stride, const uint8_t *skip) {
    size_t workers = (size_t)lq_threads(), n = 0;
    if (q->sch.grid.kind != LQ_GRID_LUT || q->sch.grid.bias != LQ_LUT_DATA || q->n_lut != q->rows || q->sch.grid.bits > 8)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "expected a table of at most 256 values per row");
    fit_job j = {.q = q, .w = w, .h = h, .stride = stride, .skip = skip, .room = LQ_NEWN(lq_kmeans, workers)};
    lq_status st = j.room ? LQ_OK : lq_oom(ctx, workers * sizeof *j.room);
    for (; !st && n < workers; n++) st = lq_kmeans_init(ctx, &j.room[n], q->cols, 1u << q->sch.grid.bits);
    if (!st) lq_parallel_for(q->rows, fit_row, &j);
    for (size_t i = 0; j.room && i < workers; i++) lq_kmeans_free(&j.room[i]);
    lq_free(j.room);
    return st;
}
