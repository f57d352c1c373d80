/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* OPT (Zhang et al. 2022): learned positions from row 2 on, LayerNorms, biases, ReLU. All sizes but 350M norm before each branch:
 *
 *   h = norm(x);  x += O attn(Q h, K h, V h) + b;   h = norm(x);  x += D relu(U h + b) + b
 *
 * 350M norms the stream after each branch was added, has no final norm, and a narrower embedding with a projection on both ends. */
#include "calib/arch.h"

enum { POST = LQ_FEAT_POST_NORM, PRE = LQ_UNLESS | LQ_FEAT_POST_NORM };
static const lq_op block[] = {
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, PRE},
    {LQ_OP_LINEAR, LQ_R_Q, T_Q, {T_H}, PRE},
    {LQ_OP_LINEAR, LQ_R_K, T_K, {T_H}, PRE},
    {LQ_OP_LINEAR, LQ_R_V, T_V, {T_H}, PRE},
    {LQ_OP_LINEAR, LQ_R_Q, T_Q, {T_RESID}, POST},
    {LQ_OP_LINEAR, LQ_R_K, T_K, {T_RESID}, POST},
    {LQ_OP_LINEAR, LQ_R_V, T_V, {T_RESID}, POST},
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0},
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0},
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_RESID, {T_RESID}, POST},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H, {T_RESID}, PRE},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H}, PRE},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_RESID}, POST},
    {LQ_OP_ACT, LQ_R_NONE, T_F, {T_U}, 0},
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_RESID, {T_RESID}, POST},
    {LQ_OP_END, LQ_R_NONE, 0, {0}, 0},
};

#define HF "model.decoder.layers.%d."
#define W LQ_PART_WEIGHT
#define B LQ_PART_BIAS
static const lq_arch_name names[] = { /* llama.cpp has no OPT */
    {LQ_R_EMBED, W, "model.decoder.embed_tokens.weight", NULL, LQ_DIM_VOCAB, LQ_DIM_EMBED, 0},
    {LQ_R_PROJ_IN, W, "model.decoder.project_in.weight", NULL, LQ_DIM_HIDDEN, LQ_DIM_EMBED, LQ_FEAT_PROJ},
    {LQ_R_POS_EMBED, W, "model.decoder.embed_positions.weight", NULL, LQ_DIM_POSITIONS, LQ_DIM_HIDDEN, 0},
    {LQ_R_ATTN_NORM, W, HF "self_attn_layer_norm.weight", NULL, LQ_DIM_HIDDEN, 0, LQ_FEAT_NORM_GAIN},
    {LQ_R_ATTN_NORM, B, HF "self_attn_layer_norm.bias", NULL, LQ_DIM_HIDDEN, 0, LQ_FEAT_NORM_GAIN},
    {LQ_R_Q, W, HF "self_attn.q_proj.weight", NULL, LQ_DIM_Q, LQ_DIM_HIDDEN, 0},
    {LQ_R_Q, B, HF "self_attn.q_proj.bias", NULL, LQ_DIM_Q, 0, LQ_FEAT_QKV_BIAS},
    {LQ_R_K, W, HF "self_attn.k_proj.weight", NULL, LQ_DIM_KV, LQ_DIM_HIDDEN, 0},
    {LQ_R_K, B, HF "self_attn.k_proj.bias", NULL, LQ_DIM_KV, 0, LQ_FEAT_QKV_BIAS},
    {LQ_R_V, W, HF "self_attn.v_proj.weight", NULL, LQ_DIM_KV, LQ_DIM_HIDDEN, 0},
    {LQ_R_V, B, HF "self_attn.v_proj.bias", NULL, LQ_DIM_KV, 0, LQ_FEAT_QKV_BIAS},
    {LQ_R_O, W, HF "self_attn.out_proj.weight", NULL, LQ_DIM_HIDDEN, LQ_DIM_Q, 0},
    {LQ_R_O, B, HF "self_attn.out_proj.bias", NULL, LQ_DIM_HIDDEN, 0, LQ_FEAT_O_BIAS},
    {LQ_R_MLP_NORM, W, HF "final_layer_norm.weight", NULL, LQ_DIM_HIDDEN, 0, LQ_FEAT_NORM_GAIN},
    {LQ_R_MLP_NORM, B, HF "final_layer_norm.bias", NULL, LQ_DIM_HIDDEN, 0, LQ_FEAT_NORM_GAIN},
    {LQ_R_UP, W, HF "fc1.weight", NULL, LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_UP, B, HF "fc1.bias", NULL, LQ_DIM_FFN, 0, LQ_FEAT_MLP_BIAS},
    {LQ_R_DOWN, W, HF "fc2.weight", NULL, LQ_DIM_HIDDEN, LQ_DIM_FFN, 0},
    {LQ_R_DOWN, B, HF "fc2.bias", NULL, LQ_DIM_HIDDEN, 0, LQ_FEAT_MLP_BIAS},
    {LQ_R_FINAL_NORM, W, "model.decoder.final_layer_norm.weight", NULL, LQ_DIM_HIDDEN, 0, LQ_FEAT_FINAL_NORM},
    {LQ_R_FINAL_NORM, B, "model.decoder.final_layer_norm.bias", NULL, LQ_DIM_HIDDEN, 0, LQ_FEAT_FINAL_NORM},
    {LQ_R_PROJ_OUT, W, "model.decoder.project_out.weight", NULL, LQ_DIM_EMBED, LQ_DIM_HIDDEN, LQ_FEAT_PROJ},
    {LQ_R_HEAD, W, "lm_head.weight", NULL, LQ_DIM_VOCAB, LQ_DIM_EMBED, LQ_FEAT_UNTIED},
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0},
};

static lq_status params(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p) {
    bool before, removed, affine;
    int64_t width;
    LQ_TRY(lq_params_from_hf(ctx, a, c, p));
    LQ_TRY(lq_json_bool(ctx, c, "do_layer_norm_before", true, &before));
    LQ_TRY(lq_json_bool(ctx, c, "_remove_final_layer_norm", false, &removed));
    LQ_TRY(lq_json_bool(ctx, c, "layer_norm_elementwise_affine", true, &affine));
    LQ_TRY(lq_json_bool(ctx, c, "enable_bias", true, &p->qkv_bias));
    LQ_TRY(lq_json_int(ctx, c, "word_embed_proj_dim", false, p->hidden, 1, 1 << 20, &width));
    p->o_bias = p->mlp_bias = p->qkv_bias;
    p->post_norm = !before;
    p->no_final_norm = !before || removed;
    p->plain_norm = !affine;
    p->embed_dim = width == p->hidden ? 0 : (uint32_t)width;
    p->pos_offset = 2;
    return LQ_OK;
}

const lq_arch lq_arch_opt = {
    .name = "opt", .model_types = (const char *const[]){"opt", NULL}, .block = block, .names = names,
    .respelled = (const lq_respelled[]){{"model.decoder.", "decoder."}, {NULL, NULL}}, .params_hf = params,
    .family = {.keys = (const lq_respelled[]){{"intermediate_size", "ffn_dim"}, {NULL, NULL}},
               .hidden = 768, .ffn = 3072, .layers = 12, .heads = 12, .vocab = 50272, .max_ctx = 2048, .layernorm = true, .eps = 1e-5, .tied = true,
               .act_key = "activation_function", .act = "relu", .hf_class = "OPTForCausalLM"}};
