/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GPT-2 (Radford et al. 2019): learned positions, LayerNorms, biases, gelu by tanh; q, k and v are one matrix, their rows one part
 * after the other, and Hugging Face files store every matrix of a block [cols][rows] (Conv1D).
 *
 *   h = norm(x);  x += O attn(split(QKV h + b)) + b;   h = norm(x);  x += D gelu(U h + b) + b */
#include "calib/arch.h"

static const lq_op block[] = {
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_QKV, T_QKV, {T_H}, 0},
    {LQ_OP_SPLIT, LQ_R_Q, T_Q, {T_QKV}, 0},
    {LQ_OP_SPLIT, LQ_R_K, T_K, {T_QKV}, 0},
    {LQ_OP_SPLIT, LQ_R_V, T_V, {T_QKV}, 0},
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0},
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H}, 0},
    {LQ_OP_ACT, LQ_R_NONE, T_F, {T_U}, 0},
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, 0},
    {LQ_OP_END, LQ_R_NONE, 0, {0}, 0},
};

#define HF "transformer.h.%d."
#define W LQ_PART_WEIGHT
#define B LQ_PART_BIAS
#define TURNED LQ_TRANSPOSED |
static const lq_arch_name names[] = {
    {LQ_R_EMBED, W, "transformer.wte.weight", "token_embd.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, 0},
    {LQ_R_POS_EMBED, W, "transformer.wpe.weight", "position_embd.weight", LQ_DIM_POSITIONS, LQ_DIM_HIDDEN, 0},
    {LQ_R_ATTN_NORM, W, HF "ln_1.weight", "blk.%d.attn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_ATTN_NORM, B, HF "ln_1.bias", "blk.%d.attn_norm.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_QKV, W, HF "attn.c_attn.weight", "blk.%d.attn_qkv.weight", TURNED LQ_DIM_QKV, LQ_DIM_HIDDEN, 0},
    {LQ_R_QKV, B, HF "attn.c_attn.bias", "blk.%d.attn_qkv.bias", LQ_DIM_QKV, 0, 0},
    {LQ_R_O, W, HF "attn.c_proj.weight", "blk.%d.attn_output.weight", TURNED LQ_DIM_HIDDEN, LQ_DIM_Q, 0},
    {LQ_R_O, B, HF "attn.c_proj.bias", "blk.%d.attn_output.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_MLP_NORM, W, HF "ln_2.weight", "blk.%d.ffn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_MLP_NORM, B, HF "ln_2.bias", "blk.%d.ffn_norm.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_UP, W, HF "mlp.c_fc.weight", "blk.%d.ffn_up.weight", TURNED LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_UP, B, HF "mlp.c_fc.bias", "blk.%d.ffn_up.bias", LQ_DIM_FFN, 0, 0},
    {LQ_R_DOWN, W, HF "mlp.c_proj.weight", "blk.%d.ffn_down.weight", TURNED LQ_DIM_HIDDEN, LQ_DIM_FFN, 0},
    {LQ_R_DOWN, B, HF "mlp.c_proj.bias", "blk.%d.ffn_down.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_FINAL_NORM, W, "transformer.ln_f.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_FINAL_NORM, B, "transformer.ln_f.bias", "output_norm.bias", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_HEAD, W, "lm_head.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED},
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0},
};

static lq_status params(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p) {
    bool scaled, by_layer, cross;
    LQ_TRY(lq_params_from_hf(ctx, a, c, p));
    LQ_TRY(lq_json_bool(ctx, c, "scale_attn_weights", true, &scaled));
    LQ_TRY(lq_json_bool(ctx, c, "scale_attn_by_inverse_layer_idx", false, &by_layer));
    LQ_TRY(lq_json_bool(ctx, c, "add_cross_attention", false, &cross));
    if (by_layer) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "attention scaled by the layer ('scale_attn_by_inverse_layer_idx') is not supported");
    if (cross) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "attention to an encoder ('add_cross_attention') is not supported");
    if (!scaled) p->attn_scale = 1;
    return LQ_OK;
}

const lq_arch lq_arch_gpt2 = {
    .name = "gpt2", .model_types = (const char *const[]){"gpt2", NULL}, .gguf_archs = (const char *const[]){"gpt2", NULL}, .gguf = LQ_GGUF_GELU | LQ_GGUF_SQUARE,
    .block = block, .names = names, .params_hf = params, .config = lq_params_to_hf, /* the first files have no prefix */
    .respelled = (const lq_respelled[]){{"transformer.", ""}, {NULL, NULL}},
    .family = {.keys = (const lq_respelled[]){{"hidden_size", "n_embd"}, {"num_hidden_layers", "n_layer"}, {"num_attention_heads", "n_head"},
                                              {"max_position_embeddings", "n_positions"}, {"intermediate_size", "n_inner"},
                                              {"rms_norm_eps", "layer_norm_epsilon"}, {NULL, NULL}},
               .hidden = 768, .layers = 12, .heads = 12, .vocab = 50257, .max_ctx = 1024, .ffn_times = 4, .layernorm = true, .eps = 1e-5, .tied = true,
               .act_key = "activation_function", .act = "gelu_new", .hf_class = "GPT2LMHeadModel"}};
