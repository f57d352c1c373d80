/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Sums of a b^T over tokens, and systems with the factor of linalg_chol.c. */
#include "kernels/linalg.h"

#include "core/thread.h"
#include "kernels/blas.h"

enum { T = LQ_GRAM_TILE, WIDE = 512 };

typedef struct batch { double *sum; const float *a, *b; uint32_t k, n; } batch;

static void add_rows(void *arg, size_t i) {
    const batch *j = arg;
    float part[T * WIDE];
    uint32_t r0 = (uint32_t)i * T, rows = j->k - r0 < T ? j->k - r0 : T;
    for (uint32_t t0 = 0; t0 < j->n; t0 += LQ_GRAM_CHUNK)
        for (uint32_t c0 = 0; c0 < j->k; c0 += WIDE) {
            uint32_t n = j->n - t0 < LQ_GRAM_CHUNK ? j->n - t0 : LQ_GRAM_CHUNK, cols = j->k - c0 < WIDE ? j->k - c0 : WIDE;
            cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)rows, (blasint)cols, (blasint)n, 1, j->a + (size_t)t0 * j->k + r0,
                        (blasint)j->k, j->b + (size_t)t0 * j->k + c0, (blasint)j->k, 0, part, WIDE);
            for (uint32_t r = 0; r < rows; r++)
                for (uint32_t c = 0; c < cols; c++) j->sum[(size_t)(r0 + r) * j->k + c0 + c] += (double)part[r * WIDE + c];
        }
}

void lq_cross_add(double *sum, uint32_t k, const float *a, const float *b, uint32_t n) {
    lq_blas_single();
    lq_parallel_for((k + T - 1) / T, add_rows, &(batch){sum, a, b, k, n});
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
