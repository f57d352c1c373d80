/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What the methods of one and two bits share: exact scales, codes with or without feedback, and the gate before damage. */
#ifndef LQ_FEWBIT_H
#define LQ_FEWBIT_H
#include "quant/method.h"

/* The scale s and, for ternary, the support that minimise sum h (w - s t)^2 over t in {-1, 0, 1} (ternary) or {-1, 1}; h NULL: all one.
 * order: room for n indices. Exact: O(n log n) and O(n). 0 for weights that are all zero. */
double lq_ternary_scale(const float *w, const float *h, size_t n, uint32_t *order);
double lq_sign_scale(const float *w, const float *h, size_t n);
/* The two scales of w ~ a sign + b sign': greedy, then joint least squares while the error falls. a >= b >= 0. */
void lq_sign_scales2(const float *w, const float *h, size_t n, double *a, double *b);

typedef double (*lq_tile_scale)(const float *w, const float *h, size_t n, uint32_t *order);
/* Scale plane of q (tiles inside a row, or one of the whole matrix) by the given rule. h[cols] or NULL. Parallel over tiles. */
lq_status lq_fewbit_fit(lq_ctx *ctx, lq_qtensor *q, const float *w, const float *h, lq_tile_scale rule);
bool lq_fewbit_tiles(const lq_scheme *s, uint32_t cols); /* scale tiles lq_fewbit_fit knows */

/* Codes of q under its planes: by rounding (f NULL), or by GPTQ's loop against the factor, codes and scales of row groups by turns.
 * Fills o's errors. stats may be NULL. */
#define LQ_FEWBIT_DAMP 0.1 /* what both methods factor the Hessian with: errors are as large as the weights, and little energy is not none */
struct lq_gptq_factor;
lq_status lq_fewbit_codes(lq_ctx *ctx, const lq_weights *w, const struct lq_gptq_factor *f, const lq_stats *stats, lq_qtensor *q, lq_outcome *o);
/* LQ_ERR_UNSUPPORTED with the price unless forced or almost nothing (0.1 % of |W|^2) is lost. */
lq_status lq_fewbit_gate(lq_ctx *ctx, const char *what, bool force, const lq_outcome *o);
#endif
