/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Architectures are data: op tables, names, shapes and configuration keys. Stages (and later smoothing pairs and rotation
 * endpoints) are derived by walking the tables, never typed. */
#ifndef LQ_ARCH_H
#define LQ_ARCH_H
#include "core/catalog.h"
#include "core/json.h"
#include "formats/gguf.h"
#include "kernels/kernels.h"

typedef enum lq_op_kind {
    LQ_OP_END, LQ_OP_NORM, LQ_OP_HEAD_NORM, LQ_OP_LINEAR, LQ_OP_SPLIT, LQ_OP_SPLIT_HEADS, LQ_OP_ROPE, LQ_OP_ATTN, LQ_OP_ACT, LQ_OP_GLU,
    LQ_OP_CLAMP,       /* out = in within +-clip_qkv */
    LQ_OP_ROUTE,       /* opens the experts' table: the ops up to MERGE run once per expert, on the tokens that the role's scores of in[0] send it;
                        * out: those tokens' rows of in[0], unchanged */
    LQ_OP_MERGE,       /* closes it: out += probability x in[0], expert after expert */
    LQ_OP_TOKEN_GATE,  /* out = sigmoid(in[1]) in[0], in[1] one number per token */
} lq_op_kind;
/* RESID: the residual stream. H, H2: what the branches read. QKV, GU: of fused matrices. B: a branch before its own norm.
 * X..: an expert's tokens, gate, up, their product, output. S..: the same of the shared expert, SR: its gate */
typedef enum lq_tensor_id {
    T_NONE, T_RESID, T_H, T_H2, T_QKV, T_Q, T_K, T_V, T_A, T_GU, T_G, T_U, T_F, T_B,
    T_X, T_XG, T_XU, T_XF, T_XY, T_SR, T_SG, T_SU, T_SF, T_SY, T_N
} lq_tensor_id;
enum { LQ_OUT_ADD = 0x80 };       /* out |= LQ_OUT_ADD (LINEAR, NORM): the result is added to the tensor instead of replacing it */
enum { LQ_UNLESS = 0x80 };        /* only_if |= LQ_UNLESS: where the feature is off */
enum { LQ_TRANSPOSED = 0x80 };    /* rows |= LQ_TRANSPOSED: a Hugging Face file has it as [cols][rows] (Conv1D) */

/* NORM: RMSNorm, or LayerNorm where the parameters say so. RESID = NORM(RESID) is a post-norm, RESID += NORM(B) a sandwich.
 * A fused matrix is one LINEAR and, per part, one op whose role says which part of its output is taken: SPLIT: parts one after
 * the other; SPLIT_HEADS: per kv head its q heads, its k and its v (lq_split_row). */
typedef struct lq_op {
    lq_op_kind kind;
    lq_role role;
    uint8_t out;                  /* lq_tensor_id, maybe | LQ_OUT_ADD */
    uint8_t in[3];                /* ATTN: q, k, v. GLU: gate, up */
    uint8_t only_if;              /* lq_feature that must be on in the parameters, maybe | LQ_UNLESS */
} lq_op;

typedef enum lq_feature {         /* what a configuration switches; 0 is always on */
    LQ_FEAT_ALWAYS, LQ_FEAT_QK_NORM, LQ_FEAT_QKV_BIAS, LQ_FEAT_O_BIAS, LQ_FEAT_MLP_BIAS, LQ_FEAT_UNTIED,
    LQ_FEAT_POST_NORM,            /* norms of the residual stream after the branches are added */
    LQ_FEAT_PARALLEL, LQ_FEAT_ONE_NORM, LQ_FEAT_TWO_NORMS, /* both branches read the same stream; through one norm, through one each */
    LQ_FEAT_NORM_GAIN, LQ_FEAT_FINAL_NORM, LQ_FEAT_PROJ, LQ_FEAT_HEAD_BIAS,
    LQ_FEAT_CLIP_QKV, LQ_FEAT_MOE, LQ_FEAT_SHARED, LQ_FEAT_DENSE /* the last three differ between layers: lq_params_at */
} lq_feature;
typedef enum lq_dim {             /* an extent that follows from the parameters */
    LQ_DIM_NONE, LQ_DIM_HIDDEN, LQ_DIM_FFN, LQ_DIM_VOCAB, LQ_DIM_Q, LQ_DIM_KV, LQ_DIM_HEAD,
    LQ_DIM_EMBED, LQ_DIM_POSITIONS, LQ_DIM_QKV, LQ_DIM_GATE_UP,
    LQ_DIM_ONE, LQ_DIM_EXPERTS, LQ_DIM_EXPERT_FFN, LQ_DIM_SHARED_FFN
} lq_dim;
typedef enum lq_rope_kind {
    LQ_ROPE_DEFAULT, LQ_ROPE_LINEAR, LQ_ROPE_LLAMA3, LQ_ROPE_YARN, LQ_ROPE_DYNAMIC, LQ_ROPE_LONGROPE, LQ_ROPE_KIND_N
} lq_rope_kind;
extern const char *const lq_rope_names[LQ_ROPE_KIND_N]; /* as in rope_type */

typedef struct lq_rope {          /* rotary positions of one kind of layer */
    lq_rope_kind kind;
    uint32_t dim;                 /* coordinates of a head that turn, from its first on; even */
    double base, factor;
    double low, high;             /* llama3: low_freq_factor, high_freq_factor. yarn: beta_slow, beta_fast */
    bool pairs;                   /* what turns together: coordinates 2j and 2j+1 (GLM), not j and j + dim/2 */
    bool whole;                   /* yarn: the ramp begins and ends at whole coordinates */
    uint32_t original;            /* original_max_position_embeddings; dynamic: max_position_embeddings */
    double scale;                 /* on cos and sin (yarn, longrope: attention factor); 0: 1 */
    double *div;                  /* [dim/2] divisors of the frequencies: a GGUF's rope_freqs.weight; longrope: short_factor. NULL: none */
    double *long_div;             /* [dim/2] longrope: long_factor, for runs of more than `original` positions */
} lq_rope;

typedef struct lq_params {        /* from config.json or GGUF metadata, range-checked */
    uint32_t hidden, ffn, n_layers, n_heads, n_kv_heads, head_dim, vocab, max_ctx;
    uint32_t window;              /* sliding window in tokens (a token sees itself and window-1 before it); 0: none */
    uint8_t *layer_window;        /* [n_layers] 1 where the window applies; NULL: everywhere */
    float norm_eps;
    lq_rope rope, local_rope;     /* local_rope: of the layers with a window, when two_ropes */
    bool two_ropes;
    bool norm_plus_one;           /* norm gains are stored as w and mean 1 + w; a loaded layer holds 1 + w, catalog reads give w */
    bool master;                  /* the linears of the blocks are stored as master weights: calib/master.h */
    float embed_scale;            /* of embeddings; 0: none, like the five below */
    float attn_scale;             /* of q k; 0: 1/sqrt(head_dim) */
    float attn_cap, logit_cap;    /* c tanh(x / c) of attention scores, of logits */
    float resid_scale;            /* of what a block adds to the residual stream */
    float logit_div;              /* of logits, before the cap */
    lq_actfn act;
    uint32_t embed_dim;           /* width of the embedding where project_in follows; 0: hidden */
    uint32_t pos_offset;          /* row of the learned positions that position 0 is */
    bool tied, qkv_bias, o_bias, mlp_bias, qk_norm;
    bool layernorm;               /* every NORM is a LayerNorm */
    bool plain_norm;              /* its norms have neither gain nor bias */
    bool post_norm, parallel, one_norm, no_final_norm, head_bias;
    uint32_t n_experts, top_k;    /* 0: no mixture of experts */
    uint32_t expert_ffn, shared_ffn; /* widths of an expert and of the shared one (0: none) */
    uint8_t *layer_dense;         /* [n_layers] 1: an ordinary MLP instead of experts; NULL: nowhere */
    bool norm_topk;               /* probabilities of the chosen experts are divided by their sum */
    float clip_qkv;               /* q, k and v are clamped to it; 0: not */
} lq_params;
void lq_params_free(lq_params *p);
bool lq_params_has(const lq_params *p, uint8_t only_if);     /* an lq_feature, maybe | LQ_UNLESS; of a feature that differs between layers: somewhere */
bool lq_params_at(const lq_params *p, uint8_t only_if, uint32_t layer);
uint32_t lq_params_dim(const lq_params *p, uint8_t d);      /* an lq_dim, maybe | LQ_TRANSPOSED; NONE: 0 */
uint32_t lq_params_window(const lq_params *p, uint32_t layer); /* of this layer; 0: none */
uint32_t lq_params_short_window(const lq_params *p); /* of some layer, shorter than the context; 0: none */
const lq_rope *lq_params_rope(const lq_params *p, uint32_t layer);

typedef struct lq_arch_name {     /* a stored tensor: what it is, its names (%d = block, %e = expert), its shape, when it exists */
    lq_role role;
    lq_part part;
    const char *hf, *gguf;
    uint8_t rows, cols;           /* lq_dim; rows maybe | LQ_TRANSPOSED; cols LQ_DIM_NONE: 1-D */
    uint8_t only_if;              /* lq_feature, maybe | LQ_UNLESS */
} lq_arch_name;
typedef struct lq_respelled { const char *from, *to; } lq_respelled;

/* Another way a role is stored: all experts in one tensor [experts][of * rows][cols], where this role's rows are the at-th of `of` parts;
 * of 0: one matrix as usual. Looked for where the first name is absent. */
typedef struct lq_arch_stack { lq_role role; const char *hf, *gguf; uint8_t at, of; } lq_arch_stack;

/* What config.json means in this family: values of absent keys (as transformers has them) and keys that only some have. */
typedef enum lq_window_keys { LQ_WINDOW_NONE, LQ_WINDOW_ALL, LQ_WINDOW_BY_LAYER, LQ_WINDOW_ALTERNATE, LQ_WINDOW_EVEN_LAYERS, LQ_WINDOW_SWITCHED } lq_window_keys;
typedef struct lq_family {
    uint32_t kv_heads, head_dim;  /* 0: n_heads; hidden / n_heads */
    const lq_respelled *keys;     /* the family's own names of keys: {"hidden_size", "n_embd"}; from NULL ends; NULL: none */
    uint32_t hidden, ffn, layers, heads, vocab; /* 0: the key must be there */
    uint32_t ffn_times;           /* intermediate_size when absent, in times of hidden_size; 0: ffn */
    bool layernorm;               /* every norm is a LayerNorm */
    uint32_t max_ctx, window;
    lq_window_keys windows;       /* sliding_window ignored | on every layer | use_sliding_window with layer_types | with layer_types or
                                     on all layers but every window_every-th | with layer_types or on the even layers below max_window_layers | on all */
    uint32_t window_every;
    const char *window_every_key; /* NULL: no key changes it */
    bool attention_bias, mlp_bias; /* the key exists */
    bool o_plain;                 /* attention_bias is about q, k and v only */
    bool qkv_bias, qk_norm;       /* always there; qkv_bias with o_plain: attention_bias when absent */
    bool tied;                    /* tie_word_embeddings when absent */
    double eps;                   /* rms_norm_eps when absent; 0: 1e-6 */
    double rope_theta, local_theta; /* 0: 10000; one rope for all layers */
    double partial;               /* partial_rotary_factor when absent; 0: the family has none */
    bool rope_pairs;
    uint32_t long_context;        /* Phi-3: original_max_position_embeddings (beside, not in the rope settings) when absent; 0: others */
    const char *act_key, *act;    /* NULL: "hidden_act", "silu" */
    bool gelu_is_tanh;            /* "gelu" in old files means gelu_pytorch_tanh */
    const char *hf_class;         /* "LlamaForCausalLM" */
    struct lq_moe_keys {          /* n NULL: no experts. Keys and their absent values (0: required); ffn NULL: intermediate_size */
        const char *n, *ffn, *shared_ffn;
        uint32_t n_absent, top_k_absent, ffn_absent, shared_absent;
        bool norm_key, norm_always, gguf_norm; /* norm_topk_prob is read | is always true | a GGUF means true */
        bool sparse_keys;         /* decoder_sparse_step and mlp_only_layers are read */
        bool clip;                /* clip_qkv is read */
        bool qkv_bias_key;        /* qkv_bias is read (absent: true) */
    } moe;
} lq_family;

/* What is special about an architecture in GGUF: how its files lie, and what llama.cpp's graph of it has or lacks. */
enum lq_gguf_trait {
    LQ_GGUF_ROPE_PAIRS = 1 << 0,   /* rows of q and k lie as rope pairs */
    LQ_GGUF_GAIN_ONE = 1 << 1,     /* a gain w that means 1 + w lies as 1 + w */
    LQ_GGUF_EMBED_SQRT = 1 << 2,   /* embeddings are multiplied by sqrt(hidden) */
    LQ_GGUF_BY_BLOCKS = 1 << 3,    /* the scale of the scores follows from the number of blocks: lq_gguf_attn_scale */
    LQ_GGUF_CAPS = 1 << 4,         /* scores and logits are always capped, at 50 and 30 when no key says otherwise */
    LQ_GGUF_LOGIT_CAP = 1 << 5,    /* logits are capped where a key says so */
    LQ_GGUF_MULTIPLIERS = 1 << 6,  /* Granite's four, as keys */
    LQ_GGUF_CLIP = 1 << 7,         /* the key attention.clamp_kqv */
    LQ_GGUF_DIVISORS = 1 << 8,     /* rope_freqs.weight: Llama 3's scaling */
    LQ_GGUF_LONG = 1 << 9,         /* rope_factors_long.weight and _short */
    LQ_GGUF_HEAD = 1 << 10,        /* output.weight must be there: a tied head is stored as well */
    LQ_GGUF_NO_HEAD = 1 << 11,     /* the head is the embedding */
    LQ_GGUF_WINDOW = 1 << 12,      /* sliding windows are applied; elsewhere the key is there for us alone */
    LQ_GGUF_GELU = 1 << 13,        /* gelu by tanh; else silu */
    LQ_GGUF_QKV_BIAS = 1 << 14,    /* the fused matrix must have a bias */
    LQ_GGUF_NO_BIAS = 1 << 15,
    LQ_GGUF_MROPE = 1 << 16,       /* the key rope.dimension_sections */
    LQ_GGUF_SQUARE = 1 << 17,      /* all heads together are as wide as the stream */
    LQ_GGUF_PARALLEL = 1 << 18,    /* both branches read the same stream */
    LQ_GGUF_PARALLEL_KEY = 1 << 19, /* they do where use_parallel_residual says so */
    LQ_GGUF_O_BIAS = 1 << 20       /* o may have a bias */
};

typedef struct lq_arch {
    const char *name;                   /* "llama" */
    const char *const *model_types;     /* config.json model_type values accepted, NULL ends; the first is written by convert */
    const char *const *gguf_archs;      /* general.architecture values, NULL ends, the first is written; NULL: llama.cpp has none */
    unsigned gguf;                      /* lq_gguf_trait */
    uint32_t gguf_big;                  /* BY_BLOCKS: at this many blocks the scale is that of hidden / n_heads */
    const lq_op *block;                 /* ends with LQ_OP_END */
    const lq_arch_name *names;          /* role NONE ends; gguf names NULL where llama.cpp has none */
    const lq_respelled *respelled;      /* Hugging Face names that begin with `from` may begin with `to`; from NULL ends; NULL: none */
    const lq_arch_stack *stacks;        /* role NONE ends; NULL: none */
    lq_family family;
    lq_status (*params_hf)(lq_ctx *, const struct lq_arch *, const json_t *config, lq_params *);
    lq_status (*config)(lq_ctx *, const struct lq_arch *, const lq_params *, json_t **out); /* config.json body for convert from GGUF */
} lq_arch;
extern const lq_arch *const lq_archs[]; /* NULL ends */
extern const lq_arch lq_arch_llama, lq_arch_mistral, lq_arch_qwen2, lq_arch_qwen3;
extern const lq_arch lq_arch_mixtral, lq_arch_qwen2_moe, lq_arch_qwen3_moe, lq_arch_olmoe;
extern const lq_arch lq_arch_gemma, lq_arch_gemma2, lq_arch_gemma3, lq_arch_granite, lq_arch_phi3, lq_arch_glm, lq_arch_glm4, lq_arch_bitnet;
extern const lq_arch lq_arch_opt, lq_arch_gpt2, lq_arch_gpt_neox, lq_arch_falcon, lq_arch_phi;
extern const lq_arch lq_arch_qwen2_vl, lq_arch_qwen3_vl;
extern const lq_op lq_llama_block[];          /* tables that other families share */
extern const lq_arch_name lq_llama_names[];
/* Multimodal models whose text tower runs like a language model of its own as long as the text is all there is. *text: the
 * configuration of the tower (inside `config`, or `config` itself when it is no such model); *model_type: of the tower. */
lq_status lq_text_config(lq_ctx *, const json_t *config, const json_t **text, const char **model_type);
extern const lq_respelled lq_wrapper_names[]; /* where such models keep the tower's tensors; from NULL ends */
const lq_arch *lq_arch_by_model_type(const char *model_type);
/* Mixtral is a llama with experts there, Mistral one with a window. */
const lq_arch *lq_arch_by_gguf(const char *architecture, bool experts, bool window);
const lq_arch_name *lq_arch_tensor(const lq_arch *a, lq_role role, lq_part part); /* NULL: none */

/* The walk: stage of each LINEAR and ROUTE of the block table (linears that read one tensor, unwritten in between, share one; a
 * ROUTE has its own); stage[i] = -1 for the other ops and for ops that are off in this layer. Returns the number of ops; at most max of them. */
enum { LQ_MAX_OPS = 64 };
uint32_t lq_arch_stages(const lq_arch *a, const lq_params *p, uint32_t layer, int32_t stage[LQ_MAX_OPS]);
/* Floats per token of each tensor of the block table; 0: unused in every layer. */
void lq_arch_widths(const lq_arch *a, const lq_params *p, uint32_t width[T_N]);

/* Fused matrices. Which stored matrix holds part Q, K, V, GATE or UP: its role, and in *how the op that takes the part out
 * (LQ_OP_SPLIT, LQ_OP_SPLIT_HEADS); a matrix of its own: `part` itself and LQ_OP_LINEAR. */
lq_role lq_arch_holder(const lq_arch *a, const lq_params *p, lq_role part, lq_op_kind *how);
/* Row of the holder that is row i of the part (LQ_OP_LINEAR: i). */
uint32_t lq_split_row(const lq_params *p, lq_op_kind how, lq_role part, uint32_t i);
uint32_t lq_part_rows(const lq_params *p, lq_role part); /* rows of Q, K, V, GATE, UP */

/* inv_freq[dim/2] for runs of at most `positions` tokens: theta_j = base^(-2j/dim), then scaled. Values are exact in fp32, as
 * the published models were trained. dynamic and longrope depend on the length of the text: here on the room a run was given, so
 * that prefill and token-by-token decoding agree. */
void lq_rope_inv_freq(const lq_rope *r, uint32_t positions, double *inv_freq);
/* longrope: by how much cos and sin grow when the context grew `factor` times (Ding et al. 2024): sqrt(1 + ln(factor) / ln(original)). */
double lq_rope_long_scale(double factor, uint32_t original);
/* llama3 settings (original 8192) that give the divisors r->div; false: none does to 1e-4. */
bool lq_rope_recover(const lq_rope *r, double *factor, double *low, double *high);

/* A number in [lo, hi] (absent or null: def, unless required); LQ_ERR_FORMAT names the key. */
lq_status lq_params_real(lq_ctx *, const json_t *o, const char *key, bool required, double def, double lo, double hi, double *out);
/* How a family spells a key. */
const char *lq_params_key(const lq_family *f, const char *key);
lq_status lq_params_rope_hf(lq_ctx *, const lq_arch *, const json_t *config, lq_params *);
/* An activation as config.json names it; NULL: the family's own. */
lq_status lq_params_act(lq_ctx *, const lq_family *f, const char *name, lq_actfn *out);
/* The key readers the families share. */
lq_status lq_params_from_hf(lq_ctx *, const lq_arch *, const json_t *config, lq_params *);
lq_status lq_params_to_hf(lq_ctx *, const lq_arch *, const lq_params *, json_t **out);
double lq_params_shortest(float f); /* prints as f does: 1e-5 and not 9.99999974737875e-06 */
/* The same and family.moe. */
lq_status lq_params_moe_hf(lq_ctx *, const lq_arch *, const json_t *config, lq_params *);
lq_status lq_params_moe_to_hf(lq_ctx *, const lq_arch *, const lq_params *, json_t **out);
#endif
