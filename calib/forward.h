/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The forward pass: an interpreter of the architecture's op table over the kernel table. */
#ifndef LQ_FORWARD_H
#define LQ_FORWARD_H
#include "calib/cache.h"
#include "calib/model.h"
#include "calib/stats.h"

/* y[n][rows] = x[n][cols] W^T + bias on whatever the linear holds. One token: GEMV on the codes; more: row panels are
 * decoded into cache-sized scratch and multiplied. Parallel inside, same bits at any thread count. */
lq_status lq_linear_apply(lq_ctx *ctx, const lq_kernels *k, const lq_linear *lin, const float *x, uint32_t n, float *y);
/* Before the blocks: the residual stream [n][hidden] of tokens at positions pos, pos+1 .. of their sequence: rows of the embedding,
 * project_in, learned positions, the embedding's own norm, as far as the model has them. Ids are checked against the vocabulary. */
lq_status lq_embed(lq_ctx *ctx, const lq_model *m, const int32_t *ids, uint32_t n, uint32_t pos, float *out);
/* After the blocks: the final norm, where there is one; y[n][hidden] may be x. */
void lq_final_norm(const lq_model *m, const float *x, uint32_t n, float *y);
/* What the head's matrix multiplies, of final-normed states: themselves, or project_out of them. y[n][lq_head_width(m)]. */
lq_status lq_head_input(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, float *y);
uint32_t lq_head_width(const lq_model *m);

/* One running sequence with its KV cache (fp32). Blocks must be loaded (lq_model_load_all). */
typedef struct lq_state lq_state;
lq_status lq_state_new(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, lq_state **out);
/* For scoring whole texts: every lq_forward starts a new sequence, and keys and values of one block at a time are held. */
lq_status lq_state_new_scoring(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, lq_state **out);
/* Either, with a cache in a small type (calib/kv.h); steps: as there, m->kv_steps or NULL. scoring holds one block's at a time. */
typedef struct lq_kv_opts { int kind, fixed; } lq_kv_opts; /* lq_kv_kind; fixed: the steps stored with the model */
lq_status lq_state_new_kv(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, bool scoring, const lq_kv_opts *o, lq_state **out);
uint64_t lq_state_kv_bytes(const lq_state *s); /* memory of the cache */
/* n states of one room that lq_forward_batch runs together; on a device they share one cache. Not scoring. Freed one by one. */
lq_status lq_states_new(lq_ctx *ctx, const lq_model *m, uint32_t max_ctx, const lq_kv_opts *o, uint32_t n, lq_state **out);
void lq_state_reset(lq_state *s);
void lq_state_free(lq_state **s);
uint32_t lq_state_pos(const lq_state *s);
uint32_t lq_state_room(const lq_state *s); /* positions it has */
/* Appends n tokens; hidden[n][d] receives the final-normed states. Ids are checked against the vocabulary. */
lq_status lq_forward(lq_ctx *ctx, lq_state *s, const int32_t *ids, uint32_t n, float *hidden);
/* One token more for each of n sequences of one model and room, in one pass over the weights: ids[n], hidden[n][d]. n <= LQ_BATCH. What a
 * sequence gets does not depend on its neighbours but by rounding. */
enum { LQ_BATCH = 256 };
lq_status lq_forward_batch(lq_ctx *ctx, lq_state *const *s, const int32_t *ids, uint32_t n, float *hidden);
/* dst continues where src is; both of one model, room and kind of cache. */
lq_status lq_state_copy(lq_ctx *ctx, lq_state *dst, const lq_state *src);
/* Back to position pos, at most where it is. */
void lq_state_rewind(lq_state *s, uint32_t pos);
/* Seconds spent by class are added to clock[LQ_CLOCKS] from now on; NULL ends it. On a device they are its own, added when a pass has ended; HEAD: only there, of
 * lq_held_next. */
enum { LQ_CLOCK_LINEAR, LQ_CLOCK_ATTENTION, LQ_CLOCK_OTHER, LQ_CLOCK_HEAD, LQ_CLOCKS };
void lq_state_clock(lq_state *s, double *clock);
/* Bytes of weights that one step of decoding reads, the head's too; of experts, as many as a token takes. */
uint64_t lq_model_step_bytes(const lq_model *m);
/* logits[n][vocab] of final-normed states; callers pass few tokens at a time. */
lq_status lq_logits(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, float *logits);
/* nll[n] in nats: -log p of token target[t] (an id of the vocabulary) after final-normed state hidden[t]; any number of tokens, what is held
 * beside does not grow with the vocabulary but by 8 bytes per 256 ids and token. No finite number where the logits are none. */
lq_status lq_score(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, const int32_t *target, double *nll);


/* Calibration: block b run over every sequence of the residual stream (item i of `resid`: [len[i]][hidden], replaced by the
 * block's output), stage by stage. Before the linears of a stage run, their input has been added to stats over all
 * sequences and on_stage is called: it may replace the linears' weights (w as F32, in place); the rest of the block runs on
 * what it left. One pass: each linear runs once per token; norms of the residual stream may be computed again. A stage's
 * input lives in a second cache of cache_budget bytes, spilled to work_dir beyond that. Blocks loaded in any form run.
 * Mixture of experts: the router's stage sees all tokens that enter; then each expert's stages are visited with the statistics of
 * the tokens routed to it, mixed with a prior (calib/experts.c; m->expert_opts says how); experts run more than once. */
typedef struct lq_stage {
    uint32_t index;               /* 0.. within the block */
    uint32_t n;
    lq_linear *lin[8];            /* linears that read the same tensor */
    uint32_t cols;
    int32_t expert;               /* whose linears they are; -1: nobody's */
} lq_stage;
typedef struct lq_stage_hook {
    unsigned needs;               /* LQ_NEED_*; 0: run forward only, on_stage may be NULL */
    lq_status (*on_stage)(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats);
    void *user;
    /* CROSS: residual stream of the unquantized model (as `resid`), replaced by the block's output under the weights as they are on
     * entry. An expert's is of the tokens that the quantized model routes to it. */
    lq_cache *twin;
    float *kv_max;                /* [2] raised to the largest |key|, after the rotary turn, and |value| of the block; NULL */
} lq_stage_hook;
lq_status lq_block_calibrate(lq_ctx *ctx, lq_model *m, int32_t b, lq_cache *resid, const uint32_t *len, const lq_stage_hook *hook,
                             uint64_t cache_budget, const char *work_dir);
/* The same without a trace: `resid` stays as it is, on_stage changes no weight, and the run ends with the last stage's. */
lq_status lq_block_look(lq_ctx *ctx, lq_model *m, int32_t b, lq_cache *resid, const uint32_t *len, const lq_stage_hook *hook, uint64_t cache_budget,
                        const char *work_dir);
/* Stage `index` of a loaded block; expert: whose linears a stage of experts gets. */
void lq_stage_fill(lq_model *m, int32_t b, uint32_t index, int32_t expert, lq_stage *out);
/* What the experts of a block take besides one stage's statistics, at least: the priors, the sample. 0: no experts. */
uint64_t lq_experts_bytes(const lq_model *m, unsigned needs);
/* The stages of a block by index; one of experts (expert >= 0: here 0) is visited once for each. Returns their number (at most max). */
uint32_t lq_block_stages(lq_model *m, int32_t b, lq_stage *out, uint32_t max);
#endif
