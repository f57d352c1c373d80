/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* With codes fixed a row of values is sum over groups of t_g v_g, t = 1, and tr(E H E^T) is quadratic in t: its minimum is where
 *
 *   sum over k of (v_g H v_k) d_k = v_g H e        e = w - v, t = 1 + d
 *
 * H with the damping that the codes were decided under, so that groups the calibration hardly saw keep the scale that fits the weights. */
#include "quant/rescale.h"

#include "core/thread.h"
#include "quant/proxy.h"

#include <math.h>
#include <string.h>

enum { ROWS = LQ_PROXY_ROWS, SWEEPS = 8 };

typedef struct job {
    const float *w, *h;
    lq_qtensor *q;
    double damp;        /* added to the diagonal of h */
    uint32_t group, n;  /* columns of a group; groups of a row */
    float *scratch;     /* [workers][4][ROWS][k]: v, e, e H, v_g H */
    double *system;     /* [workers]: [ROWS][n + 1][n] the matrices with their right sides; [n][n] one factored; [2][n] its solution, scales */
} job;

/* a[n][n] positive definite, row-major, lower triangle read; x <- a^-1 x. False: it is not. */
static bool solve(double *a, uint32_t n, double *x) {
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j <= i; j++) {
            double s = a[i * n + j];
            for (uint32_t k = 0; k < j; k++) s -= a[i * n + k] * a[j * n + k];
            if (i == j && !(s > 0)) return false;
            a[i * n + j] = i == j ? sqrt(s) : s / a[j * n + j];
        }
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < i; k++) x[i] -= a[i * n + k] * x[k];
        x[i] /= a[i * n + i];
    }
    for (uint32_t i = n; i-- > 0;) {
        for (uint32_t k = i + 1; k < n; k++) x[i] -= a[k * n + i] * x[k];
        x[i] /= a[i * n + i];
    }
    return true;
}

static double dot(const float *a, const float *b, uint32_t n) {
    double s = 0;
    for (uint32_t i = 0; i < n; i++) s += (double)a[i] * (double)b[i];
    return s;
}

/* A scale moved by d as it is stored, at least an eighth of what it was: a group is not given up. Returns what d has become. */
static double stored(const job *j, float was, double d, float *scale) {
    const lq_plane_desc *p = &j->q->sch.scale;
    float least = p->dtype == LQ_F32 ? 0x1p-126f : 0x1p-14f;
    if (!(was > 0)) return *scale = was, 0;
    *scale = lq_plane_round(p, (float)((double)was * fmax(1 + d, 0.125)));
    if (!(*scale >= least && isfinite(*scale))) *scale = was;
    return (double)*scale / (double)was - 1;
}

/* sum over k of a_gk x_k, of the lower triangle of a */
static double row_sum(const double *a, uint32_t n, uint32_t g, const double *x) {
    double s = 0;
    for (uint32_t k = 0; k < n; k++) s += a[g > k ? (size_t)g * n + k : (size_t)k * n + g] * x[k];
    return s;
}

/* Rounding and bounds move one scale, the others follow: one at a time, to the nearest that is stored. */
static void descend(const job *j, const double *a, const double *b, const float *was, double *x, float *scale) {
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        bool moved = false;
        for (uint32_t g = 0; g < j->n; g++) {
            double own = a[(size_t)g * j->n + g], rest = own > 0 ? b[g] - row_sum(a, j->n, g, x) + own * x[g] : 0;
            float s = scale[g];
            double d = own > 0 ? stored(j, was[g], rest / own, &s) : x[g];
            if (d == x[g] || !(own * d * d - 2 * rest * d < own * x[g] * x[g] - 2 * rest * x[g])) continue;
            x[g] = d;
            scale[g] = s;
            moved = true;
        }
        if (!moved) return;
    }
}

static void fit_row(const job *j, uint32_t row, const double *sys, double *a, double *x, float *scale) {
    const lq_plane_desc *p = &j->q->sch.scale;
    uint32_t n = j->n;
    const double *b = sys + (size_t)n * n;
    float *was = scale + n;
    double change = 0;
    memcpy(a, sys, (size_t)n * n * sizeof *a);
    memcpy(x, b, n * sizeof *x);
    for (uint32_t g = 0; g < n; g++) {
        was[g] = lq_plane_get(p, &j->q->scale, lq_plane_index(p, j->q->cols, row, g * j->group));
        if (a[g * n + g] <= 0) a[g * n + g] = 1; /* a group of zeros: its right side is zero too */
        a[g * n + g] *= 1 + 1e-9;
    }
    if (!solve(a, n, x)) memset(x, 0, n * sizeof *x);
    for (uint32_t g = 0; g < n; g++) x[g] = stored(j, was[g], x[g], &scale[g]);
    descend(j, sys, b, was, x, scale);
    for (uint32_t g = 0; g < n; g++) change += x[g] * (row_sum(sys, n, g, x) - 2 * b[g]);
    for (uint32_t g = 0; g < n && change < 0; g++) lq_plane_set(p, &j->q->scale, lq_plane_index(p, j->q->cols, row, g * j->group), scale[g]);
}

static void fit_slice(void *arg, size_t i) {
    const job *j = arg;
    uint32_t k = j->q->cols, r0 = (uint32_t)i * ROWS, nr = j->q->rows - r0 < ROWS ? j->q->rows - r0 : ROWS, n = j->n;
    size_t size = (size_t)ROWS * k, sys = (size_t)n * n + n, all = (ROWS * sys + (size_t)n * n + 2 * n);
    float *v = j->scratch + 4 * size * (size_t)lq_worker(), *e = v + size, *eh = e + size, *vh = eh + size;
    double *s = j->system + all * (size_t)lq_worker(), *a = s + ROWS * sys, *x = a + (size_t)n * n;
    memset(v, 0, 2 * size * sizeof *v);
    for (uint32_t r = 0; r < nr; r++) {
        lq_qtensor_decode_row(j->q, r0 + r, v + (size_t)r * k);
        for (uint32_t c = 0; c < k; c++) e[(size_t)r * k + c] = j->w[(size_t)(r0 + r) * k + c] - v[(size_t)r * k + c];
    }
    lq_gemm_nn(e, k, j->h, k, eh, k, ROWS, k, k, 1, false);
    for (uint32_t g = 0; g < n; g++) {
        uint32_t c0 = g * j->group;
        lq_gemm_nn(v + c0, k, j->h + (size_t)c0 * k, k, vh, k, ROWS, k, j->group, 1, false);
        for (uint32_t r = 0; r < nr; r++) {
            const float *vr = v + (size_t)r * k;
            double *m = s + r * sys;
            for (uint32_t o = 0; o <= g; o++) m[(size_t)g * n + o] = dot(vh + (size_t)r * k + o * j->group, vr + o * j->group, j->group);
            m[(size_t)g * n + g] += j->damp * dot(vr + c0, vr + c0, j->group);
            m[(size_t)n * n + g] = dot(eh + (size_t)r * k + c0, vr + c0, j->group) + j->damp * dot(e + (size_t)r * k + c0, vr + c0, j->group);
        }
    }
    for (uint32_t r = 0; r < nr; r++) fit_row(j, r0 + r, s + r * sys, a, x, (float *)(void *)(x + n));
}

lq_status lq_rescale(lq_ctx *ctx, const float *w, const float *h, double damp, lq_qtensor *q) {
    const lq_plane_desc *p = &q->sch.scale;
    uint32_t k = q->cols, group = p->tile_c ? p->tile_c : k, n = k / group;
    double mean = 0;
    for (uint32_t c = 0; c < k; c++) mean += (double)h[(size_t)c * k + c] / k;
    job j = {.w = w, .h = h, .q = q, .damp = damp * mean, .group = group, .n = n};
    size_t workers = (size_t)lq_threads(), each = ROWS * ((size_t)n * n + n) + (size_t)n * n + 2 * n;
    j.scratch = LQ_NEWN(float, workers * 4 * ROWS * k);
    j.system = LQ_NEWN(double, workers * each);
    lq_status st = j.scratch && j.system ? LQ_OK : lq_oom(ctx, workers * (4 * ROWS * k * sizeof(float) + each * sizeof(double)));
    if (!st) lq_parallel_for((q->rows + ROWS - 1) / ROWS, fit_slice, &j);
    lq_free(j.scratch);
    lq_free(j.system);
    return st;
}
