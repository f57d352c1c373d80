/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The target a linear should hit when what it reads is already quantized. */
#ifndef LQ_TARGET_H
#define LQ_TARGET_H
#include "quant/method.h"

typedef struct lq_target {
    double alpha, damp;        /* chosen; alpha 0: the weights as they are */
    double held_before, held_after; /* held-out |W x - W' x^|^2 less |W (x - x^)|^2, per token: 0, and with the chosen pair */
} lq_target;
/* out[rows][cols] = W + alpha W D (H + lambda I)^-1 with H = mean x^ x^^T, D = mean (x - x^) x^^T of stats (CROSS): alpha in 0, 1/2, 1
 * and lambda in 0.01, 0.1, 1 mean diagonals are those that do best on the held-out sequences; without any, 1/2 and 1. D = 0
 * gives W bit for bit. Parallel, same bits at any thread count. Sources: algorithms.md 6, 26 B; QEP (Arai & Ichikawa 2025). */
lq_status lq_target_correct(lq_ctx *ctx, const lq_weights *w, const lq_stats *stats, float *out, lq_target *info);
#endif
