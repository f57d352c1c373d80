/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* H = R R^T with R upper triangular, by tiles, from the last tile column to the first:
 *
 *   A_ij  -=  sum over l > j of R_il R_jl^T      for all i <= j, one product each, in parallel
 *   A_jj   =  R_jj R_jj^T                        a Cholesky of the index-reversed tile
 *   R_ij   =  A_ij R_jj^-T                       for all i < j, in parallel
 *
 * Each tile is written by one task and its terms are summed in one call, so the thread count changes no bit.
 * GPTQ needs only this factor: its U is R^-1. Left-looking blocked Cholesky, Golub & Van Loan, Matrix Computations, 4.2. */
#include "kernels/linalg.h"

#include "core/thread.h"
#include "kernels/blas.h"

#include <math.h>

enum { T = 128 };

typedef struct chol { double *a; uint32_t k, j; } chol; /* j: the tile column at work */

static uint32_t tile_size(uint32_t k, uint32_t t) { return k - t * T < T ? k - t * T : T; }
static double *tile(const chol *c, uint32_t i, uint32_t j) { return c->a + (size_t)i * T * c->k + (size_t)j * T; }

static void update(void *arg, size_t i) {
    const chol *c = arg;
    uint32_t done = (c->j + 1) * T;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, T, (blasint)tile_size(c->k, c->j), (blasint)(c->k - done), -1,
                tile(c, (uint32_t)i, c->j + 1), (blasint)c->k, tile(c, c->j, c->j + 1), (blasint)c->k, 1,
                tile(c, (uint32_t)i, c->j), (blasint)c->k);
}

static void solve(void *arg, size_t i) {
    const chol *c = arg;
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, T, (blasint)tile_size(c->k, c->j), 1,
                tile(c, c->j, c->j), (blasint)c->k, tile(c, (uint32_t)i, c->j), (blasint)c->k);
}

/* Reversing rows and columns turns the upper factor into LAPACK's: a row-major lower triangle is a column-major upper one. */
static bool factor_diagonal(const chol *c, uint32_t *bad) {
    double rev[T * T];
    double *a = tile(c, c->j, c->j);
    int n = (int)tile_size(c->k, c->j), info = 0;
    for (int r = 0; r < n; r++)
        for (int s = r; s < n; s++) rev[(n - 1 - r) * n + n - 1 - s] = a[(size_t)r * c->k + s];
    dpotrf_("U", &n, rev, &n, &info);
    for (int p = 0; p < n && !info; p++)
        if (!(rev[p * n + p] > 0) || !isfinite(rev[p * n + p])) info = p + 1; /* NaN passes OpenBLAS's own test */
    if (info) {
        *bad = c->j * T + (uint32_t)(n - info);
        return false;
    }
    for (int r = 0; r < n; r++)
        for (int s = r; s < n; s++) a[(size_t)r * c->k + s] = rev[(n - 1 - r) * n + n - 1 - s];
    return true;
}

static void clear_lower(void *arg, size_t t) {
    const chol *c = arg;
    for (uint32_t r = (uint32_t)t * T; r < c->k && r < (uint32_t)(t + 1) * T; r++)
        for (uint32_t s = 0; s < r; s++) c->a[(size_t)r * c->k + s] = 0;
}

bool lq_cholesky_upper(double *a, uint32_t k, uint32_t *bad) {
    uint32_t tiles = (k + T - 1) / T;
    chol c = {a, k, 0};
    lq_blas_single();
    for (uint32_t j = tiles; j-- > 0;) {
        c.j = j;
        if (j + 1 < tiles) lq_parallel_for(j + 1, update, &c);
        if (!factor_diagonal(&c, bad)) return false;
        lq_parallel_for(j, solve, &c);
    }
    lq_parallel_for(tiles, clear_lower, &c);
    return true;
}
