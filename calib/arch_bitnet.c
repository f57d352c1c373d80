/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* BitNet b1.58 (Ma et al. 2024, 2025): the Llama block with a norm before o_proj and one before down_proj, and relu^2.
 *
 *   x += O an(attn(..));  x += D fn(relu(G h)^2 * (U h)) */
#include "calib/arch.h"

static const lq_op block[] = {
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_Q, T_Q, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_K, T_K, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_V, T_V, {T_H}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_Q, {T_Q}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_K, {T_K}, 0},
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0},
    {LQ_OP_NORM, LQ_R_ATTN_SUB_NORM, T_A, {T_A}, 0},
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_GATE, T_G, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H}, 0},
    {LQ_OP_GLU, LQ_R_NONE, T_F, {T_G, T_U}, 0},
    {LQ_OP_NORM, LQ_R_FFN_SUB_NORM, T_F, {T_F}, 0},
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, 0},
    {LQ_OP_END, LQ_R_NONE, 0, {0}, 0},
};

#define HF "model.layers.%d."
#define W LQ_PART_WEIGHT
#define B LQ_PART_BIAS
static const lq_arch_name names[] = {
    {LQ_R_EMBED, W, "model.embed_tokens.weight", "token_embd.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, 0},
    {LQ_R_ATTN_NORM, W, HF "input_layernorm.weight", "blk.%d.attn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_Q, W, HF "self_attn.q_proj.weight", "blk.%d.attn_q.weight", LQ_DIM_Q, LQ_DIM_HIDDEN, 0},
    {LQ_R_Q, B, HF "self_attn.q_proj.bias", "blk.%d.attn_q.bias", LQ_DIM_Q, 0, LQ_FEAT_QKV_BIAS},
    {LQ_R_K, W, HF "self_attn.k_proj.weight", "blk.%d.attn_k.weight", LQ_DIM_KV, LQ_DIM_HIDDEN, 0},
    {LQ_R_K, B, HF "self_attn.k_proj.bias", "blk.%d.attn_k.bias", LQ_DIM_KV, 0, LQ_FEAT_QKV_BIAS},
    {LQ_R_V, W, HF "self_attn.v_proj.weight", "blk.%d.attn_v.weight", LQ_DIM_KV, LQ_DIM_HIDDEN, 0},
    {LQ_R_V, B, HF "self_attn.v_proj.bias", "blk.%d.attn_v.bias", LQ_DIM_KV, 0, LQ_FEAT_QKV_BIAS},
    {LQ_R_ATTN_SUB_NORM, W, HF "self_attn.attn_sub_norm.weight", "blk.%d.attn_sub_norm.weight", LQ_DIM_Q, 0, 0},
    {LQ_R_O, W, HF "self_attn.o_proj.weight", "blk.%d.attn_output.weight", LQ_DIM_HIDDEN, LQ_DIM_Q, 0},
    {LQ_R_O, B, HF "self_attn.o_proj.bias", "blk.%d.attn_output.bias", LQ_DIM_HIDDEN, 0, LQ_FEAT_O_BIAS},
    {LQ_R_MLP_NORM, W, HF "post_attention_layernorm.weight", "blk.%d.ffn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_GATE, W, HF "mlp.gate_proj.weight", "blk.%d.ffn_gate.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_UP, W, HF "mlp.up_proj.weight", "blk.%d.ffn_up.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_FFN_SUB_NORM, W, HF "mlp.ffn_sub_norm.weight", "blk.%d.ffn_sub_norm.weight", LQ_DIM_FFN, 0, 0},
    {LQ_R_DOWN, W, HF "mlp.down_proj.weight", "blk.%d.ffn_down.weight", LQ_DIM_HIDDEN, LQ_DIM_FFN, 0},
    {LQ_R_FINAL_NORM, W, "model.norm.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_HEAD, W, "lm_head.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED},
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0},
};

const lq_arch lq_arch_bitnet = {
    .name = "bitnet", .model_types = (const char *const[]){"bitnet", NULL}, .gguf_archs = (const char *const[]){"bitnet", NULL},
    .gguf = LQ_GGUF_NO_HEAD | LQ_GGUF_NO_BIAS | LQ_GGUF_SQUARE, .block = block, .names = names, .params_hf = lq_params_from_hf, .config = lq_params_to_hf,
    .family = {.hidden = 2560, .ffn = 6912, .layers = 30, .heads = 20, .vocab = 128256, .kv_heads = 5, .max_ctx = 2048, .attention_bias = true,
               .eps = 1e-5, .rope_theta = 500000, .act = "relu2", .hf_class = "BitNetForCausalLM"}};
