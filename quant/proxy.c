/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* err_h = tr(E H E^T) / tr(W H W^T), E = W - Q: rows are independent, so a slice of rows costs one product E H and a dot
 * product per row. Products in fp32, sums over columns in fp64. */
#include "quant/proxy.h"

#include "core/thread.h"
#include "kernels/kernels.h"

#include <string.h>

typedef struct hessian_job { const lq_gram *g; float *out; } hessian_job;

static void hessian_row(void *arg, size_t i) {
    hessian_job *j = arg;
    uint32_t k = j->g->k;
    double scale = j->g->n ? 1.0 / (double)j->g->n : 0;
    for (uint32_t c = 0; c < k; c++) j->out[i * k + c] = (float)(lq_gram_at(j->g, (uint32_t)i, c) * scale);
}

void lq_proxy_hessian(const lq_gram *g, float *out) {
    hessian_job j = {g, out};
    lq_parallel_for(g->k, hessian_row, &j);
}

void lq_proxy_rows(const float *h, uint32_t k, const float *e, float *scratch, double *loss) {
    lq_gemm_nn(e, k, h, k, scratch, k, LQ_PROXY_ROWS, k, k, 1, false);
    for (int r = 0; r < LQ_PROXY_ROWS; r++) {
        double sum = 0;
        for (uint32_t c = 0; c < k; c++) sum += (double)e[(size_t)r * k + c] * (double)scratch[(size_t)r * k + c];
        loss[r] = sum > 0 ? sum : 0; /* rounding may push a zero below */
    }
}

typedef struct error_job {
    const float *w, *h;
    const lq_qtensor *q;
    float *scratch;  /* [workers][2][LQ_PROXY_ROWS][cols] */
    double *sums;    /* [slices][2]: error, weights */
} error_job;

static double total(const double *v) {
    double s = 0;
    for (int r = 0; r < LQ_PROXY_ROWS; r++) s += v[r];
    return s;
}

static void error_slice(void *arg, size_t slice) {
    error_job *j = arg;
    const lq_qtensor *q = j->q;
    size_t k = q->cols, size = LQ_PROXY_ROWS * k;
    uint32_t r0 = (uint32_t)slice * LQ_PROXY_ROWS, nr = q->rows - r0 < LQ_PROXY_ROWS ? q->rows - r0 : LQ_PROXY_ROWS;
    float *e = j->scratch + 2 * size * (size_t)lq_worker(), *g = e + size;
    const float *w = j->w + r0 * k;
    double loss[LQ_PROXY_ROWS];
    memset(e, 0, size * sizeof *e);
    memcpy(e, w, nr * k * sizeof *e);
    lq_proxy_rows(j->h, q->cols, e, g, loss);
    j->sums[2 * slice + 1] = total(loss);
    lq_kernels_best()->dequant(q, r0, nr, e);
    for (size_t i = 0; i < nr * k; i++) e[i] = w[i] - e[i];
    lq_proxy_rows(j->h, q->cols, e, g, loss);
    j->sums[2 * slice] = total(loss);
}

lq_status lq_proxy_error(lq_ctx *ctx, const float *w, const lq_qtensor *q, const lq_gram *g, double *err_h) {
    size_t k = q->cols, slices = (q->rows + LQ_PROXY_ROWS - 1) / LQ_PROXY_ROWS, per_worker = 2 * LQ_PROXY_ROWS * k;
    float *h = lq_calloc(k * k, sizeof *h), *scratch = lq_calloc(per_worker * (size_t)lq_threads(), sizeof *scratch);
    double *sums = lq_calloc(2 * slices, sizeof *sums);
    lq_status st = h && scratch && sums ? LQ_OK : lq_oom(ctx, k * k * sizeof *h);
    if (!st) {
        lq_proxy_hessian(g, h);
        error_job j = {w, h, q, scratch, sums};
        lq_parallel_for(slices, error_slice, &j);
        double err = 0, all = 0;
        for (size_t i = 0; i < slices; i++) {
            err += sums[2 * i];
            all += sums[2 * i + 1];
        }
        *err_h = all > 0 ? err / all : 0;
    }
    lq_free(sums);
    lq_free(scratch);
    lq_free(h);
    return st;
}

typedef struct weight_job { const float *w; const lq_qtensor *q; float *scratch; double *sums; } weight_job;

static void weight_slice(void *arg, size_t slice) {
    const weight_job *j = arg;
    size_t k = j->q->cols;
    uint32_t r0 = (uint32_t)slice * LQ_PROXY_ROWS, nr = j->q->rows - r0 < LQ_PROXY_ROWS ? j->q->rows - r0 : LQ_PROXY_ROWS;
    float *wq = j->scratch + LQ_PROXY_ROWS * k * (size_t)lq_worker();
    const float *w = j->w + r0 * k;
    double err = 0, all = 0;
    lq_kernels_best()->dequant(j->q, r0, nr, wq);
    for (size_t i = 0; i < nr * k; i++) {
        double d = w[i] - (double)wq[i];
        err += d * d;
        all += (double)w[i] * w[i];
    }
    j->sums[2 * slice] = err;
    j->sums[2 * slice + 1] = all;
}

lq_status lq_weight_error(lq_ctx *ctx, const float *w, const lq_qtensor *q, double *err_w) {
    size_t slices = (q->rows + LQ_PROXY_ROWS - 1) / LQ_PROXY_ROWS, n = LQ_PROXY_ROWS * (size_t)q->cols * (size_t)lq_threads();
    weight_job j = {w, q, lq_calloc(n, sizeof *w), lq_calloc(2 * slices, sizeof(double))};
    lq_status st = j.scratch && j.sums ? LQ_OK : lq_oom(ctx, n * sizeof *w);
    if (!st) {
        double err = 0, all = 0;
        lq_parallel_for(slices, weight_slice, &j);
        for (size_t i = 0; i < slices; i++) {
            err += j.sums[2 * i];
            all += j.sums[2 * i + 1];
        }
        *err_w = all > 0 ? err / all : 0;
    }
    lq_free(j.scratch);
    lq_free(j.sums);
    return st;
}
