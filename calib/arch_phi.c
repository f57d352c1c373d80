/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Phi-1, 1.5 and 2 (Li et al. 2023): LayerNorm, biases everywhere (the head too), rotary positions on part of each head, gelu by tanh,
 * both branches from one norm:
 *
 *   h = norm(x);  x += O attn(rope(Q h + b), rope(K h + b), V h + b) + b  +  D gelu(U h + b) + b */
#include "calib/arch.h"

static const lq_op block[] = {
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_Q, T_Q, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_K, T_K, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_V, T_V, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H}, 0},
    {LQ_OP_HEAD_NORM, LQ_R_Q_NORM, T_Q, {T_Q}, LQ_FEAT_QK_NORM},
    {LQ_OP_HEAD_NORM, LQ_R_K_NORM, T_K, {T_K}, LQ_FEAT_QK_NORM},
    {LQ_OP_ROPE, LQ_R_NONE, T_Q, {T_Q}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_K, {T_K}, 0},
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0},
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0},
    {LQ_OP_ACT, LQ_R_NONE, T_F, {T_U}, 0},
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, 0},
    {LQ_OP_END, LQ_R_NONE, 0, {0}, 0},
};

#define HF "model.layers.%d."
#define W LQ_PART_WEIGHT
#define B LQ_PART_BIAS
static const lq_arch_name names[] = {
    {LQ_R_EMBED, W, "model.embed_tokens.weight", "token_embd.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, 0},
    {LQ_R_ATTN_NORM, W, HF "input_layernorm.weight", "blk.%d.attn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_ATTN_NORM, B, HF "input_layernorm.bias", "blk.%d.attn_norm.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_Q, W, HF "self_attn.q_proj.weight", "blk.%d.attn_q.weight", LQ_DIM_Q, LQ_DIM_HIDDEN, 0},
    {LQ_R_Q, B, HF "self_attn.q_proj.bias", "blk.%d.attn_q.bias", LQ_DIM_Q, 0, 0},
    {LQ_R_K, W, HF "self_attn.k_proj.weight", "blk.%d.attn_k.weight", LQ_DIM_KV, LQ_DIM_HIDDEN, 0},
    {LQ_R_K, B, HF "self_attn.k_proj.bias", "blk.%d.attn_k.bias", LQ_DIM_KV, 0, 0},
    {LQ_R_V, W, HF "self_attn.v_proj.weight", "blk.%d.attn_v.weight", LQ_DIM_KV, LQ_DIM_HIDDEN, 0},
    {LQ_R_V, B, HF "self_attn.v_proj.bias", "blk.%d.attn_v.bias", LQ_DIM_KV, 0, 0},
    {LQ_R_Q_NORM, W, HF "self_attn.q_layernorm.weight", NULL, LQ_DIM_HEAD, 0, LQ_FEAT_QK_NORM},
    {LQ_R_Q_NORM, B, HF "self_attn.q_layernorm.bias", NULL, LQ_DIM_HEAD, 0, LQ_FEAT_QK_NORM},
    {LQ_R_K_NORM, W, HF "self_attn.k_layernorm.weight", NULL, LQ_DIM_HEAD, 0, LQ_FEAT_QK_NORM},
    {LQ_R_K_NORM, B, HF "self_attn.k_layernorm.bias", NULL, LQ_DIM_HEAD, 0, LQ_FEAT_QK_NORM},
    {LQ_R_O, W, HF "self_attn.dense.weight", "blk.%d.attn_output.weight", LQ_DIM_HIDDEN, LQ_DIM_Q, 0},
    {LQ_R_O, B, HF "self_attn.dense.bias", "blk.%d.attn_output.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_UP, W, HF "mlp.fc1.weight", "blk.%d.ffn_up.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_UP, B, HF "mlp.fc1.bias", "blk.%d.ffn_up.bias", LQ_DIM_FFN, 0, 0},
    {LQ_R_DOWN, W, HF "mlp.fc2.weight", "blk.%d.ffn_down.weight", LQ_DIM_HIDDEN, LQ_DIM_FFN, 0},
    {LQ_R_DOWN, B, HF "mlp.fc2.bias", "blk.%d.ffn_down.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_FINAL_NORM, W, "model.final_layernorm.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_FINAL_NORM, B, "model.final_layernorm.bias", "output_norm.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_HEAD, W, "lm_head.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED},
    {LQ_R_HEAD, B, "lm_head.bias", "output.bias", LQ_DIM_VOCAB, 0, LQ_FEAT_HEAD_BIAS},
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0},
};

static lq_status params(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p) {
    LQ_TRY(lq_params_from_hf(ctx, a, c, p));
    p->parallel = p->one_norm = true;
    p->head_bias = true;
    return lq_json_bool(ctx, c, "qk_layernorm", false, &p->qk_norm);
}

static lq_status config(lq_ctx *ctx, const lq_arch *a, const lq_params *p, json_t **out) {
    LQ_TRY(lq_params_to_hf(ctx, a, p, out));
    json_object_set_new(*out, "qk_layernorm", json_boolean(p->qk_norm));
    return LQ_OK;
}

const lq_arch lq_arch_phi = {
    .name = "phi", .model_types = (const char *const[]){"phi", NULL}, .gguf_archs = (const char *const[]){"phi2", NULL},
    .gguf = LQ_GGUF_GELU | LQ_GGUF_HEAD | LQ_GGUF_SQUARE | LQ_GGUF_PARALLEL,
    .block = block, .names = names, .params_hf = params, .config = config,
    .family = {.keys = (const lq_respelled[]){{"rms_norm_eps", "layer_norm_eps"}, {NULL, NULL}},
               .hidden = 2048, .ffn = 8192, .layers = 24, .heads = 32, .vocab = 51200, .max_ctx = 2048, .layernorm = true, .eps = 1e-5, .partial = 0.5,
               .act = "gelu_new", .hf_class = "PhiForCausalLM"}};
