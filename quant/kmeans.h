/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Weighted k-means on a line, exactly, and per-row codebooks made of it. */
#ifndef LQ_KMEANS_H
#define LQ_KMEANS_H
#include "core/qtensor.h"

enum { LQ_KMEANS_MAX = 256 };
typedef struct lq_kmeans_point { float x, h; uint32_t at; } lq_kmeans_point;
typedef struct lq_kmeans {     /* room for one thread */
    lq_kmeans_point *p;        /* [n] caller's points; sorted by lq_kmeans_run */
    double *sum;               /* [3][n + 1] prefix sums */
    double *cost;              /* [2][n] */
    uint32_t *from;            /* [k][n] first point of the last cluster */
    size_t n;
    uint32_t k;
} lq_kmeans;
lq_status lq_kmeans_init(lq_ctx *ctx, lq_kmeans *m, size_t n, uint32_t k); /* at most n points, k clusters (<= LQ_KMEANS_MAX) */
void lq_kmeans_free(lq_kmeans *m);
/* center[k], ascending, of the first n points (n >= 1, weights h >= 0, all zero counts as all one) minimising sum h (x - center)^2 over
 * all ways to choose k centers; returns the minimum. Fewer distinct points than k: the last center is repeated. Deterministic. */
double lq_kmeans_run(lq_kmeans *m, size_t n, uint32_t k, double *center);

/* Tables of q (LUT of its own per row) from w[rows][cols]: exact k-means of each row, rounded to F16, ascending. h: sensitivities,
 * row r at h + r * stride (stride 0: one row for all); NULL: all one. skip[rows][cols]: points that are left out, or NULL. Parallel
 * over rows. LQ_ERR_RESOURCE; LQ_ERR_UNSUPPORTED for another grid. */
lq_status lq_lut_fit(lq_ctx *ctx, lq_qtensor *q, const float *w, const float *h, size_t stride, const uint8_t *skip);
#endif
