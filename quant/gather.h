/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Statistics of a whole model in one fp pass, stage by stage: what `lquant calibrate` writes and --rotate auto judges by. */
#ifndef LQ_GATHER_H
#define LQ_GATHER_H
#include "calib/corpus.h"
#include "calib/forward.h"
#include "core/progress.h"

typedef struct lq_gather {
    const lq_rows *rows;
    unsigned needs;              /* LQ_NEED_* */
    uint64_t cache_budget;
    const char *work_dir;
    lq_status (*on_stage)(void *user, const lq_stage *stage, const lq_stats *stats); /* weights stay as they are; the head's stage comes last */
    void *user;
} lq_gather;
lq_status lq_gather_run(lq_ctx *ctx, lq_model *m, const lq_gather *g);
/* The residual stream before block 0, one item per row. */
lq_status lq_gather_embed(lq_ctx *ctx, lq_model *m, const lq_rows *rows, uint64_t budget, const char *work_dir, lq_cache **out);
/* Adds what the head multiplies, of every row of the residual stream behind the last block; the outer tensors are loaded. */
lq_status lq_gather_head(lq_ctx *ctx, lq_model *m, const lq_rows *rows, lq_cache *resid, lq_stats *stats);
#endif
