/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Private to kernels/linalg*: OpenBLAS held to one thread. Concurrent calls from our own threads are safe in every OpenBLAS
 * build as long as it starts no threads itself. */
#ifndef LQ_BLAS_H
#define LQ_BLAS_H
#include <cblas.h>

void lq_blas_single(void); /* cheap after the first call; every public entry of linalg makes it */
/* LAPACK's Cholesky of the column-major matrix a; info > 0: pivot of that number (from 1) is not positive. */
void dpotrf_(const char *uplo, const int *n, double *a, const int *lda, int *info);
/* LAPACK's eigenvalues il..iu (from 1, ascending) of a symmetric matrix. */
void dsyevr_(const char *jobz, const char *range, const char *uplo, const int *n, double *a, const int *lda, const double *vl, const double *vu,
             const int *il, const int *iu, const double *abstol, int *m, double *w, double *z, const int *ldz, int *isuppz, double *work,
             const int *lwork, int *iwork, const int *liwork, int *info);
#endif
