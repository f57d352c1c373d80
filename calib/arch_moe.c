/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Llama's attention before a mixture of experts (calib/moe.c):
 *
 *   h = norm(x);  x += O attn(...);   h = norm(x);  x += sum over the chosen e of g_e D_e (act(G_e h) * (U_e h)) + shared(h)
 *   shared(h) = sigmoid(s . h) D (act(G h) * (U h))
 *
 * Mixtral (Jiang et al. 2024, arXiv 2401.04088); Qwen2-MoE (Yang et al. 2024, arXiv 2407.10671): a shared expert; Qwen3-MoE: per-head
 * norms of q and k; OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): norms over all of q and of k, clamped. Blocks may have an ordinary
 * MLP instead. Transformers 5 can also save the experts of a block in one tensor: `stacks`. */
#include "calib/arch.h"

#define ATTENTION(QK_NORM) /* kind, role, out (SET unless ADD), {in}, only_if */ \
    {LQ_OP_NORM, LQ_R_ATTN_NORM, T_H, {T_RESID}, 0}, \
    {LQ_OP_LINEAR, LQ_R_Q, T_Q, {T_H}, 0}, \
    {LQ_OP_LINEAR, LQ_R_K, T_K, {T_H}, 0}, \
    {LQ_OP_LINEAR, LQ_R_V, T_V, {T_H}, 0}, \
    {QK_NORM, LQ_R_Q_NORM, T_Q, {T_Q}, LQ_FEAT_QK_NORM}, \
    {QK_NORM, LQ_R_K_NORM, T_K, {T_K}, LQ_FEAT_QK_NORM}, \
    {LQ_OP_CLAMP, LQ_R_NONE, T_Q, {T_Q}, LQ_FEAT_CLIP_QKV}, \
    {LQ_OP_CLAMP, LQ_R_NONE, T_K, {T_K}, LQ_FEAT_CLIP_QKV}, \
    {LQ_OP_CLAMP, LQ_R_NONE, T_V, {T_V}, LQ_FEAT_CLIP_QKV}, \
    {LQ_OP_ROPE, LQ_R_NONE, T_Q, {T_Q}, 0}, \
    {LQ_OP_ROPE, LQ_R_NONE, T_K, {T_K}, 0}, \
    {LQ_OP_ATTN, LQ_R_NONE, T_A, {T_Q, T_K, T_V}, 0}, \
    {LQ_OP_LINEAR, LQ_R_O, T_RESID | LQ_OUT_ADD, {T_A}, 0}, \
    {LQ_OP_NORM, LQ_R_MLP_NORM, T_H, {T_RESID}, 0}

#define EXPERTS \
    {LQ_OP_LINEAR, LQ_R_GATE, T_G, {T_H}, LQ_FEAT_DENSE}, \
    {LQ_OP_LINEAR, LQ_R_UP, T_U, {T_H}, LQ_FEAT_DENSE}, \
    {LQ_OP_GLU, LQ_R_NONE, T_F, {T_G, T_U}, LQ_FEAT_DENSE}, \
    {LQ_OP_LINEAR, LQ_R_DOWN, T_RESID | LQ_OUT_ADD, {T_F}, LQ_FEAT_DENSE}, \
    {LQ_OP_ROUTE, LQ_R_ROUTER, T_X, {T_H}, LQ_FEAT_MOE}, \
        {LQ_OP_LINEAR, LQ_R_EXPERT_GATE, T_XG, {T_X}, LQ_FEAT_MOE}, \
        {LQ_OP_LINEAR, LQ_R_EXPERT_UP, T_XU, {T_X}, LQ_FEAT_MOE}, \
        {LQ_OP_GLU, LQ_R_NONE, T_XF, {T_XG, T_XU}, LQ_FEAT_MOE}, \
        {LQ_OP_LINEAR, LQ_R_EXPERT_DOWN, T_XY, {T_XF}, LQ_FEAT_MOE}, \
    {LQ_OP_MERGE, LQ_R_NONE, T_RESID | LQ_OUT_ADD, {T_XY}, LQ_FEAT_MOE}, \
    {LQ_OP_LINEAR, LQ_R_SHARED_GATE, T_SG, {T_H}, LQ_FEAT_SHARED}, \
    {LQ_OP_LINEAR, LQ_R_SHARED_UP, T_SU, {T_H}, LQ_FEAT_SHARED}, \
    {LQ_OP_LINEAR, LQ_R_SHARED_ROUTER, T_SR, {T_H}, LQ_FEAT_SHARED}, \
    {LQ_OP_GLU, LQ_R_NONE, T_SF, {T_SG, T_SU}, LQ_FEAT_SHARED}, \
    {LQ_OP_LINEAR, LQ_R_SHARED_DOWN, T_SY, {T_SF}, LQ_FEAT_SHARED}, \
    {LQ_OP_TOKEN_GATE, LQ_R_NONE, T_RESID | LQ_OUT_ADD, {T_SY, T_SR}, LQ_FEAT_SHARED}, \
    {LQ_OP_END, LQ_R_NONE, 0, {0}, 0}

static const lq_op block[] = {ATTENTION(LQ_OP_HEAD_NORM), EXPERTS};
static const lq_op olmoe_block[] = {ATTENTION(LQ_OP_NORM), EXPERTS};

#define HF "model.layers.%d."
#define W LQ_PART_WEIGHT
#define B LQ_PART_BIAS
#define ATTENTION_NAMES(Q_DIM, K_DIM) /* in the order of the catalog: before, block, after (final norm on) */ \
    {LQ_R_EMBED, W, "model.embed_tokens.weight", "token_embd.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, 0}, \
    {LQ_R_ATTN_NORM, W, HF "input_layernorm.weight", "blk.%d.attn_norm.weight", LQ_DIM_HIDDEN, 0, 0}, \
    {LQ_R_Q, W, HF "self_attn.q_proj.weight", "blk.%d.attn_q.weight", LQ_DIM_Q, LQ_DIM_HIDDEN, 0}, \
    {LQ_R_Q, B, HF "self_attn.q_proj.bias", "blk.%d.attn_q.bias", LQ_DIM_Q, 0, LQ_FEAT_QKV_BIAS}, \
    {LQ_R_K, W, HF "self_attn.k_proj.weight", "blk.%d.attn_k.weight", LQ_DIM_KV, LQ_DIM_HIDDEN, 0}, \
    {LQ_R_K, B, HF "self_attn.k_proj.bias", "blk.%d.attn_k.bias", LQ_DIM_KV, 0, LQ_FEAT_QKV_BIAS}, \
    {LQ_R_V, W, HF "self_attn.v_proj.weight", "blk.%d.attn_v.weight", LQ_DIM_KV, LQ_DIM_HIDDEN, 0}, \
    {LQ_R_V, B, HF "self_attn.v_proj.bias", "blk.%d.attn_v.bias", LQ_DIM_KV, 0, LQ_FEAT_QKV_BIAS}, \
    {LQ_R_Q_NORM, W, HF "self_attn.q_norm.weight", "blk.%d.attn_q_norm.weight", Q_DIM, 0, LQ_FEAT_QK_NORM}, \
    {LQ_R_K_NORM, W, HF "self_attn.k_norm.weight", "blk.%d.attn_k_norm.weight", K_DIM, 0, LQ_FEAT_QK_NORM}, \
    {LQ_R_O, W, HF "self_attn.o_proj.weight", "blk.%d.attn_output.weight", LQ_DIM_HIDDEN, LQ_DIM_Q, 0}, \
    {LQ_R_O, B, HF "self_attn.o_proj.bias", "blk.%d.attn_output.bias", LQ_DIM_HIDDEN, 0, LQ_FEAT_O_BIAS}, \
    {LQ_R_MLP_NORM, W, HF "post_attention_layernorm.weight", "blk.%d.ffn_norm.weight", LQ_DIM_HIDDEN, 0, 0}

#define EXPERT_NAMES(MOE, G, U, D) \
    {LQ_R_ROUTER, W, HF MOE ".gate.weight", "blk.%d.ffn_gate_inp.weight", LQ_DIM_EXPERTS, LQ_DIM_HIDDEN, LQ_FEAT_MOE}, \
    {LQ_R_EXPERT_GATE, W, HF MOE ".experts.%e." G ".weight", "blk.%d.ffn_gate_exps.weight", LQ_DIM_EXPERT_FFN, LQ_DIM_HIDDEN, LQ_FEAT_MOE}, \
    {LQ_R_EXPERT_UP, W, HF MOE ".experts.%e." U ".weight", "blk.%d.ffn_up_exps.weight", LQ_DIM_EXPERT_FFN, LQ_DIM_HIDDEN, LQ_FEAT_MOE}, \
    {LQ_R_EXPERT_DOWN, W, HF MOE ".experts.%e." D ".weight", "blk.%d.ffn_down_exps.weight", LQ_DIM_HIDDEN, LQ_DIM_EXPERT_FFN, LQ_FEAT_MOE}

#define DENSE_NAMES \
    {LQ_R_GATE, W, HF "mlp.gate_proj.weight", "blk.%d.ffn_gate.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, LQ_FEAT_DENSE}, \
    {LQ_R_UP, W, HF "mlp.up_proj.weight", "blk.%d.ffn_up.weight", LQ_DIM_FFN, LQ_DIM_HIDDEN, LQ_FEAT_DENSE}, \
    {LQ_R_DOWN, W, HF "mlp.down_proj.weight", "blk.%d.ffn_down.weight", LQ_DIM_HIDDEN, LQ_DIM_FFN, LQ_FEAT_DENSE}

#define SHARED_NAMES \
    {LQ_R_SHARED_ROUTER, W, HF "mlp.shared_expert_gate.weight", "blk.%d.ffn_gate_inp_shexp.weight", LQ_DIM_ONE, LQ_DIM_HIDDEN, LQ_FEAT_SHARED}, \
    {LQ_R_SHARED_GATE, W, HF "mlp.shared_expert.gate_proj.weight", "blk.%d.ffn_gate_shexp.weight", LQ_DIM_SHARED_FFN, LQ_DIM_HIDDEN, LQ_FEAT_SHARED}, \
    {LQ_R_SHARED_UP, W, HF "mlp.shared_expert.up_proj.weight", "blk.%d.ffn_up_shexp.weight", LQ_DIM_SHARED_FFN, LQ_DIM_HIDDEN, LQ_FEAT_SHARED}, \
    {LQ_R_SHARED_DOWN, W, HF "mlp.shared_expert.down_proj.weight", "blk.%d.ffn_down_shexp.weight", LQ_DIM_HIDDEN, LQ_DIM_SHARED_FFN, LQ_FEAT_SHARED}

#define AFTER_NAMES \
    {LQ_R_FINAL_NORM, W, "model.norm.weight", "output_norm.weight", LQ_DIM_HIDDEN, 0, 0}, \
    {LQ_R_HEAD, W, "lm_head.weight", "output.weight", LQ_DIM_VOCAB, LQ_DIM_HIDDEN, LQ_FEAT_UNTIED}, \
    {LQ_R_NONE, W, NULL, NULL, 0, 0, 0}

static const lq_arch_name mixtral_names[] = {ATTENTION_NAMES(LQ_DIM_HEAD, LQ_DIM_HEAD), EXPERT_NAMES("block_sparse_moe", "w1", "w3", "w2"), AFTER_NAMES};
static const lq_arch_name qwen_names[] = {ATTENTION_NAMES(LQ_DIM_HEAD, LQ_DIM_HEAD), EXPERT_NAMES("mlp", "gate_proj", "up_proj", "down_proj"), SHARED_NAMES,
                                          DENSE_NAMES, AFTER_NAMES};
static const lq_arch_name olmoe_names[] = {ATTENTION_NAMES(LQ_DIM_Q, LQ_DIM_KV), EXPERT_NAMES("mlp", "gate_proj", "up_proj", "down_proj"), AFTER_NAMES};

static const lq_arch_stack stacks[] = { /* role, HF, GGUF, part, of parts */
    {LQ_R_ROUTER, HF "mlp.gate.weight", NULL, 0, 0},
    {LQ_R_EXPERT_GATE, HF "mlp.experts.gate_up_proj", NULL, 0, 2},
    {LQ_R_EXPERT_UP, HF "mlp.experts.gate_up_proj", NULL, 1, 2},
    {LQ_R_EXPERT_DOWN, HF "mlp.experts.down_proj", NULL, 0, 1},
    {LQ_R_EXPERT_GATE, NULL, "blk.%d.ffn_gate.%e.weight", 0, 0}, /* GGUF before stacks */
    {LQ_R_EXPERT_UP, NULL, "blk.%d.ffn_up.%e.weight", 0, 0},
    {LQ_R_EXPERT_DOWN, NULL, "blk.%d.ffn_down.%e.weight", 0, 0},
    {LQ_R_NONE, NULL, NULL, 0, 0},
};

#define TYPES(...) (const char *const[]){__VA_ARGS__, NULL}
#define READERS .params_hf = lq_params_moe_hf, .config = lq_params_moe_to_hf

const lq_arch lq_arch_mixtral = {
    .name = "mixtral", .model_types = TYPES("mixtral"), .gguf_archs = TYPES("llama"), .gguf = LQ_GGUF_ROPE_PAIRS | LQ_GGUF_DIVISORS | LQ_GGUF_LONG,
    .block = block, .names = mixtral_names, .stacks = stacks,
    .family = {.kv_heads = 8, .max_ctx = 131072, .windows = LQ_WINDOW_ALL, .hf_class = "MixtralForCausalLM", .rope_theta = 1e6, .eps = 1e-5,
               .moe = {.n = "num_local_experts", .n_absent = 8, .top_k_absent = 2, .norm_always = true}}, READERS};

const lq_arch lq_arch_qwen2_moe = {
    .name = "qwen2_moe", .model_types = TYPES("qwen2_moe"), .gguf_archs = TYPES("qwen2moe"), .gguf = LQ_GGUF_HEAD | LQ_GGUF_SQUARE, .block = block, .names = qwen_names, .stacks = stacks,
    .family = {.kv_heads = 16, .max_ctx = 32768, .window = 4096, .windows = LQ_WINDOW_EVEN_LAYERS, .hf_class = "Qwen2MoeForCausalLM",
               .moe = {.n = "num_experts", .ffn = "moe_intermediate_size", .shared_ffn = "shared_expert_intermediate_size", .n_absent = 60,
                       .top_k_absent = 4, .ffn_absent = 1408, .shared_absent = 5632, .norm_key = true, .sparse_keys = true, .qkv_bias_key = true}}, READERS};

const lq_arch lq_arch_qwen3_moe = {
    .name = "qwen3_moe", .model_types = TYPES("qwen3_moe"), .gguf_archs = TYPES("qwen3moe"), .block = block, .names = qwen_names, .stacks = stacks,
    .family = {.kv_heads = 4, .max_ctx = 32768, .window = 4096, .windows = LQ_WINDOW_SWITCHED, .attention_bias = true, .qk_norm = true,
               .hf_class = "Qwen3MoeForCausalLM",
               .moe = {.n = "num_experts", .ffn = "moe_intermediate_size", .n_absent = 128, .top_k_absent = 8, .ffn_absent = 768, .norm_key = true,
                       .gguf_norm = true, .sparse_keys = true}}, READERS};

const lq_arch lq_arch_olmoe = {
    .name = "olmoe", .model_types = TYPES("olmoe"), .gguf_archs = TYPES("olmoe"), .gguf = LQ_GGUF_HEAD | LQ_GGUF_SQUARE | LQ_GGUF_CLIP, .block = olmoe_block, .names = olmoe_names, .stacks = stacks,
    .family = {.max_ctx = 4096, .attention_bias = true, .qk_norm = true, .hf_class = "OlmoeForCausalLM", .eps = 1e-5,
               .moe = {.n = "num_experts", .n_absent = 64, .top_k_absent = 8, .norm_key = true, .clip = true}}, READERS};
