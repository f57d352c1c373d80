/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Inside calib: one block's op table run over a chunk of tokens; lq_forward and lq_block_calibrate both stand on it. */
#ifndef LQ_RUN_H
#define LQ_RUN_H
#include "calib/kv.h"
#include "calib/model.h"
#include "core/thread.h"

/* lq_parallel_for where `work` (multiplications, about) is worth waking threads for. Parts are independent: same bits. */
static inline void lq_spread(size_t n, uint64_t work, void (*fn)(void *arg, size_t i), void *arg) {
    if (work >= 1 << 16) lq_parallel_for(n, fn, arg);
    else
        for (size_t i = 0; i < n; i++) fn(arg, i);
}

typedef struct lq_fault {     /* what went wrong in a linear, kept until somebody asks */
    lq_status st;
    const char *name;         /* of the weight; NULL: unknown */
    uint32_t col;
} lq_fault;

typedef struct lq_work {      /* scratch of each worker thread; holds no result */
    float *v;
    size_t per;               /* floats of one worker */
    int workers;
    lq_fault *fault;          /* [workers] */
    void *shared;             /* what a linear prepares once for all workers */
    size_t bytes;             /* of it */
} lq_work;
/* At least `per` floats for each of lq_threads() workers, and `shared` bytes for all. */
lq_status lq_work_fit(lq_ctx *ctx, lq_work *w, size_t per, size_t shared);
float *lq_work_mine(const lq_work *w);
void lq_work_free(lq_work *w);
/* The first fault since the last call: activations that are to be rounded and are not finite (LQ_ERR_QUALITY), out of memory. */
lq_status lq_work_check(lq_ctx *ctx, lq_work *w);

size_t lq_linear_scratch(const lq_linear *lin); /* floats per worker */
uint64_t lq_linear_bytes(const lq_linear *lin); /* of the weight in memory, as a product of few tokens reads it */
size_t lq_linear_shared(const lq_linear *lin, uint32_t n); /* bytes for all, at most n tokens at a time */
/* Rows [r0, r0 + nr) of what it holds as floats, r0 a multiple of LQ_TILE where it is packed; out has room for whole tiles then. */
void lq_linear_rows(const lq_kernels *k, const lq_linear *lin, uint32_t r0, uint32_t nr, float *out);
/* Row r of what it holds, no bias. mine: LQ_TILE rows of scratch where it is packed */
void lq_linear_row(const lq_kernels *k, const lq_linear *lin, uint32_t r, float *mine, float *out);
/* lq_linear_apply with the caller's scratch. */
void lq_linear_run(const lq_kernels *k, const lq_work *w, const lq_linear *lin, const float *x, uint32_t n, float *y);
size_t lq_act_shared(const lq_linear *lin, uint32_t n);
/* A linear whose scheme rounds activations, without its bias; panel: rows per task, as lq_linear_scratch counts them. */
void lq_act_run(const lq_kernels *k, const lq_work *w, const lq_linear *lin, uint32_t panel, const float *x, uint32_t n, float *y);

typedef struct lq_span {      /* consecutive tokens of one sequence inside a chunk */
    uint32_t first, n;        /* rows of the chunk */
    uint32_t pos;             /* position of row `first` in its sequence */
    const float *keys, *values; /* [pos + n][kv dim]: of the sequence from position 0 on, this chunk's T_K and T_V rows at the end */
    lq_kv *kv;                /* instead of them: where the chunk's rows go and all rows are read; NULL: none */
    uint32_t layer;           /* in kv, in far */
    struct lq_held_kv *far;   /* instead of them all, on a device: calib/held.h; */
    uint32_t slot;            /* which of its sequences */
} lq_span;

typedef struct lq_routing {   /* of the chunk at hand; arrays NULL without experts */
    uint32_t experts, k;
    float *p;                 /* [chunk][experts] probabilities */
    uint32_t *pick;           /* [chunk][k] chosen experts, the likeliest first */
    float *gain;              /* [chunk][k] what their outputs are multiplied by */
    uint32_t *start;          /* [experts + 1]: choices start[e] .. start[e+1] are expert e's; one more of scratch */
    uint32_t *token;          /* [chunk * k] row of the chunk, grouped by expert */
    float *weight;            /* [chunk * k] its gain */
} lq_routing;
lq_status lq_routing_init(lq_ctx *ctx, lq_routing *g, const lq_params *p, uint32_t tokens);
void lq_routing_free(lq_routing *g);

typedef struct lq_ops lq_ops;
typedef struct lq_run {
    const lq_ops *ops;        /* what carries the table out, calib/ops.h; buffers below are in its memory */
    const lq_model *m;
    const lq_kernels *k;
    const lq_arch *arch;
    const lq_params *par;
    const lq_layer *l;        /* the block at hand, or m->outer */
    int32_t layer;            /* its number, -1 */
    const lq_op *op;          /* of its table, at hand; means nothing where layer is -1 */
    uint32_t width[T_N];      /* floats per token of each tensor */
    float *t[T_N];            /* [n][width]; t[T_NONE]: what an ADD adds. T_RESID, T_K, T_V are set by the caller for each chunk */
    struct { float *cos, *sin; } turn[2]; /* [positions][rope dim/2], times the rope's scale; [1]: of par->local_rope when there are two */
    lq_work work;
    lq_routing routing;
    struct lq_device_run *dev; /* of the table "device" */
    uint32_t expert;          /* whose linears the ops between ROUTE and MERGE use */
    uint32_t chunk;           /* tokens the buffers hold */
    uint32_t at;              /* the chunk's first token among those of the pass */
    const int32_t *ids;       /* of the pass: its tokens, */
    int32_t *places;          /* rows of the learned positions, where there are some, */
    float *stream;            /* and [n][hidden] its residual stream: set by ops->begin */
    uint32_t room;            /* of places */
    float *mid;               /* [chunk][lq_run_mid] between an embedding and the blocks, the blocks and a head */
    double *clock;            /* [LQ_CLOCKS] seconds spent are added; NULL: not asked for */
    float *kv_max;            /* [2] raised to the largest |key| (after the rotary turn) and |value| seen; NULL: not asked for */
    float *mem;
} lq_run;

/* Buffers for chunks of at most `tokens` (fewer when that would take more than RUN_BYTES; see run->chunk), rotary tables and
 * attention scratch for `positions`. */
lq_status lq_run_init(lq_ctx *ctx, lq_run *r, const lq_model *m, uint32_t tokens, uint32_t positions);
void lq_run_free(lq_run *r);
/* Scratch for the linears of this layer. */
lq_status lq_run_fit(lq_ctx *ctx, lq_run *r, const lq_layer *l);
/* A run that has no buffers of its own, for what stands before and after the blocks. */
void lq_run_bare(lq_run *r, const lq_model *m);
/* What stands before the blocks, for tokens [first, first + n) of the pass: r->stream of r->ids, r->places and r->mid. At most chunk tokens. */
void lq_run_embed(lq_run *r, uint32_t first, uint32_t n);
uint32_t lq_run_mid(const lq_run *r); /* floats per token of r->mid; 0: not needed */
void lq_run_final_norm(lq_run *r, const float *x, uint32_t n, float *y); /* nothing where the model has none */
void lq_run_head(lq_run *r, const float *x, uint32_t n, float *logits);  /* logits[n][vocab] of final-normed states; r->mid [n] */
/* Ids are of the vocabulary, positions among the learned ones. */
uint64_t lq_layer_step_bytes(const lq_model *m, const lq_layer *l); /* of lq_model_step_bytes; l may be &m->outer */
lq_status lq_check_place(lq_ctx *ctx, const lq_model *m, const int32_t *ids, uint32_t n, uint32_t pos);
/* Ops [from, to) of the block table over n tokens in `spans`. */
void lq_run_ops(lq_run *r, const lq_layer *l, uint32_t layer, uint32_t from, uint32_t to, uint32_t n, const lq_span *spans, uint32_t n_spans);
/* The op ROUTE over n tokens: r->routing. */
void lq_run_route(lq_run *r, const lq_layer *l, const lq_op *route, uint32_t n);
/* The tokens routed to an expert into route->out, which becomes r->expert; returns their number, *weight[number] their gains. */
uint32_t lq_run_gather(lq_run *r, const lq_op *route, uint32_t expert, const float **weight);
/* From ROUTE to MERGE for every expert; returns the MERGE. */
const lq_op *lq_run_experts(lq_run *r, const lq_layer *l, uint32_t layer, const lq_op *route, uint32_t n);

enum { LQ_ATTN_TILE = 64 };   /* queries of a task of one head */
size_t lq_attn_scratch(const lq_params *p, uint32_t positions); /* floats per worker */
size_t lq_attn_shared(const lq_params *p, uint32_t positions);  /* bytes of work.shared with which one long sequence's query is split; less: it is not */
void lq_attn(const lq_run *r, uint32_t window, const float *q, float *out, const lq_span *spans, uint32_t n_spans);
#endif
