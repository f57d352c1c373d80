/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Architectures are data: op tables, names and configuration keys. Stages (and later smoothing pairs and rotation endpoints)
 * are derived by walking the tables, never typed. */
#ifndef LQ_ARCH_H
#define LQ_ARCH_H
#include "core/catalog.h"
#include "core/json.h"
#include "formats/gguf.h"
#include "kernels/kernels.h"

typedef enum lq_op_kind { LQ_OP_END, LQ_OP_NORM, LQ_OP_HEAD_NORM, LQ_OP_LINEAR, LQ_OP_ROPE, LQ_OP_ATTN, LQ_OP_GLU } lq_op_kind;
typedef enum lq_tensor_id { T_NONE, T_RESID, T_H, T_Q, T_K, T_V, T_A, T_G, T_U, T_F, T_N } lq_tensor_id;
enum { LQ_OUT_ADD = 0x80 };       /* out |= LQ_OUT_ADD: the result is added to the tensor instead of replacing it */

typedef struct lq_op {
    lq_op_kind kind;
    lq_role role;
    uint8_t out;                  /* lq_tensor_id, maybe | LQ_OUT_ADD */
    uint8_t in[3];
    uint8_t only_if;              /* 0: always; else an lq_feature that must be on in the parameters (q/k norm) */
} lq_op;

typedef enum lq_feature { LQ_FEAT_ALWAYS, LQ_FEAT_QK_NORM } lq_feature;
typedef enum lq_rope_kind { LQ_ROPE_DEFAULT, LQ_ROPE_LINEAR, LQ_ROPE_LLAMA3, LQ_ROPE_KIND_N } lq_rope_kind;

typedef struct lq_params {        /* from config.json or GGUF metadata, range-checked */
    uint32_t hidden, ffn, n_layers, n_heads, n_kv_heads, head_dim, vocab, max_ctx;
    uint32_t window;              /* sliding window in tokens (a token sees itself and window-1 before it); 0: none */
    uint8_t *layer_window;        /* [n_layers] 1 where the window applies; NULL: everywhere */
    float norm_eps;
    double rope_base;
    lq_rope_kind rope;
    double rope_factor, rope_low, rope_high;
    uint32_t rope_original;       /* llama3: original_max_position_embeddings */
    lq_actfn act;
    bool tied, qkv_bias, o_bias, mlp_bias, qk_norm;
} lq_params;

typedef struct lq_arch_name { lq_role role; lq_part part; const char *hf, *gguf; } lq_arch_name; /* %d = block */

typedef struct lq_arch {
    const char *name;                   /* "llama" */
    const char *const *model_types;     /* config.json model_type values accepted, NULL ends */
    const char *const *gguf_archs;      /* general.architecture values, NULL ends */
    bool gguf_rope_pairs;               /* GGUF stores q/k rows as rope pairs */
    const lq_op *block;                 /* ends with LQ_OP_END */
    const lq_arch_name *names;          /* role NONE ends */
    lq_status (*params_hf)(lq_ctx *, const json_t *config, lq_params *);
    lq_status (*params_gguf)(lq_ctx *, const lq_gguf *, lq_params *);
    json_t *(*config)(const struct lq_arch *, const lq_params *); /* config.json body for convert; new reference */
} lq_arch;
extern const lq_arch *const lq_archs[]; /* NULL ends */
const lq_arch *lq_arch_by_model_type(const char *model_type);
const lq_arch *lq_arch_by_gguf(const char *architecture);
/* inv_freq[head_dim/2] of the rope variant: theta_j = base^(-2j/d), then scaled. Llama 3: Meta's wavelength rule. */
void lq_rope_inv_freq(const lq_params *p, double *inv_freq);
#endif
