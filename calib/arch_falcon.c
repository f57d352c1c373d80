/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Falcon (Almazrouei et al. 2023): LayerNorms with biases around matrices without, rotary positions, q, k and v in one matrix: for each
 * kv head its q heads, its k, its v. Both branches read the same stream: 7B through one norm and with one kv head for all q heads,
 * 40B and 180B (new_decoder_architecture) through one norm each and with several kv heads; parallel_attn off: one after the other.
 *
 *   x += O attn(split(QKV norm(x))) + D gelu(U norm'(x)) */
#include "calib/arch.h"

enum { TWO = LQ_FEAT_TWO_NORMS, ONE = LQ_FEAT_ONE_NORM, NOT_ONE = LQ_UNLESS | LQ_FEAT_ONE_NORM, NOT_TWO = LQ_UNLESS | LQ_FEAT_TWO_NORMS,
       IN_TURN = LQ_UNLESS | LQ_FEAT_PARALLEL };
static const lq_op block[] = {
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H2, {T_RESID}, TWO},
    {LQ_OP_LINEAR, LQ_R_QKV, T_QKV, {T_H}, 0},
    {LQ_OP_SPLIT_HEADS, LQ_R_Q, T_Q, {T_QKV}, 0},
    {LQ_OP_SPLIT_HEADS, LQ_R_K, T_K, {T_QKV}, 0},
    {LQ_OP_SPLIT_HEADS, LQ_R_V, T_V, {T_QKV}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_Q, {T_Q}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_K, {T_K}, 0},
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0},
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H2, {T_RESID}, IN_TURN},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H}, ONE},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H2}, NOT_ONE},
    {LQ_OP_ACT, LQ_R_NONE, T_F, {T_U}, 0},
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, 0},
    {LQ_OP_END, LQ_R_NONE, 0, {0}, 0},
};

#define HF "transformer.h.%d."
#define W LQ_PART_WEIGHT
#define B LQ_PART_BIAS
static const lq_arch_name names[] = {
    {LQ_R_EMBED, W, "transformer.word_embeddings.weight", "token_embd.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, 0},
    {LQ_R_ATTN_NORM, W, HF "ln_attn.weight", "blk.%d.attn_norm_2.weight", LQ_DIM_HIDDEN, 0, TWO},
    {LQ_R_ATTN_NORM, B, HF "ln_attn.bias", "blk.%d.attn_norm_2.bias", LQ_DIM_HIDDEN, 0, TWO},
    {LQ_R_MLP_NORM, W, HF "ln_mlp.weight", "blk.%d.attn_norm.weight", LQ_DIM_HIDDEN, 0, TWO},
    {LQ_R_MLP_NORM, B, HF "ln_mlp.bias", "blk.%d.attn_norm.bias", LQ_DIM_HIDDEN, 0, TWO},
    {LQ_R_ATTN_NORM, W, HF "input_layernorm.weight", "blk.%d.attn_norm.weight", LQ_DIM_HIDDEN, 0, NOT_TWO},
    {LQ_R_ATTN_NORM, B, HF "input_layernorm.bias", "blk.%d.attn_norm.bias", LQ_DIM_HIDDEN, 0, NOT_TWO},
    {LQ_R_QKV, W, HF "self_attention.query_key_value.weight", "blk.%d.attn_qkv.weight", LQ_DIM_QKV, LQ_DIM_HIDDEN, 0},
    {LQ_R_QKV, B, HF "self_attention.query_key_value.bias", "blk.%d.attn_qkv.bias", LQ_DIM_QKV, 0, LQ_FEAT_QKV_BIAS},
    {LQ_R_O, W, HF "self_attention.dense.weight", "blk.%d.attn_output.weight", LQ_DIM_HIDDEN, LQ_DIM_Q, 0},
    {LQ_R_O, B, HF "self_attention.dense.bias", "blk.%d.attn_output.bias", LQ_DIM_HIDDEN, 0, LQ_FEAT_O_BIAS},
    {LQ_R_MLP_NORM, W, HF "post_attention_layernorm.weight", NULL, LQ_DIM_HIDDEN, 0, IN_TURN},
    {LQ_R_MLP_NORM, B, HF "post_attention_layernorm.bias", NULL, LQ_DIM_HIDDEN, 0, IN_TURN},
    {LQ_R_UP, W, HF "mlp.dense_h_to_4h.weight", "blk.%d.ffn_up.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_UP, B, HF "mlp.dense_h_to_4h.bias", "blk.%d.ffn_up.bias", LQ_DIM_FFN, 0, LQ_FEAT_MLP_BIAS},
    {LQ_R_DOWN, W, HF "mlp.dense_4h_to_h.weight", "blk.%d.ffn_down.weight", LQ_DIM_HIDDEN, LQ_DIM_FFN, 0},
    {LQ_R_DOWN, B, HF "mlp.dense_4h_to_h.bias", "blk.%d.ffn_down.bias", LQ_DIM_HIDDEN, 0, LQ_FEAT_MLP_BIAS},
    {LQ_R_FINAL_NORM, W, "transformer.ln_f.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_FINAL_NORM, B, "transformer.ln_f.bias", "output_norm.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_HEAD, W, "lm_head.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED},
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0},
};

/* num_kv_heads counts in the new form only; the old one has one kv head (multi_query) or as many as q heads. */
static lq_status kv_heads(lq_ctx *ctx, const json_t *c, bool new_form, lq_params *p) {
    bool multi_query;
    LQ_TRY(lq_json_bool(ctx, c, "multi_query", true, &multi_query));
    if (!new_form) p->n_kv_heads = multi_query ? 1 : p->n_heads;
    return LQ_OK;
}

static lq_status params(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p) {
    bool alibi, new_form;
    int64_t norms;
    LQ_TRY(lq_params_from_hf(ctx, a, c, p));
    LQ_TRY(lq_json_bool(ctx, c, "alibi", false, &alibi));
    if (alibi) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "positions by linear biases ('alibi') are not supported");
    LQ_TRY(lq_json_bool(ctx, c, "new_decoder_architecture", false, &new_form));
    LQ_TRY(lq_json_bool(ctx, c, "parallel_attn", true, &p->parallel));
    LQ_TRY(lq_json_bool(ctx, c, "bias", false, &p->qkv_bias));
    LQ_TRY(lq_json_int(ctx, c, "num_ln_in_parallel_attn", false, new_form ? 2 : 1, 1, 2, &norms));
    if (new_form && !p->parallel) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'parallel_attn' off in the new decoder architecture is not supported");
    if (!new_form && norms == 2) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'num_ln_in_parallel_attn' 2 belongs to the new decoder architecture");
    p->o_bias = p->mlp_bias = p->qkv_bias;
    p->one_norm = norms == 1;
    return kv_heads(ctx, c, new_form, p);
}

/* The old form wherever it can say it: one norm, and one kv head or as many as q heads. */
static lq_status config(lq_ctx *ctx, const lq_arch *a, const lq_params *p, json_t **out) {
    bool new_form = p->parallel && (!p->one_norm || (p->n_kv_heads != 1 && p->n_kv_heads != p->n_heads));
    LQ_TRY(lq_params_to_hf(ctx, a, p, out));
    json_object_set_new(*out, "alibi", json_false());
    json_object_set_new(*out, "bias", json_boolean(p->qkv_bias));
    json_object_set_new(*out, "parallel_attn", json_boolean(p->parallel));
    json_object_set_new(*out, "new_decoder_architecture", json_boolean(new_form));
    json_object_set_new(*out, "multi_query", json_boolean(new_form || p->n_kv_heads == 1));
    json_object_set_new(*out, "num_kv_heads", json_integer(p->n_kv_heads));
    if (new_form) json_object_set_new(*out, "num_ln_in_parallel_attn", json_integer(p->one_norm ? 1 : 2));
    return LQ_OK;
}

const lq_arch lq_arch_falcon = {
    .name = "falcon", .model_types = (const char *const[]){"falcon", NULL}, .gguf_archs = (const char *const[]){"falcon", NULL},
    .gguf = LQ_GGUF_GELU | LQ_GGUF_NO_BIAS | LQ_GGUF_SQUARE | LQ_GGUF_PARALLEL,
    .block = block, .names = names, .params_hf = params, .config = config,
    .family = {.keys = (const lq_respelled[]){{"intermediate_size", "ffn_hidden_size"}, {"num_key_value_heads", "num_kv_heads"},
                                              {"rms_norm_eps", "layer_norm_epsilon"}, {NULL, NULL}},
               .hidden = 4544, .ffn_times = 4, .layers = 32, .heads = 71, .vocab = 65024, .max_ctx = 2048, .layernorm = true, .eps = 1e-5, .tied = true,
               .act_key = "activation", .act = "gelu", .hf_class = "FalconForCausalLM"}};
