/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Activation statistics of one stage (the linears that read one tensor). */
#ifndef LQ_STATS_H
#define LQ_STATS_H
#include "kernels/linalg.h"

enum { LQ_NEED_ABSMAX = 1, LQ_NEED_GRAM = 2, LQ_NEED_SAMPLES = 4, LQ_NEED_CROSS = 8, LQ_NEED_SQUARES = 16 };

typedef struct lq_stats {
    unsigned needs;
    uint32_t cols;
    uint64_t n;        /* tokens seen */
    uint64_t routed;   /* of an expert: tokens routed to it; without any, n counts those of its prior */
    float *absmax;     /* [cols] max |x|      (ABSMAX) */
    double *abssum;    /* [cols] sum |x|      (ABSMAX) */
    double *squares;   /* [cols] sum x^2        (SQUARES) */
    lq_gram gram;      /* sum x x^T           (GRAM) */
    double *cross;     /* [cols][cols] sum (x_fp - x) x^T, x_fp: the same token in the unquantized model (CROSS, with GRAM) */
    lq_gram held;      /* of the held-out sequences (every 8th) alone: gram, cross (CROSS) */
    double *held_cross;
    float *samples;    /* [n_samples][cols] tokens 0, stride, 2 stride ... (SAMPLES): at most LQ_SAMPLES, at least half of that when there are as many */
    uint32_t n_samples;
    uint64_t stride;
} lq_stats;
enum { LQ_SAMPLES = 1024 };
lq_status lq_stats_init(lq_ctx *ctx, lq_stats *s, unsigned needs, uint32_t cols);
/* x[n][cols]; LQ_ERR_QUALITY when a value is not finite, naming the column. */
lq_status lq_stats_add(lq_ctx *ctx, lq_stats *s, const float *x, uint32_t n);
/* The same for tokens of weight w[n]^2 in the Gram matrix and the squares (maxima and sums: 1). x is overwritten. */
lq_status lq_stats_add_weighted(lq_ctx *ctx, lq_stats *s, float *x, const float *w, uint32_t n);
/* s += c (tr G_s / tr G_prior) prior in the Gram matrix and CROSS, and the squares likewise; s without tokens becomes the prior. */
void lq_stats_shrink(lq_stats *s, const lq_stats *prior, double c);
/* sum x^2 of a column: of the Gram matrix, else of SQUARES; negative when neither was gathered. */
double lq_stats_second(const lq_stats *s, uint32_t c);
/* CROSS, after lq_stats_add of the same x: fp[n][cols] becomes fp - x. */
lq_status lq_stats_add_cross(lq_ctx *ctx, lq_stats *s, float *fp, const float *x, uint32_t n, bool held);
/* The statistics of x diag(1/by), by[cols] > 0: a fold divided the input. No CROSS. */
void lq_stats_divide(lq_stats *s, const float *by);
void lq_stats_free(lq_stats *s);
#endif
