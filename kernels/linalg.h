/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Dense linear algebra over OpenBLAS, always called single-threaded on fixed tiles; parallelism is ours and never changes
 * a bit of the result. All matrices row-major. */
#ifndef LQ_LINALG_H
#define LQ_LINALG_H
#include "core/mem.h"

/* Y[n][rows] = X[n][cols] W[rows][cols]^T; strides in floats. Parallel inside. */
void lq_matmul(const float *x, size_t ldx, const float *w, size_t ldw, float *y, size_t ldy, uint32_t n, uint32_t rows,
               uint32_t cols);
/* The same on one thread, for callers that are parallel themselves; accumulate: Y += ... */
void lq_gemm_nt(const float *x, size_t ldx, const float *w, size_t ldw, float *y, size_t ldy, uint32_t n,
                uint32_t rows, uint32_t cols, bool accumulate);
/* Y[n][m] (+)= A[n][k] B[k][m], one thread */
void lq_gemm_nn(const float *a, size_t lda, const float *b, size_t ldb, float *y, size_t ldy, uint32_t n,
                uint32_t m, uint32_t k, float alpha, bool accumulate);

/* Gram matrix sum of x x^T over tokens: lower triangle of fixed square tiles, products of a chunk of tokens in fp32, sums in
 * fp64: about 4 cols^2 bytes. The result does not depend on how tokens are split over calls as long as calls are multiples
 * of LQ_GRAM_CHUNK tokens or a sequence's end. */
enum { LQ_GRAM_TILE = 128, LQ_GRAM_CHUNK = 1024 };
typedef struct lq_gram { uint32_t k; uint64_t n; double *tiles; } lq_gram;
lq_status lq_gram_init(lq_ctx *ctx, lq_gram *g, uint32_t k);
/* x[n][k], stride in floats; parallel inside. A chunk's copy while it runs: at most 4 LQ_GRAM_CHUNK k bytes. LQ_ERR_RESOURCE: nothing was added. */
lq_status lq_gram_add(lq_ctx *ctx, lq_gram *g, const float *x, size_t ldx, uint32_t n);
void lq_gram_set(lq_gram *g, uint32_t i, uint32_t j, double v);
double lq_gram_at(const lq_gram *g, uint32_t i, uint32_t j);
/* Full symmetric matrix, divided by the token count, as double out[k][k] (ld = k). */
void lq_gram_full(const lq_gram *g, double *out);
double lq_gram_trace(const lq_gram *g);
void lq_gram_mix(lq_gram *g, const lq_gram *other, double c); /* g += c other, of the same size; parallel inside */
void lq_gram_free(lq_gram *g);

/* H = R R^T with R upper triangular (Cholesky of the index-reversed matrix), in place, fp64, blocked and parallel with fixed
 * tiles. a[k][k] row-major, symmetric on entry; on return the upper triangle holds R and the strict lower is zero.
 * false when not positive definite (a is then garbage); *bad = the pivot's index. Source: algorithms.md 5.2 step 5. */
bool lq_cholesky_upper(double *a, uint32_t k, uint32_t *bad);

/* sum[k][k] += sum over n tokens of a b^T, a[n][k], b[n][k]: chunks in fp32, sums in fp64, as in lq_gram_add, with two copies. Parallel. */
lq_status lq_cross_add(lq_ctx *ctx, double *sum, uint32_t k, const float *a, const float *b, uint32_t n);
/* One thread each: y[n][m] = a[n][k] b[k][m];  b[n][k] <- b (R R^T)^-1;  b[n][k] <- b R^-1, R of lq_cholesky_upper. */
void lq_dgemm_nn(const double *a, const double *b, double *y, uint32_t n, uint32_t m, uint32_t k);
void lq_cholesky_solve(const double *r, uint32_t k, double *b, uint32_t n);
void lq_cholesky_solve_half(const double *r, uint32_t k, double *b, uint32_t n);
/* The n largest eigenvalues (ascending) of the symmetric a[k][k] (destroyed) into values[k] and their unit vectors, one after the
 * other, into vectors[n][k]. work: LQ_EIGEN_WORK k doubles, iwork: 12 k. LAPACK dsyevr; false: it failed. */
enum { LQ_EIGEN_WORK = 32 };
bool lq_eigen_top(double *a, uint32_t k, uint32_t n, double *values, double *vectors, double *work, int32_t *iwork);
#endif
