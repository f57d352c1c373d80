/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Text towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: Qwen2 and Qwen3 whose rope has an angle for each of three axes; in text all
 * three are the token's position. The first files keep the tower's settings at the top of config.json and its tensors unprefixed. */
#include "calib/arch.h"

static const lq_respelled names[] = {{"model.", "model.language_model."}, {NULL, NULL}};

const lq_arch lq_arch_qwen2_vl = {
    .name = "qwen2_vl", .model_types = (const char *const[]){"qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl", NULL},
    .gguf_archs = (const char *const[]){"qwen2vl", NULL}, .gguf = LQ_GGUF_MROPE | LQ_GGUF_SQUARE, .block = lq_llama_block, .names = lq_llama_names, .respelled = names, .params_hf = lq_params_from_hf,
    .family = {.hidden = 8192, .ffn = 29568, .layers = 80, .heads = 64, .vocab = 152064, .kv_heads = 8, .max_ctx = 32768, .window = 4096,
               .windows = LQ_WINDOW_BY_LAYER, .qkv_bias = true, .eps = 1e-5, .rope_theta = 1e6, .hf_class = "Qwen2VLForConditionalGeneration"}};

const lq_arch lq_arch_qwen3_vl = {
    .name = "qwen3_vl", .model_types = (const char *const[]){"qwen3_vl_text", NULL}, .gguf_archs = (const char *const[]){"qwen3vl", NULL},
    .gguf = LQ_GGUF_MROPE, .block = lq_llama_block, .names = lq_llama_names,
    .respelled = names, .params_hf = lq_params_from_hf,
    .family = {.hidden = 4096, .ffn = 22016, .layers = 32, .heads = 32, .vocab = 151936, .kv_heads = 32, .head_dim = 128, .max_ctx = 128000,
               .attention_bias = true, .qk_norm = true, .rope_theta = 5e5, .hf_class = "Qwen3VLForConditionalGeneration"}};
