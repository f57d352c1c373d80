/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What is in a model: one plain row per stored tensor, made by calib (which alone knows names), read by sources' users,
 * plan and sinks. */
#ifndef LQ_CATALOG_H
#define LQ_CATALOG_H
#include "core/qtensor.h"

/* role, short name (messages, reports) */
#define LQ_ROLE_LIST(X)          \
    X(NONE, "none")              \
    X(UNKNOWN, "unknown")        \
    X(EMBED, "embed")            \
    X(PROJ_IN, "project_in")     \
    X(POS_EMBED, "positions")    \
    X(EMBED_NORM, "embed_norm")  \
    X(FINAL_NORM, "final_norm")  \
    X(PROJ_OUT, "project_out")   \
    X(HEAD, "lm_head")           \
    X(ATTN_NORM, "attn_norm")    \
    X(QKV, "qkv_proj") /* q, k and v as one stored matrix */ \
    X(Q, "q_proj")               \
    X(K, "k_proj")               \
    X(V, "v_proj")               \
    X(ATTN_SUB_NORM, "attn_sub_norm") /* of what o_proj reads */ \
    X(O, "o_proj")               \
    X(Q_NORM, "q_norm")          \
    X(K_NORM, "k_norm")          \
    X(ATTN_POST_NORM, "attn_post_norm") /* of what attention adds */ \
    X(MLP_NORM, "mlp_norm")      \
    X(GATE_UP, "gate_up_proj")   \
    X(GATE, "gate_proj")         \
    X(UP, "up_proj")             \
    X(FFN_SUB_NORM, "ffn_sub_norm") /* of what down_proj reads */ \
    X(DOWN, "down_proj")         \
    X(ROUTER, "router")          \
    X(EXPERT_GATE, "expert.gate_proj") /* of expert `slot.expert` */ \
    X(EXPERT_UP, "expert.up_proj")     \
    X(EXPERT_DOWN, "expert.down_proj") \
    X(SHARED_ROUTER, "shared_expert_gate") \
    X(SHARED_GATE, "shared_expert.gate_proj") \
    X(SHARED_UP, "shared_expert.up_proj")     \
    X(SHARED_DOWN, "shared_expert.down_proj") \
    X(MLP_POST_NORM, "mlp_post_norm") \
    X(K_SCALE, "k_scale") /* F32 [1]: step of E4M3 keys, and of values; kept, of the attention module */ \
    X(V_SCALE, "v_scale")

typedef enum lq_role {
#define X(name, text) LQ_R_##name,
    LQ_ROLE_LIST(X)
#undef X
    LQ_R_N
} lq_role;
extern const char *const lq_role_names[LQ_R_N];
enum { LQ_EXPERT_ROLES = 3 }; /* EXPERT_GATE, _UP and _DOWN follow one another */
static inline bool lq_role_is_expert(lq_role r) { return r >= LQ_R_EXPERT_GATE && r < LQ_R_EXPERT_GATE + LQ_EXPERT_ROLES; }
static inline bool lq_role_is_kv(uint32_t r) { return r == LQ_R_K_SCALE || r == LQ_R_V_SCALE; }
static inline bool lq_role_is_router(lq_role r) { return r == LQ_R_ROUTER || r == LQ_R_SHARED_ROUTER; }

/* How the stored rows differ from the rows of the matrix the model multiplies by. */
typedef enum lq_view {
    LQ_VIEW_PLAIN,
    LQ_VIEW_TRANSPOSED, /* stored [cols][rows] */
    LQ_VIEW_ROWS,       /* stored row i is row view_rows[i] (GGUF: q and k as rope pairs; q, k and v of a fused matrix one after the other) */
} lq_view;

typedef enum lq_part { LQ_PART_WEIGHT, LQ_PART_BIAS } lq_part;

typedef struct lq_row {          /* one tensor of the model */
    lq_slot slot;
    lq_part part;
    const char *name;            /* the Hugging Face name, "model.layers.0.self_attn.q_proj.weight"; owned by the catalog */
    const char *gguf_name;       /* "blk.0.attn_q.weight"; NULL when the architecture has none */
    int32_t source;              /* index in the source */
    uint64_t row0;               /* first of its rows in the source's tensor: several rows may view one stack of experts */
    lq_dtype dtype;              /* stored type in the source; LQ_NONE: the source holds it quantized */
    uint32_t ndim;               /* 1 or 2 for known roles; 0..LQ_DIMS for unknown ones */
    uint64_t shape[LQ_DIMS];     /* Hugging Face order: rows, cols */
    lq_view view;
    const uint32_t *view_rows;   /* [rows] of a ROWS view; owned by the catalog */
    float view_add;              /* what the stored values of a vector have too much (GGUF: Gemma's gains as 1 + w) */
    bool transposed;             /* as a float tensor of this name it is stored [cols][rows] (Conv1D); shape, codes and data in memory are [rows][cols] */
    int32_t fuse;                /* rows of a block with the same non-negative number are fused by runtimes (q/k/v: 0, gate/up: 1) */
    int32_t stage;               /* linears: order in which the block's linears are calibrated, same number = same input; -1 otherwise */
    bool linear;                 /* a matrix methods may quantize */
    bool quantize;               /* set by plan: this row gets `scheme` */
    lq_scheme scheme;            /* meaningful when quantize, or when the source holds it quantized or as blocks that have one */
    lq_dtype out_dtype;          /* set by plan: type of a kept tensor in the output */
    const char *why_kept;        /* set by plan for a linear that is not quantized: "--ignore", "lm_head is kept by default", ... (static or catalog-owned) */
} lq_row;

typedef struct lq_catalog {
    lq_row *rows;                /* order: before the blocks, blocks 0.., after, then unknown tensors by name */
    size_t n;
    uint32_t n_blocks;
    bool tied;                   /* the head is the embedding; there is no HEAD row */
    const char *model_type;      /* as in config.json; owned by the catalog */
    lq_arena *mem;
} lq_catalog;

void lq_catalog_free(lq_catalog *c);
/* The row with this slot and part; NULL when there is none. */
lq_row *lq_catalog_find(const lq_catalog *c, lq_slot slot, lq_part part);
/* rows and cols of a matrix row (1-D: rows = length, cols = 1). */
static inline uint32_t lq_row_rows(const lq_row *r) { return r->ndim ? (uint32_t)r->shape[0] : 1; }
static inline uint32_t lq_row_cols(const lq_row *r) { return r->ndim > 1 ? (uint32_t)r->shape[1] : 1; }
uint64_t lq_row_elems(const lq_row *r);
/* Extent i of the row as a float tensor of its Hugging Face name: a transposed matrix is [cols][rows]. */
static inline uint64_t lq_row_stored(const lq_row *r, uint32_t i) { return r->shape[r->transposed ? r->ndim - 1 - i : i]; }
/* Module name: the row's name without ".weight" or ".bias"; written into buf, returned. */
const char *lq_row_module(const lq_row *r, char *buf, size_t n);
#endif
