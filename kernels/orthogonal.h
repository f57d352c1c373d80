/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Orthogonal matrices that spread a vector's energy over all its coordinates, in fp64 and n log n operations.
 *
 *   Q = D (S x B) / sqrt(n)     D random signs, S the Sylvester-Hadamard matrix of order p = 2^m, B a base of order k, n = p k
 *
 * B is a Hadamard matrix of Paley's two constructions (J. Math. Phys. 12, 1933) where one of an order k <= 256 makes n, else
 * sqrt(k) times a random orthogonal matrix of n's odd part. Rotations: Ashkboos et al. 2024, arXiv 2404.00456, section 3. */
#ifndef LQ_ORTHOGONAL_H
#define LQ_ORTHOGONAL_H
#include "core/mem.h"

enum { LQ_ORTHOGONAL_ODD = 2048 }; /* an odd part beyond it is refused */

typedef struct lq_orthogonal {
    uint32_t n, p, k;
    bool hadamard;             /* every entry is +-1/sqrt(n) */
    double *base;              /* [k][k], with the factor 1/sqrt(n) or 1/sqrt(p) */
    double *sign;              /* [n] +-1 */
} lq_orthogonal;

/* The same (n, seed, stream) gives the same matrix everywhere. LQ_ERR_UNSUPPORTED when n has too large an odd part. */
lq_status lq_orthogonal_init(lq_ctx *ctx, lq_orthogonal *q, uint32_t n, uint64_t seed, uint64_t stream);
/* v[n] <- v Q (a row vector), on one thread; scratch[n]. */
void lq_orthogonal_apply(const lq_orthogonal *q, double *v, double *scratch);
/* v[n] <- v Q^T */
void lq_orthogonal_undo(const lq_orthogonal *q, double *v, double *scratch);
void lq_orthogonal_free(lq_orthogonal *q);
#endif
