/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A model = an architecture's tables bound to the tensors of a source. */
#ifndef LQ_MODEL_H
#define LQ_MODEL_H
#include "calib/arch.h"
#include "core/catalog.h"
#include "formats/source.h"
#include "kernels/kernels.h"

typedef struct lq_linear {
    lq_slot slot;
    const lq_row *row;     /* catalog row of the weight; borrowed */
    uint32_t rows, cols;
    lq_dtype dtype;        /* type of w; LQ_NONE when q is set */
    void *w;               /* [rows][cols] stored as dtype, rows in model order (views undone) */
    lq_qtensor *q;         /* quantized: runs on these codes */
    lq_packed *packed;     /* where they are when this is set: q is then &packed->q, which has everything but codes */
    float *bias;           /* [rows] or NULL; NULL: q's own when it has one */
} lq_linear;

typedef struct lq_layer {  /* the loaded tensors of one block, by role; absent ones zero */
    lq_linear lin[LQ_R_N];
    lq_linear *experts;    /* [n_experts][LQ_EXPERT_ROLES] of a block with experts; lin[] of their roles stays zero */
    uint32_t n_experts;
    float *norm[LQ_R_N];   /* gains, fp32 */
    float *shift[LQ_R_N];  /* biases of LayerNorms, fp32 */
    bool loaded;
    void *mem;             /* one allocation behind every pointer above except the qtensors' own */
} lq_layer;

/* The linear of a role; expert: -1 or ignored for roles that are none of an expert's. */
static inline lq_linear *lq_layer_linear(const lq_layer *l, uint32_t role, int32_t expert) {
    if (!lq_role_is_expert((lq_role)role)) return (lq_linear *)&l->lin[role];
    return &l->experts[(size_t)expert * LQ_EXPERT_ROLES + (role - LQ_R_EXPERT_GATE)];
}

typedef struct lq_expert_opts { /* how calibration treats a mixture of experts (calib/experts.c) */
    double prior;          /* tau; 0: no prior */
    int64_t prior_tokens;  /* T0; 0: the number of columns */
    int flat;              /* tokens weigh 1, not their gate probability squared */
} lq_expert_opts;

typedef struct lq_model {
    lq_source *src;        /* borrowed */
    const lq_arch *arch;   /* NULL: unknown; only the catalog is usable */
    lq_params par;
    const json_t *config;  /* of the language model: the source's, or the part about the text tower; borrowed, NULL without config.json */
    lq_catalog cat;
    lq_layer *layers;      /* [par.n_layers] */
    lq_layer outer;        /* before: lin[EMBED], POS_EMBED, PROJ_IN; after: final norm, lin[PROJ_OUT], HEAD (zero when tied) */
    const lq_kernels *k;
    lq_expert_opts expert_opts; /* lq_model_open: prior 1, the rest 0 */
    struct lq_rotation *rotation; /* NULL: tensors are read as they are stored (calib/rotate.h) */
    struct lq_held *held;  /* NULL, or where every tensor is: on a device (calib/held.h); nothing is loaded then; owned */
    float *kv_steps;       /* [n_layers][2] steps of E4M3 keys and values stored with the model; NULL: none; owned */
} lq_model;

/* Architecture by model_type / general.architecture, parameters range-checked, every tensor's name, type and shape checked
 * against them; no tensor data is read (but the few numbers of a GGUF's rope_freqs). Tensors the architecture does not know
 * become rows of role UNKNOWN at the end of the catalog (slot: block -1, expert = their number). An unknown architecture:
 * LQ_ERR_UNSUPPORTED unless any is allowed; then all rows are UNKNOWN, 2-D floating ones linear (but embeddings and heads, told by
 * vocab_size), and nothing can be run. The same for settings that a known one does not run, unless its files store matrices transposed. */
lq_status lq_model_open(lq_ctx *ctx, lq_source *src, bool any_arch, lq_model **out);
void lq_model_free(lq_model **m);
/* Part of lq_model_open: unknown tensors that are scales of keys and values become rows of role K_SCALE and V_SCALE, and kv_steps is read.
 * A scale that is no positive number: LQ_ERR_FORMAT. */
lq_status lq_model_bind_kv(lq_ctx *ctx, lq_model *m);
/* F32 [1] rows K_SCALE and V_SCALE for every block with attention, in the source (whose values no longer count) or not: source -1, the
 * caller writes them. To be called before anything borrows rows. */
lq_status lq_model_add_kv(lq_ctx *ctx, lq_model *m);

/* Keep the stored type; decode (quantized ones too) to F32; keep the stored type but matrices of codes in the layout kernels stream, where it holds
 * them (lq_packed_fits, and blocks that are read as such a scheme): one matrix at a time, its former codes freed. A table that is only looked
 * up stays as it is stored. */
typedef enum lq_load { LQ_LOAD_STORED, LQ_LOAD_F32, LQ_LOAD_PACKED } lq_load;
/* Before any load: matrices of block types multiply activations that are rounded as llama.cpp's CPU kernels do: to 8 bits with a step for 32 columns, in F16
 * (Q8_0, Q8_1), or for 256 (Q8_K) where blocks are that long. A type of which there are floats alone: LQ_ERR_UNSUPPORTED. Source: ggml-cpu.c, vec_dot_type. */
lq_status lq_model_round_like_ggml(lq_ctx *ctx, lq_model *m);
/* Reads the tensors of a block (or, b = -1, the outer ones) into memory; NaN or infinity in a weight: LQ_ERR_FORMAT naming
 * tensor, row and column. A loaded block stays as it is, whatever `how` says. */
lq_status lq_model_load(lq_ctx *ctx, lq_model *m, int32_t b, lq_load how);
/* The outer tensors and every block. */
lq_status lq_model_load_all(lq_ctx *ctx, lq_model *m, lq_load how);
void lq_model_unload(lq_model *m, int32_t b);
/* A whole row (matrix or vector) of the catalog as F32, views undone, rotated where the model is: [rows][cols]. */
lq_status lq_model_read_f32(lq_ctx *ctx, lq_model *m, const lq_row *row, float *out);
/* The same before any rotation. */
lq_status lq_model_read_raw(lq_ctx *ctx, lq_model *m, const lq_row *row, float *out);
/* A whole row of the catalog in its stored type (never LQ_NONE), views undone; a rotated one is rounded to that float type. */
lq_status lq_model_read_stored(lq_ctx *ctx, lq_model *m, const lq_row *row, void *out);
/* A quantized row of the catalog, or one of blocks that have a scheme, as its codes: slot set, rows in model order. out owns itself. */
lq_status lq_model_read_q(lq_ctx *ctx, lq_model *m, const lq_row *row, lq_qtensor *out);
uint64_t lq_model_block_bytes(const lq_model *m, int32_t b, lq_load how); /* memory lq_model_load will take */
/* config.json for a source that has none (GGUF), from the parameters and the architecture's key table. New reference. */
lq_status lq_model_config(lq_ctx *ctx, const lq_model *m, json_t **out);
#endif
