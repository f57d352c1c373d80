/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Sums of a b^T over tokens, and systems with the factor of linalg_chol.c. */
#include "kernels/linalg.h"

#include "core/thread.h"
#include "kernels/blas.h"
#include "kernels/panels.h"

typedef struct batch { double *sum; const float *a, *b; uint32_t k, n; } batch; /* a, b: panels */

/* A pair of panels; one that has columns behind the last is summed apart. */
static void add_pair(void *arg, size_t pair) {
    const batch *j = arg;
    size_t panels = lq_panels(j->k), size = (size_t)j->n * LQ_PANEL, r = pair / panels * LQ_PANEL, c = pair % panels * LQ_PANEL;
    const float *a = j->a + pair / panels * size, *b = j->b + pair % panels * size;
    if (r + LQ_PANEL <= j->k && c + LQ_PANEL <= j->k) {
        lq_kernels_best()->panel_sums(a, b, j->n, j->sum + r * j->k + c, j->k);
        return;
    }
    double part[LQ_PANEL * LQ_PANEL] = {0};
    lq_kernels_best()->panel_sums(a, b, j->n, part, LQ_PANEL);
    for (size_t i = 0; i < LQ_PANEL && r + i < j->k; i++)
        for (size_t l = 0; l < LQ_PANEL && c + l < j->k; l++) j->sum[(r + i) * j->k + c + l] += part[i * LQ_PANEL + l];
}

lq_status lq_cross_add(lq_ctx *ctx, double *sum, uint32_t k, const float *a, const float *b, uint32_t n) {
    if (!n) return LQ_OK;
    uint32_t chunk = n < LQ_GRAM_CHUNK ? n : LQ_GRAM_CHUNK;
    size_t panels = lq_panels(k), size = panels * LQ_PANEL * chunk;
    float *packed = lq_panels_new(k, 2 * chunk);
    if (!packed) return lq_oom(ctx, 2 * size * sizeof *packed);
    for (uint32_t t = 0; t < n; t += chunk) {
        batch j = {sum, packed, packed + size, k, n - t < chunk ? n - t : chunk};
        lq_panels_pack(packed, a + (size_t)t * k, k, j.n, k);
        lq_panels_pack(packed + size, b + (size_t)t * k, k, j.n, k);
        lq_parallel_for(panels * panels, add_pair, &j);
    }
    lq_free(packed);
    return LQ_OK;
}

void lq_dgemm_nn(const double *a, const double *b, double *y, uint32_t n, uint32_t m, uint32_t k) {
    if (!n || !m) return;
    lq_blas_single();
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)n, (blasint)m, (blasint)k, 1, a, (blasint)k, b, (blasint)m, 0, y, (blasint)m);
}

void lq_cholesky_solve(const double *r, uint32_t k, double *b, uint32_t n) {
    lq_blas_single();
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, (blasint)n, (blasint)k, 1, r, (blasint)k, b, (blasint)k);
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, (blasint)n, (blasint)k, 1, r, (blasint)k, b, (blasint)k);
}

void lq_cholesky_solve_half(const double *r, uint32_t k, double *b, uint32_t n) {
    lq_blas_single();
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, (blasint)n, (blasint)k, 1, r, (blasint)k, b, (blasint)k);
}

bool lq_eigen_top(double *a, uint32_t k, uint32_t n, double *values, double *vectors, double *work, int32_t *iwork) {
    int order = (int)k, il = (int)(k - n + 1), iu = (int)k, found = 0, info = 0, lwork = LQ_EIGEN_WORK * (int)k, liwork = 10 * (int)k;
    double none = 0;
    lq_blas_single();
    dsyevr_("V", "I", "U", &order, a, &order, &none, &none, &il, &iu, &none, &found, values, vectors, &order, iwork + liwork, work, &lwork, iwork, &liwork, &info);
    return info == 0 && found == (int)n;
}
