/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Inside calib: one block walked stage by stage over all sequences; block.c and experts.c are its two halves. */
#ifndef LQ_WALK_H
#define LQ_WALK_H
#include "calib/forward.h"
#include "calib/run.h"

enum { LQ_WALK_STAGES = LQ_MAX_OPS };

typedef struct lq_cuts {       /* the cuts of a block's table */
    uint32_t n_ops, n_stages;
    uint32_t cut[LQ_WALK_STAGES + 2];         /* segment s: ops [cut[s], cut[s+1]); stage s reads at cut[s+1] */
    uint32_t stage[LQ_WALK_STAGES];           /* its number in lq_arch_stages */
    uint8_t input[LQ_WALK_STAGES];            /* tensor the stage's linears read */
    bool stored[LQ_WALK_STAGES + 2][T_N];     /* tensors kept in the cache across cut s */
    int32_t again[LQ_WALK_STAGES + 2][T_N];   /* op that makes the tensor from the residual stream again; -1 */
    bool writes_resid[LQ_WALK_STAGES + 2];
} lq_cuts;

typedef struct lq_walk_group { uint32_t first, n, tokens; } lq_walk_group; /* sequences run together: several short ones, or one */

typedef struct lq_walk {
    lq_ctx *ctx;
    lq_model *m;
    int32_t b;
    lq_cache *resid, *live;    /* live: item = chunk */
    lq_cache *copy;            /* lq_block_look: the stream as this block changes it; resid itself stays */
    bool copied;               /* every item is in it */
    lq_cache *inputs[LQ_WALK_STAGES]; /* what the stages read in the unquantized model; item = chunk; CROSS */
    const uint32_t *len;
    uint64_t stats_budget;     /* bytes for the statistics of several experts at a time */
    lq_cuts p;
    lq_run run;
    lq_walk_group *groups;
    uint32_t n_groups, n_chunks, widest; /* widest: tokens of the largest group */
    float *stream, *keys, *values, *keep; /* of a group; keep: the stored tensors of a chunk, one after the other */
    lq_span *spans;
} lq_walk;

typedef struct lq_chunk { uint32_t index, n, n_spans, sequence; } lq_chunk; /* n tokens; their spans are in w->spans; sequence: of the first */
typedef lq_status (*lq_chunk_fn)(lq_walk *w, const lq_chunk *c, void *user);
/* fn for every chunk, w->run holding what lives across cut s; keep: the residual stream goes back to its cache. */
lq_status lq_walk_chunks(lq_walk *w, uint32_t s, bool keep, lq_chunk_fn fn, void *user);
/* The stages between the ROUTE at cut s + 1 and its MERGE, for every expert. layer: statistics of all tokens, NULL: none wanted. */
lq_status lq_walk_experts(lq_walk *w, uint32_t s, const lq_stage_hook *hook, const lq_stats *layer, const char *dir);
/* Every 8th sequence is held out; of fewer than 8 the last one. */
bool lq_walk_held(const lq_walk *w, uint32_t sequence);
#endif
