/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Gemma (Google DeepMind 2024, 2024, 2025). Embeddings are multiplied by sqrt(hidden); a norm with stored gain w multiplies by 1 + w.
 *
 *   Gemma 1      the Llama block with gelu
 *   Gemma 2, 3   each branch is normed before it is added: x += pn(O attn(..));  x += pn(D (gelu(G h) * (U h)))
 *   Gemma 2      scores and logits capped by c tanh(x / c); scores scaled by query_pre_attn_scalar^-1/2; every other layer has a window
 *   Gemma 3      per-head norms of q and k; five layers with a window and their own rope base, then one without
 *
 * transformers keeps sqrt(hidden) as a value of the weights' type (55.5 for 3072 in bf16); in fp32, as here, it is not rounded
 * further. GGUF stores 1 + w. */
#include "calib/arch.h"

#include <math.h>

static const lq_op block[] = {
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_Q, T_Q, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_K, T_K, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_V, T_V, {T_H}, 0},
    {LQ_OP_HEAD_NORM, LQ_R_Q_NORM, T_Q, {T_Q}, LQ_FEAT_QK_NORM},
    {LQ_OP_HEAD_NORM, LQ_R_K_NORM, T_K, {T_K}, LQ_FEAT_QK_NORM},
    {LQ_OP_ROPE, LQ_R_NONE, T_Q, {T_Q}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_K, {T_K}, 0},
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0},
    {LQ_OP_LINEAR, LQ_R_O, T_B, {T_A}, 0},
    {LQ_OP_NORM, LQ_R_ATTN_POST_NORM, T_RESID | LQ_OUT_ADD, {T_B}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_GATE, T_G, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H}, 0},
    {LQ_OP_GLU, LQ_R_NONE, T_F, {T_G, T_U}, 0},
    {LQ_OP_LINEAR, LQ_R_DOWN, T_B, {T_F}, 0},
    {LQ_OP_NORM, LQ_R_MLP_POST_NORM, T_RESID | LQ_OUT_ADD, {T_B}, 0},
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
    {LQ_R_Q_NORM, W, HF "self_attn.q_norm.weight", "blk.%d.attn_q_norm.weight", LQ_DIM_HEAD, 0, LQ_FEAT_QK_NORM},
    {LQ_R_K_NORM, W, HF "self_attn.k_norm.weight", "blk.%d.attn_k_norm.weight", LQ_DIM_HEAD, 0, LQ_FEAT_QK_NORM},
    {LQ_R_O, W, HF "self_attn.o_proj.weight", "blk.%d.attn_output.weight", LQ_DIM_HIDDEN, LQ_DIM_Q, 0},
    {LQ_R_O, B, HF "self_attn.o_proj.bias", "blk.%d.attn_output.bias", LQ_DIM_HIDDEN, 0, LQ_FEAT_O_BIAS},
    {LQ_R_ATTN_POST_NORM, W, HF "post_attention_layernorm.weight", "blk.%d.post_attention_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_MLP_NORM, W, HF "pre_feedforward_layernorm.weight", "blk.%d.ffn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_GATE, W, HF "mlp.gate_proj.weight", "blk.%d.ffn_gate.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_UP, W, HF "mlp.up_proj.weight", "blk.%d.ffn_up.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_DOWN, W, HF "mlp.down_proj.weight", "blk.%d.ffn_down.weight", LQ_DIM_HIDDEN, LQ_DIM_FFN, 0},
    {LQ_R_MLP_POST_NORM, W, HF "post_feedforward_layernorm.weight", "blk.%d.post_ffw_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_FINAL_NORM, W, "model.norm.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_HEAD, W, "lm_head.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED},
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0},
};

static lq_status common(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p) {
    bool both_ways;
    LQ_TRY(lq_params_from_hf(ctx, a, c, p));
    LQ_TRY(lq_json_bool(ctx, c, "use_bidirectional_attention", false, &both_ways));
    if (both_ways) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "attention in both directions ('use_bidirectional_attention') is not supported");
    p->norm_plus_one = true;
    p->embed_scale = (float)sqrt((double)p->hidden);
    return LQ_OK;
}

/* An absent cap is def, an explicit null none. */
static lq_status cap(lq_ctx *ctx, const json_t *c, const char *key, double def, float *out) {
    double v = 0;
    if (!json_is_null(json_object_get(c, key))) LQ_TRY(lq_params_real(ctx, c, key, false, def, 0, 1e9, &v));
    *out = (float)v;
    return LQ_OK;
}

static lq_status scaled(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p, double cap_attn, double cap_logits) {
    double scalar;
    LQ_TRY(common(ctx, a, c, p));
    LQ_TRY(lq_params_real(ctx, c, "query_pre_attn_scalar", false, 256, 1e-3, 1e9, &scalar));
    p->attn_scale = (float)(1 / sqrt(scalar));
    if (cap_attn > 0) LQ_TRY(cap(ctx, c, "attn_logit_softcapping", cap_attn, &p->attn_cap));
    return cap(ctx, c, "final_logit_softcapping", cap_logits, &p->logit_cap);
}

static lq_status params2(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p) { return scaled(ctx, a, c, p, 50, 30); }
/* As in transformers, scores of Gemma 3 are never capped, whatever attn_logit_softcapping says. */
static lq_status params3(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p) { return scaled(ctx, a, c, p, 0, 0); }

/* 1 / scale^2, which is a whole number in every published model. */
static json_t *scalar_of(float scale) {
    double v = 1 / ((double)scale * (double)scale);
    return fabs(v - rint(v)) < 1e-5 * v ? json_integer((json_int_t)rint(v)) : json_real(v);
}

static json_t *cap_out(float c) { return c != 0 ? json_real(lq_params_shortest(c)) : json_null(); }

static lq_status config3(lq_ctx *ctx, const lq_arch *a, const lq_params *p, json_t **out) {
    LQ_TRY(lq_params_to_hf(ctx, a, p, out));
    json_object_set_new(*out, "query_pre_attn_scalar", scalar_of(p->attn_scale));
    json_object_set_new(*out, "final_logit_softcapping", cap_out(p->logit_cap));
    return LQ_OK;
}

static lq_status config2(lq_ctx *ctx, const lq_arch *a, const lq_params *p, json_t **out) {
    LQ_TRY(config3(ctx, a, p, out));
    json_object_set_new(*out, "attn_logit_softcapping", cap_out(p->attn_cap));
    return LQ_OK;
}

#define TYPES(...) (const char *const[]){__VA_ARGS__, NULL}
#define GELU "gelu_pytorch_tanh"
#define GGUF LQ_GGUF_GAIN_ONE | LQ_GGUF_EMBED_SQRT | LQ_GGUF_GELU

const lq_arch lq_arch_gemma = {
    .name = "gemma", .model_types = TYPES("gemma"), .gguf_archs = TYPES("gemma"), .gguf = GGUF | LQ_GGUF_NO_HEAD, .block = lq_llama_block, .names = lq_llama_names, .params_hf = common, .config = lq_params_to_hf,
    .family = {.hidden = 3072, .ffn = 24576, .layers = 28, .heads = 16, .vocab = 256000, .kv_heads = 16, .head_dim = 256, .max_ctx = 8192,
               .attention_bias = true, .tied = true, .act = GELU, .gelu_is_tanh = true, .hf_class = "GemmaForCausalLM"}};

const lq_arch lq_arch_gemma2 = {
    .name = "gemma2", .model_types = TYPES("gemma2"), .gguf_archs = TYPES("gemma2"), .gguf_big = 46, .block = block, .names = names, .params_hf = params2, .config = config2,
    .gguf = GGUF | LQ_GGUF_NO_HEAD | LQ_GGUF_WINDOW | LQ_GGUF_BY_BLOCKS | LQ_GGUF_CAPS,
    .family = {.hidden = 2304, .ffn = 9216, .layers = 26, .heads = 8, .vocab = 256000, .kv_heads = 4, .head_dim = 256, .max_ctx = 8192, .window = 4096,
               .windows = LQ_WINDOW_ALTERNATE, .window_every = 2, .attention_bias = true, .tied = true, .act_key = "hidden_activation", .act = GELU,
               .hf_class = "Gemma2ForCausalLM"}};

const lq_arch lq_arch_gemma3 = {
    .name = "gemma3", .model_types = TYPES("gemma3_text"), .gguf_archs = TYPES("gemma3"), .gguf_big = 62, .block = block, .names = names, .params_hf = params3, .config = config3,
    .gguf = GGUF | LQ_GGUF_WINDOW | LQ_GGUF_BY_BLOCKS | LQ_GGUF_LOGIT_CAP,
    .family = {.hidden = 2304, .ffn = 9216, .layers = 26, .heads = 8, .vocab = 262208, .kv_heads = 4, .head_dim = 256, .max_ctx = 131072, .window = 4096,
               .windows = LQ_WINDOW_ALTERNATE, .window_every = 6, .window_every_key = "sliding_window_pattern", .attention_bias = true, .qk_norm = true,
               .tied = true, .rope_theta = 1e6, .local_theta = 1e4, .act_key = "hidden_activation", .act = GELU, .hf_class = "Gemma3ForCausalLM"}};
