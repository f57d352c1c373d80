/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Phi-3 and Phi-4 (Microsoft 2024): the Llama block with q, k, v in one matrix (one after the other) and gate, up in another.
 * Phi-4-mini turns part of each head only; long-context models scale frequencies by longrope ("su" in the first files). */
#include "calib/arch.h"

static const lq_op block[] = {
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_QKV, T_QKV, {T_H}, 0},
    {LQ_OP_SPLIT, LQ_R_Q, T_Q, {T_QKV}, 0},
    {LQ_OP_SPLIT, LQ_R_K, T_K, {T_QKV}, 0},
    {LQ_OP_SPLIT, LQ_R_V, T_V, {T_QKV}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_Q, {T_Q}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_K, {T_K}, 0},
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0},
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_GATE_UP, T_GU, {T_H}, 0},
    {LQ_OP_SPLIT, LQ_R_GATE, T_G, {T_GU}, 0},
    {LQ_OP_SPLIT, LQ_R_UP, T_U, {T_GU}, 0},
    {LQ_OP_GLU, LQ_R_NONE, T_F, {T_G, T_U}, 0},
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, 0},
    {LQ_OP_END, LQ_R_NONE, 0, {0}, 0},
};

#define HF "model.layers.%d."
#define W LQ_PART_WEIGHT
static const lq_arch_name names[] = {
    {LQ_R_EMBED, W, "model.embed_tokens.weight", "token_embd.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, 0},
    {LQ_R_ATTN_NORM, W, HF "input_layernorm.weight", "blk.%d.attn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_QKV, W, HF "self_attn.qkv_proj.weight", "blk.%d.attn_qkv.weight", LQ_DIM_QKV, LQ_DIM_HIDDEN, 0},
    {LQ_R_O, W, HF "self_attn.o_proj.weight", "blk.%d.attn_output.weight", LQ_DIM_HIDDEN, LQ_DIM_Q, 0},
    {LQ_R_MLP_NORM, W, HF "post_attention_layernorm.weight", "blk.%d.ffn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_GATE_UP, W, HF "mlp.gate_up_proj.weight", "blk.%d.ffn_up.weight", LQ_DIM_GATE_UP, LQ_DIM_HIDDEN, 0},
    {LQ_R_DOWN, W, HF "mlp.down_proj.weight", "blk.%d.ffn_down.weight", LQ_DIM_HIDDEN, LQ_DIM_FFN, 0},
    {LQ_R_FINAL_NORM, W, "model.norm.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_HEAD, W, "lm_head.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED},
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0},
};

const lq_arch lq_arch_phi3 = {
    .name = "phi3", .model_types = (const char *const[]){"phi3", NULL}, .gguf_archs = (const char *const[]){"phi3", NULL}, .gguf = LQ_GGUF_LONG | LQ_GGUF_SQUARE,
    .block = block, .names = names, .params_hf = lq_params_from_hf, .config = lq_params_to_hf,
    .family = {.hidden = 3072, .ffn = 8192, .layers = 32, .heads = 32, .vocab = 32064, .max_ctx = 4096, .windows = LQ_WINDOW_ALL, .eps = 1e-5,
               .partial = 1, .long_context = 4096, .hf_class = "Phi3ForCausalLM"}};
