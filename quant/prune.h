/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What the pruning methods share: which weights of a row go, and SparseGPT's loop. */
#ifndef LQ_PRUNE_H
#define LQ_PRUNE_H
#include "quant/gptq_solve.h"
#include "quant/method.h"

typedef struct lq_prune { double sparsity; int pattern; } lq_prune; /* options of both methods; pattern: index of LQ_PRUNE_PATTERNS */
#define LQ_PRUNE_PATTERNS "none|2:4|4:8|2of4|4of8" /* the last two for recipes, where ':' separates */
extern const lq_opt lq_prune_options[];

/* Grids that hold 0 exactly and patterns that divide the columns. */
lq_status lq_prune_accept(lq_ctx *ctx, const lq_prune *p, uint32_t cols, const lq_scheme *s);
uint32_t lq_prune_group(const lq_prune *p); /* m of n:m; 0: unstructured. Half of a group goes. */
/* mask[n] = 1 for the weights of smallest score >= 0: half of each group, or `count` in all. */
void lq_prune_mask(const lq_prune *p, const float *score, uint32_t n, uint32_t count, uint8_t *mask);
uint32_t lq_prune_count(const lq_prune *p, uint32_t cols); /* weights that go among the first cols of a row */
/* Wanda (Sun et al. 2023, arXiv 2306.11695): score |w| |x_c|, compared within a row (or group), nothing else changes. q, initialised, gets
 * planes and codes; stats NULL: by magnitude. */
lq_status lq_prune_wanda(lq_ctx *ctx, const lq_prune *p, const lq_weights *w, const lq_stats *stats, lq_qtensor *q);
/* SparseGPT from where lq_prune_wanda left q: rows where the loop's proxy loss is lower take its codes. */
lq_status lq_prune_sparsegpt(lq_ctx *ctx, const lq_prune *p, const lq_gptq_factor *f, const float *w, lq_qtensor *q, lq_gptq_sums *sums);
/* o's zeros and bytes_packed: half-empty groups as 2:4 hardware stores them (values and two bits each), else values and one bit per weight. */
lq_status lq_prune_report(lq_ctx *ctx, const lq_prune *p, const lq_qtensor *q, lq_outcome *o);
#endif
