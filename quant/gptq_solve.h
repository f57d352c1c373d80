/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The two halves of GPTQ: the factor of a Hessian, and the loop that rounds rows against it with feedback. */
#ifndef LQ_GPTQ_SOLVE_H
#define LQ_GPTQ_SOLVE_H
#include "core/qtensor.h"
#include "kernels/linalg.h"

/* What the loop needs of H, in processing order. With H = R R^T, R upper triangular, the feedback on column j is
 * sum over i < j of E_i R_ij / R_jj. */
typedef struct lq_gptq_factor {
    uint32_t k;
    uint32_t *perm;    /* [k] column processed i-th */
    float *feed;       /* [k][k] R_ij / R_jj for i < j, else 0 */
    double *pivot;     /* [k] R_jj */
    float *h;          /* [k][k] the undamped H in column order, for the guard */
    float *weight;     /* [k] by column, for the scale search: geometric mean of the damped H_jj and R_jj^2, which is what the loop
                        * pays for missing a_j; the diagonal alone when there is no factor; dead columns get the damping */
    double damp;       /* damping that worked, relative to the mean diagonal; own: relative to each column's own */
    bool own;
    uint32_t dead;     /* columns with H_ii = 0 */
    char failed[128];  /* not empty: H could not be factored at any damping, feed is NULL, and why */
    void *mem;
} lq_gptq_factor;

/* damp >= 0, relative to the mean diagonal; grows tenfold while H is not positive definite, then is taken on each column's
 * own diagonal. order: process columns by falling diagonal. LQ_ERR_QUALITY: H is not finite, naming the column. */
lq_status lq_gptq_factor_init(lq_ctx *ctx, lq_gptq_factor *f, const lq_gram *g, double damp, bool order);
void lq_gptq_factor_free(lq_gptq_factor *f);

typedef struct lq_gptq_sums {  /* sums over the matrix */
    double rtn, gptq, w;       /* tr(E H E^T) of rounding, of the codes kept, tr(W H W^T) on the undamped H */
    double damped;             /* sum of the loop's own loss terms: tr(E (H + damping) E^T) before the guard */
    uint32_t guarded;          /* rows where plain rounding was better and was kept */
} lq_gptq_sums;

/* Codes of q (planes already set) from w[rows][cols]; block: columns per update. guard: keep the better of this and plain
 * rounding for every row. Parallel over fixed slices of rows; a row's codes do not depend on the other rows. */
lq_status lq_gptq_solve(lq_ctx *ctx, const lq_gptq_factor *f, const float *w, uint32_t block, bool guard, lq_qtensor *q, lq_gptq_sums *sums);
#endif
