/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The Llama family: pre-norm blocks of grouped-query attention with rotary positions and a gated MLP.
 *
 *   h = norm(x);  x += O attn(rope(qn(Q h)), rope(kn(K h)), V h);   h = norm(x);  x += D (act(G h) * (U h))
 *
 * Llama (Touvron et al. 2023), SmolLM2; Mistral: attention window; Qwen2: q/k/v biases; Qwen3: per-head norms of q and k. */
#include "calib/arch.h"

const lq_op lq_llama_block[] = { /* kind, role, out (SET unless ADD), {in}, only_if */
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_Q, T_Q, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_K, T_K, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_V, T_V, {T_H}, 0},
    {LQ_OP_HEAD_NORM, LQ_R_Q_NORM, T_Q, {T_Q}, LQ_FEAT_QK_NORM},
    {LQ_OP_HEAD_NORM, LQ_R_K_NORM, T_K, {T_K}, LQ_FEAT_QK_NORM},
    {LQ_OP_ROPE, LQ_R_NONE, T_Q, {T_Q}, 0},
    {LQ_OP_ROPE, LQ_R_NONE, T_K, {T_K}, 0},
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0},
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0},
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H, {T_RESID}, 0},
    {LQ_OP_LINEAR, LQ_R_GATE, T_G, {T_H}, 0},
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H}, 0},
    {LQ_OP_GLU, LQ_R_NONE, T_F, {T_G, T_U}, 0},
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, 0},
    {LQ_OP_END, LQ_R_NONE, 0, {0}, 0},
};

#define HF "model.layers.%d."
#define W LQ_PART_WEIGHT
#define B LQ_PART_BIAS
const lq_arch_name lq_llama_names[] = { /* in the order of the catalog: before, block, after (final norm on) */
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
    {LQ_R_MLP_NORM, W, HF "post_attention_layernorm.weight", "blk.%d.ffn_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_GATE, W, HF "mlp.gate_proj.weight", "blk.%d.ffn_gate.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_GATE, B, HF "mlp.gate_proj.bias", "blk.%d.ffn_gate.bias", LQ_DIM_FFN, 0, LQ_FEAT_MLP_BIAS},
    {LQ_R_UP, W, HF "mlp.up_proj.weight", "blk.%d.ffn_up.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, 0},
    {LQ_R_UP, B, HF "mlp.up_proj.bias", "blk.%d.ffn_up.bias", LQ_DIM_FFN, 0, LQ_FEAT_MLP_BIAS},
    {LQ_R_DOWN, W, HF "mlp.down_proj.weight", "blk.%d.ffn_down.weight", LQ_DIM_HIDDEN, LQ_DIM_FFN, 0},
    {LQ_R_DOWN, B, HF "mlp.down_proj.bias", "blk.%d.ffn_down.bias", LQ_DIM_HIDDEN, 0, LQ_FEAT_MLP_BIAS},
    {LQ_R_FINAL_NORM, W, "model.norm.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0},
    {LQ_R_HEAD, W, "lm_head.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED},
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0},
};

#define TYPES(...) (const char *const[]){__VA_ARGS__, NULL}
#define READERS .params_hf = lq_params_from_hf, .config = lq_params_to_hf

const lq_arch lq_arch_llama = {
    .name = "llama", .model_types = TYPES("llama"), .gguf_archs = TYPES("llama"), .gguf = LQ_GGUF_ROPE_PAIRS | LQ_GGUF_DIVISORS | LQ_GGUF_LONG | LQ_GGUF_O_BIAS, .block = lq_llama_block,
    .names = lq_llama_names,
    .family = {.hidden = 4096, .ffn = 11008, .layers = 32, .heads = 32, .vocab = 32000, .max_ctx = 2048,
               .attention_bias = true, .mlp_bias = true, .hf_class = "LlamaForCausalLM"}, READERS};

const lq_arch lq_arch_mistral = {
    .name = "mistral", .model_types = TYPES("mistral"), .gguf_archs = TYPES("llama"), .gguf = LQ_GGUF_ROPE_PAIRS | LQ_GGUF_DIVISORS | LQ_GGUF_LONG | LQ_GGUF_O_BIAS, .block = lq_llama_block,
    .names = lq_llama_names,
    .family = {.hidden = 4096, .ffn = 14336, .layers = 32, .heads = 32, .vocab = 32000, .kv_heads = 8,
               .max_ctx = 131072, .window = 4096, .windows = LQ_WINDOW_ALL, .hf_class = "MistralForCausalLM"}, READERS};

const lq_arch lq_arch_qwen2 = {
    .name = "qwen2", .model_types = TYPES("qwen2"), .gguf_archs = TYPES("qwen2", "qwen2vl"), .gguf = LQ_GGUF_SQUARE, .block = lq_llama_block, .names = lq_llama_names,
    .family = {.hidden = 4096, .ffn = 22016, .layers = 32, .heads = 32, .vocab = 151936, .kv_heads = 32, .max_ctx = 32768,
               .window = 4096, .windows = LQ_WINDOW_BY_LAYER, .qkv_bias = true, .hf_class = "Qwen2ForCausalLM"},
    READERS};

const lq_arch lq_arch_qwen3 = {
    .name = "qwen3", .model_types = TYPES("qwen3"), .gguf_archs = TYPES("qwen3", "qwen3vl"), .block = lq_llama_block, .names = lq_llama_names,
    .family = {.hidden = 4096, .ffn = 22016, .layers = 32, .heads = 32, .vocab = 151936, .kv_heads = 32, .head_dim = 128,
               .max_ctx = 32768, .window = 4096, .windows = LQ_WINDOW_BY_LAYER, .attention_bias = true,
               .qk_norm = true, .hf_class = "Qwen3ForCausalLM"}, READERS};
