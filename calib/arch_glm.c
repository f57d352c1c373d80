/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GLM-4 (Zhipu AI) as transformers has it: half of each head is turned, coordinate 2j with 2j + 1; biases on q, k and v; gate and up
 * in one matrix. "glm" (GLM-4-9B) adds its branches as Llama does, "glm4" (GLM-4-0414) norms each branch before it is added. */
#include "calib/arch.h"

#define ATTENTION                                                  \
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0},               \
    {LQ_OP_LINEAR, LQ_R_Q, T_Q, {T_H}, 0},                         \
    {LQ_OP_LINEAR, LQ_R_K, T_K, {T_H}, 0},                         \
    {LQ_OP_LINEAR, LQ_R_V, T_V, {T_H}, 0},                         \
    {LQ_OP_ROPE, LQ_R_NONE, T_Q, {T_Q}, 0},                        \
    {LQ_OP_ROPE, LQ_R_NONE, T_K, {T_K}, 0},                        \
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0}
#define MLP                                                        \
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H, {T_RESID}, 0},                \
    {LQ_OP_LINEAR, LQ_R_GATE_UP, T_GU, {T_H}, 0},                  \
    {LQ_OP_SPLIT, LQ_R_GATE, T_G, {T_GU}, 0},                      \
    {LQ_OP_SPLIT, LQ_R_UP, T_U, {T_GU}, 0},                        \
    {LQ_OP_GLU, LQ_R_NONE, T_F, {T_G, T_U}, 0}
#define END {LQ_OP_END, LQ_R_NONE, 0, {0}, 0}

static const lq_op plain[] = {
    ATTENTION,
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0},
    MLP,
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, 0},
    END,
};

static const lq_op sandwich[] = {
    ATTENTION,
    {LQ_OP_LINEAR, LQ_R_O, T_B, {T_A}, 0},
    {LQ_OP_NORM, LQ_R_ATTN_POST_NORM, T_RESID | LQ_OUT_ADD, {T_B}, 0},
    MLP,
    {LQ_OP_LINEAR, LQ_R_DOWN, T_B, {T_F}, 0},
    {LQ_OP_NORM, LQ_R_MLP_POST_NORM, T_RESID | LQ_OUT_ADD, {T_B}, 0},
    END,
};

#define HF "model.layers.%d."
#define W LQ_PART_WEIGHT
#define B LQ_PART_BIAS
#define BEFORE                                                                                                              \
    {LQ_R_EMBED, W, "model.embed_tokens.weight", "token_embd.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, 0},                      \
    {LQ_R_ATTN_NORM, W, HF "input_layernorm.weight", "blk.%d.attn_norm.weight", LQ_DIM_HIDDEN, 0, 0},                       \
    {LQ_R_Q, W, HF "self_attn.q_proj.weight", "blk.%d.attn_q.weight", LQ_DIM_Q, LQ_DIM_HIDDEN, 0},                          \
    {LQ_R_Q, B, HF "self_attn.q_proj.bias", "blk.%d.attn_q.bias", LQ_DIM_Q, 0, LQ_FEAT_QKV_BIAS},                           \
    {LQ_R_K, W, HF "self_attn.k_proj.weight", "blk.%d.attn_k.weight", LQ_DIM_KV, LQ_DIM_HIDDEN, 0},                         \
    {LQ_R_K, B, HF "self_attn.k_proj.bias", "blk.%d.attn_k.bias", LQ_DIM_KV, 0, LQ_FEAT_QKV_BIAS},                          \
    {LQ_R_V, W, HF "self_attn.v_proj.weight", "blk.%d.attn_v.weight", LQ_DIM_KV, LQ_DIM_HIDDEN, 0},                         \
    {LQ_R_V, B, HF "self_attn.v_proj.bias", "blk.%d.attn_v.bias", LQ_DIM_KV, 0, LQ_FEAT_QKV_BIAS},                          \
    {LQ_R_O, W, HF "self_attn.o_proj.weight", "blk.%d.attn_output.weight", LQ_DIM_HIDDEN, LQ_DIM_Q, 0},                     \
    {LQ_R_MLP_NORM, W, HF "post_attention_layernorm.weight", "blk.%d.ffn_norm.weight", LQ_DIM_HIDDEN, 0, 0},                \
    {LQ_R_GATE_UP, W, HF "mlp.gate_up_proj.weight", "blk.%d.ffn_up.weight", LQ_DIM_GATE_UP, LQ_DIM_HIDDEN, 0},              \
    {LQ_R_DOWN, W, HF "mlp.down_proj.weight", "blk.%d.ffn_down.weight", LQ_DIM_HIDDEN, LQ_DIM_FFN, 0}
#define AFTER                                                                                                               \
    {LQ_R_FINAL_NORM, W, "model.norm.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0},                                   \
    {LQ_R_HEAD, W, "lm_head.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED},                         \
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0}

static const lq_arch_name plain_names[] = {BEFORE, AFTER};
static const lq_arch_name sandwich_names[] = {
    BEFORE,
    {LQ_R_ATTN_POST_NORM, W, HF "post_self_attn_layernorm.weight", "blk.%d.post_attention_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_MLP_POST_NORM, W, HF "post_mlp_layernorm.weight", "blk.%d.post_ffw_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    AFTER,
};

#define FAMILY                                                                                                              \
    .hidden = 4096, .ffn = 13696, .layers = 40, .heads = 32, .vocab = 151552, .kv_heads = 2, .head_dim = 128, .max_ctx = 131072, \
    .attention_bias = true, .qkv_bias = true, .o_plain = true, .eps = 1.5625e-7, .partial = 0.5, .rope_pairs = true

const lq_arch lq_arch_glm = {.name = "glm", .model_types = (const char *const[]){"glm", NULL},
                             .gguf_archs = (const char *const[]){"chatglm", NULL}, .gguf = LQ_GGUF_SQUARE, .block = plain, .names = plain_names,
                             .params_hf = lq_params_from_hf, .config = lq_params_to_hf, .family = {FAMILY, .hf_class = "GlmForCausalLM"}};
const lq_arch lq_arch_glm4 = {.name = "glm4", .model_types = (const char *const[]){"glm4", NULL},
                              .gguf_archs = (const char *const[]){"glm4", NULL}, .block = sandwich, .names = sandwich_names,
                              .params_hf = lq_params_from_hf, .config = lq_params_to_hf, .family = {FAMILY, .hf_class = "Glm4ForCausalLM"}};
