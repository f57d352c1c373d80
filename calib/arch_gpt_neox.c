/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GPT-NeoX (Black et al. 2022) and Pythia: LayerNorms, biases, rotary positions on the first quarter of each head, q, k and v of a
 * head side by side in one matrix. Both branches read the same stream, each through its own norm:
 *
 *   x += O attn(split(QKV norm1(x) + b)) + b  +  D gelu(U norm2(x) + b) + b
 *
 * unless use_parallel_residual is off: then the second branch reads what the first left. */
#include "calib/arch.h"

static const lq_op block[] = {
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H2, {T_RESID}, LQ_FEAT_PARALLEL},
    {LQ_OP_LINEAR, LQ_R_QKV, T_QKV, {T_H}, 0},
    {LQ_OP_SPLIT_HEADS, LQ_R_Q, T_Q, {T_QKV}, 0},
    {LQ_OP_SPLIT_HEADS, LQ_R_K, T_K, {T_QKV}, 0},
    {LQ_OP_SPLIT_HEADS, LQ_R_V, T_V, {T_QKV}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_Q, {T_Q}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_K, {T_K}, 0},
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0},
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H2, {T_RESID}, LQ_UNLESS | LQ_FEAT_PARALLEL},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H2}, 0},
    {LQ_OP_ACT, LQ_R_NONE, T_F, {T_U}, 0},
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, 0},
    {LQ_OP_END, LQ_R_NONE, 0, {0}, 0},
};

#define HF "gpt_neox.layers.%d."
#define W LQ_PART_WEIGHT
#define B LQ_PART_BIAS
static const lq_arch_name names[] = {
    {LQ_R_EMBED, W, "gpt_neox.embed_in.weight", "token_embd.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, 0},
    {LQ_R_ATTN_NORM, W, HF "input_layernorm.weight", "blk.%d.attn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_ATTN_NORM, B, HF "input_layernorm.bias", "blk.%d.attn_norm.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_QKV, W, HF "attention.query_key_value.weight", "blk.%d.attn_qkv.weight", LQ_DIM_QKV, LQ_DIM_HIDDEN, 0},
    {LQ_R_QKV, B, HF "attention.query_key_value.bias", "blk.%d.attn_qkv.bias", LQ_DIM_QKV, 0, LQ_FEAT_QKV_BIAS},
    {LQ_R_O, W, HF "attention.dense.weight", "blk.%d.attn_output.weight", LQ_DIM_HIDDEN, LQ_DIM_Q, 0},
    {LQ_R_O, B, HF "attention.dense.bias", "blk.%d.attn_output.bias", LQ_DIM_HIDDEN, 0, LQ_FEAT_O_BIAS},
    {LQ_R_MLP_NORM, W, HF "post_attention_layernorm.weight", "blk.%d.ffn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_MLP_NORM, B, HF "post_attention_layernorm.bias", "blk.%d.ffn_norm.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_UP, W, HF "mlp.dense_h_to_4h.weight", "blk.%d.ffn_up.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_UP, B, HF "mlp.dense_h_to_4h.bias", "blk.%d.ffn_up.bias", LQ_DIM_FFN, 0, 0},
    {LQ_R_DOWN, W, HF "mlp.dense_4h_to_h.weight", "blk.%d.ffn_down.weight", LQ_DIM_HIDDEN, LQ_DIM_FFN, 0},
    {LQ_R_DOWN, B, HF "mlp.dense_4h_to_h.bias", "blk.%d.ffn_down.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_FINAL_NORM, W, "gpt_neox.final_layer_norm.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_FINAL_NORM, B, "gpt_neox.final_layer_norm.bias", "output_norm.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_HEAD, W, "embed_out.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED},
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0},
};

static lq_status params(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p) {
    LQ_TRY(lq_params_from_hf(ctx, a, c, p));
    LQ_TRY(lq_json_bool(ctx, c, "attention_bias", true, &p->qkv_bias));
    p->o_bias = p->qkv_bias;
    return lq_json_bool(ctx, c, "use_parallel_residual", true, &p->parallel);
}

static lq_status config(lq_ctx *ctx, const lq_arch *a, const lq_params *p, json_t **out) {
    LQ_TRY(lq_params_to_hf(ctx, a, p, out));
    json_object_set_new(*out, "attention_bias", json_boolean(p->qkv_bias));
    json_object_set_new(*out, "use_parallel_residual", json_boolean(p->parallel));
    return LQ_OK;
}

const lq_arch lq_arch_gpt_neox = {
    .name = "gpt_neox", .model_types = (const char *const[]){"gpt_neox", NULL}, .gguf_archs = (const char *const[]){"gptneox", NULL},
    .gguf = LQ_GGUF_GELU | LQ_GGUF_HEAD | LQ_GGUF_QKV_BIAS | LQ_GGUF_SQUARE | LQ_GGUF_O_BIAS | LQ_GGUF_PARALLEL_KEY,
    .block = block, .names = names,
    .respelled = (const lq_respelled[]){{"embed_out.", "lm_head."}, {NULL, NULL}}, .params_hf = params, .config = config,
    .family = {.keys = (const lq_respelled[]){{"rms_norm_eps", "layer_norm_eps"}, {"rope_theta", "rotary_emb_base"},
                                              {"partial_rotary_factor", "rotary_pct"}, {NULL, NULL}},
               .hidden = 6144, .ffn = 24576, .layers = 44, .heads = 64, .vocab = 50432, .max_ctx = 2048, .layernorm = true, .eps = 1e-5, .partial = 0.25,
               .act = "gelu", .hf_class = "GPTNeoXForCausalLM"}};
