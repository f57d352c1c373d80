/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The constraint table: what keeps a runtime from loading a checkpoint. Every row was read in the runtime's own source or seen in it:
 * vLLM 0.32.0 on CUDA, transformers 5.23 with GPTQModel 7.6, llama.cpp of October 2026, TensorRT-LLM's PyTorch backend of 2026, mlx-lm
 * 0.32.2. Rules are of names, types and shapes; memory and the generation of a GPU are not checked. */
#include "quant/legal.h"

#include <string.h>

const lq_runtime_info lq_runtimes[LQ_RUNTIMES] = {
    [LQ_RT_VLLM] = {"vllm", "vLLM 0.32 on CUDA", "compressed-tensors|gptq|awq|fp8|modelopt|safetensors", true},
    [LQ_RT_TRANSFORMERS] = {"transformers", "transformers 5.23", "gptq|gptq_v2|compressed-tensors|awq|bitsandbytes|fp8|bitnet|safetensors", false},
    [LQ_RT_GPTQMODEL] = {"gptqmodel", "GPTQModel 7.6", "gptq|gptq_v2|awq", false},
    [LQ_RT_LLAMA_CPP] = {"llama.cpp", "llama.cpp of October 2026", "gguf", false},
    [LQ_RT_TRTLLM] = {"trtllm", "TensorRT-LLM of 2026, PyTorch backend", "modelopt|fp8|compressed-tensors|gptq|safetensors", true},
    [LQ_RT_MLX] = {"mlx", "mlx-lm 0.32", "mlx|awq|bitnet|safetensors", false},
};

/* -- what rules ask -------------------------------------------------------------------------------------------------- */

enum { ROW = 1, G32 = 2, G64 = 4, G128 = 8 };
#define ASK(name, ...) static bool name(const lq_piece *p, const lq_piece *o) { (void)p, (void)o; return __VA_ARGS__; }

static bool is_int(const lq_scheme *s) { return s->grid.kind == LQ_GRID_INT; }
static bool is_sym(const lq_scheme *s) { return s->zero_kind == LQ_ZERO_NONE; }
static bool has_act(const lq_scheme *s) { return s->act.kind != LQ_ACT_NONE; }
static bool bits_are(const lq_scheme *s, int b) { return is_int(s) && s->grid.bits == b; }
static bool weights_alone(const lq_scheme *s) { return is_int(s) && !has_act(s); }
static bool group_in(const lq_scheme *s, unsigned set) {
    int64_t g = lq_scheme_group(s);
    return set & (g == -1 ? ROW : g == 32 ? G32 : g == 64 ? G64 : g == 128 ? G128 : 0);
}
static uint32_t words_of(const lq_scheme *s) { return 32u / s->grid.bits; } /* codes in a word, of widths that divide it */
static bool is_power(int64_t g) { return g >= 16 && g <= 1024 && !(g & (g - 1)); }

ASK(not_4_8_sym, !is_sym(p->s) || (!bits_are(p->s, 4) && !bits_are(p->s, 8)))
ASK(not_4_bits, !bits_are(p->s, 4))
ASK(not_marlin_group, !group_in(p->s, ROW | G32 | G64 | G128))
ASK(not_trt_gptq, !bits_are(p->s, 4) || !group_in(p->s, G64 | G128))
ASK(not_power_group, lq_scheme_group(p->s) != -1 && !is_power(lq_scheme_group(p->s)))
ASK(not_wna16, weights_alone(p->s) && !bits_are(p->s, 4) && (!bits_are(p->s, 8) || !is_sym(p->s)))
ASK(not_wna16_group, weights_alone(p->s) && !group_in(p->s, ROW | G32 | G64 | G128))
ASK(not_w8a8, is_int(p->s) && has_act(p->s) && p->s->act.dtype != LQ_E4M3 && (!bits_are(p->s, 8) || !is_sym(p->s) || p->s->scale.tile_c))
ASK(int_in_trt, is_int(p->s))
ASK(asym_or_awq, is_int(p->s))
ASK(not_w4afp8, is_int(p->s) && has_act(p->s) && p->s->act.dtype == LQ_E4M3 && (!bits_are(p->s, 4) || !is_sym(p->s) || p->s->scale.tile_c != 128))
ASK(not_trt_fp8, p->s->grid.kind == LQ_GRID_E4M3 && (p->s->act.kind != LQ_ACT_DYNAMIC || (p->s->scale.tile_r != 1 && p->s->scale.tile_r != 128)))
ASK(not_block, p->s->scale.tile_r != 128 || p->s->scale.tile_c != 128)
static bool ragged(uint32_t side) { return side > 128 && side % 128; }
ASK(ragged_blocks, p->s->scale.tile_r == 128 && (ragged(lq_row_rows(p->row)) || ragged(lq_row_cols(p->row))))
ASK(not_mlx_group, is_int(p->s) && !group_in(p->s, G32 | G64 | G128))

ASK(not_whole, lq_row_rows(p->row) % p->parts_r || lq_row_cols(p->row) % p->parts_c)
/* A scale's tile must not lie on two devices. */
ASK(straddles, p->parts_c > 1 && p->s->scale.tile_r == 1 && p->s->scale.tile_c && p->s->scale.tile_c < lq_row_cols(p->row) && p->cols % p->s->scale.tile_c)
ASK(splits_words, is_int(p->s) && 32 % p->s->grid.bits == 0 && (p->rows % words_of(p->s) || p->cols % words_of(p->s)))
ASK(splits_zeros, is_int(p->s) && !is_sym(p->s) && 32 % p->s->grid.bits == 0 && p->rows % words_of(p->s))
static bool is_merged(const lq_piece *p) { return p->row->fuse >= 0; }
ASK(splits_blocks, p->s->scale.tile_r == 128 && ((p->parts_c > 1 && p->cols % 128) || ((p->parts_r > 1 || is_merged(p)) && p->rows % 128)))

ASK(has_window, p->c->window > 0)
ASK(unlike, !p->s || !o->s || !lq_scheme_eq(p->s, o->s))
ASK(heads_split, p->c->n_heads && (p->c->n_heads % p->tp || (p->c->n_kv_heads % p->tp && p->tp % p->c->n_kv_heads)))
static bool mixed(const lq_piece *p, const lq_piece *o) {
    const lq_scheme *first = NULL;
    (void)o;
    for (size_t i = 0; i < p->c->cat->n; i++) {
        const lq_row *r = &p->c->cat->rows[i];
        if (!r->quantize) continue;
        if (first && !lq_scheme_eq(first, &r->scheme)) return true;
        first = &r->scheme;
    }
    return false;
}
ASK(mixed_experts, lq_role_is_expert((lq_role)p->row->slot.role) && mixed(p, o) && p->s->grid.kind != LQ_GRID_E2M1 && (p->s->grid.kind != LQ_GRID_E4M3 || p->s->scale.tile_r))
ASK(asym_alone, weights_alone(p->s) && !is_sym(p->s))
ASK(int_act_experts, is_int(p->s) && has_act(p->s) && lq_role_is_expert((lq_role)p->row->slot.role))
ASK(any_experts, lq_role_is_expert((lq_role)p->row->slot.role))

/* -- the table ------------------------------------------------------------------------------------------------------- */

#define GPTQ "gptq|gptq_v2"
#define GROUPS "gptq|gptq_v2|awq|compressed-tensors"
#define NEVER(rt, format, says, source) {rt, format, NULL, LQ_OF_FORMAT, NULL, says, source}
#define V LQ_RT_VLLM
#define T LQ_RT_TRANSFORMERS
#define G LQ_RT_GPTQMODEL
#define L LQ_RT_LLAMA_CPP
#define N LQ_RT_TRTLLM
#define M LQ_RT_MLX

const lq_rule lq_rules[] = {
    /* vLLM */
    {V, "*", NULL, LQ_OF_MODEL, heads_split, "tp divides the heads, and divides or is a multiple of the kv heads", "models/llama.py: LlamaAttention"},
    {V, GPTQ, NULL, LQ_OF_LINEAR, not_4_8_sym, "4 or 8 bits, symmetric", "auto_gptq.py: TYPE_MAP"},
    {V, GPTQ, NULL, LQ_OF_LINEAR, not_marlin_group, "groups of 32, 64 or 128, or one per row", "marlin_utils.py: MARLIN_SUPPORTED_GROUP_SIZES"},
    {V, GPTQ, NULL, LQ_OF_LINEAR, splits_words, "a device's outputs and inputs are whole words of 32 bits", "auto_gptq.py: PackedvLLMParameter"},
    {V, "awq", NULL, LQ_OF_LINEAR, not_4_bits, "4 bits", "auto_awq.py: TYPE_MAP"},
    {V, "awq", NULL, LQ_OF_LINEAR, splits_words, "a device's outputs are whole words of 8 codes", "auto_awq.py: pack_factor"},
    {V, "compressed-tensors", NULL, LQ_OF_LINEAR, not_wna16, "weights alone: 4 bits, or 8 bits symmetric (others need the Humming package)",
     "marlin_utils.py: query_marlin_supported_quant_types"},
    {V, "compressed-tensors", NULL, LQ_OF_LINEAR, not_wna16_group, "weights alone: groups of 32, 64 or 128, or one per row", "marlin_utils.py: MARLIN_SUPPORTED_GROUP_SIZES"},
    {V, "compressed-tensors", NULL, LQ_OF_LINEAR, not_w8a8, "integer activations: 8-bit symmetric weights, one scale per row or tensor",
     "compressed_tensors.py: _is_dynamic_token_w8a8, _is_static_tensor_w8a8"},
    {V, "compressed-tensors", NULL, LQ_OF_LINEAR, not_w4afp8, "integers with FP8 activations: 4 bits in groups of 128, on Hopper alone",
     "compressed_tensors.py: _is_fp8_w4a8_sm90; compressed_tensors_w4a8_fp8.py"},
    {V, "compressed-tensors", NULL, LQ_OF_LINEAR, splits_zeros, "zero points of a device's outputs are whole words", "compressed_tensors_wNa16.py: zeros_args"},
    {V, GROUPS, NULL, LQ_OF_LINEAR, straddles, "a group lies on one device: the group size divides the inputs of a device", "marlin.py: can_implement; distributed/utils.py"},
    {V, "compressed-tensors|fp8|modelopt", NULL, LQ_OF_LINEAR, splits_blocks, "blocks of 128 x 128 divide every device's slice and every merged part (q, k, v; gate, up)",
     "fp8_utils.py: validate_fp8_block_shape"},
    {V, "modelopt", NULL, LQ_OF_LINEAR, asym_or_awq, "FP8 and NVFP4 (its reader has no W4A16_AWQ)", "modelopt.py: LINEAR_ALGOS"},
    {V, "modelopt", NULL, LQ_OF_LINEAR, mixed_experts, "experts in a mixture: FP8 of one scale, or NVFP4", "modelopt.py: ModelOptMixedPrecisionConfig.get_quant_method"},
    {V, "*", NULL, LQ_OF_LINEAR, not_whole, "tp divides a matrix's split side", "layers/linear.py: divide"},
    {V, "*", NULL, LQ_OF_FUSED, unlike, "q, k and v are of one type, and gate and up: they are one matrix there", "gptq_utils.py: is_layer_gptq_quantized"},
    {V, "*", NULL, LQ_OF_EXPERTS, unlike, "the experts of a layer are of one type", "auto_gptq.py: get_moe_quant_method"},
    {V, "*", "bitnet", LQ_OF_FORMAT, NULL, "no BitNet architecture", "models/registry.py"},
    NEVER(V, "bitsandbytes", "left vLLM's core with 0.28: only with vllm-bnb-plugin", "quantization/__init__.py"),
    NEVER(V, "gguf", "left vLLM's core with 0.24: only with vllm-gguf-plugin", "quantization/__init__.py"),
    NEVER(V, "bitnet", "no loader", "quantization/__init__.py"),
    NEVER(V, "squeezellm", "removed in 2024", "quantization/__init__.py"),
    NEVER(V, "mlx", "no loader", "quantization/__init__.py"),
    NEVER(V, "lqt", "lquant's own file", ""),

    /* transformers, with the package that reads the format */
    {T, GPTQ, NULL, LQ_OF_MODEL, mixed, "one width and group size: optimum knows no `dynamic` (GPTQModel.load does)", "seen: 'You set `ignore_mismatched_sizes` to `False`'"},
    {T, "gptq|gptq_v2|awq|bitsandbytes|bitnet", NULL, LQ_OF_LINEAR, any_experts, "experts stay floats: transformers 5 stacks them into one tensor that these do not quantize",
     "seen: experts left at random, or 'You set `ignore_mismatched_sizes` to `False`'"},
    {T, GPTQ, "gpt2", LQ_OF_FORMAT, NULL, "no Conv1D", "seen: 'TorchFusedLinear object has no attribute weight'"},
    {T, GPTQ, "falcon", LQ_OF_FORMAT, NULL, "Falcon's own linear class is not replaced, its weights stay random", "seen: load report, every qweight UNEXPECTED"},
    {T, "bitsandbytes", "falcon", LQ_OF_FORMAT, NULL, "Falcon's own linear class is not replaced", "seen: 'You set `ignore_mismatched_sizes` to `False`'"},
    {T, "bitnet", "gpt2", LQ_OF_FORMAT, NULL, "no Conv1D", "seen: 'You set `ignore_mismatched_sizes` to `False`'"},
    {T, "compressed-tensors", NULL, LQ_OF_LINEAR, asym_alone, "weights alone: symmetric (asymmetric ones load with CompressedTensorsConfig(dequantize=True) only)",
     "seen: 'weight_zero_point MISMATCH', with llm-compressor's own files too"},
    {T, "compressed-tensors", NULL, LQ_OF_LINEAR, int_act_experts, "no experts with integers and rounded activations", "seen: 'experts.gate_up_proj | CONVERSION'; W4AFP8: inputs not rounded"},
    {T, "compressed-tensors", "gpt2", LQ_OF_FORMAT, NULL, "no Conv1D", "compressed_tensors targets Linear"},
    {T, GPTQ, NULL, LQ_OF_LINEAR, not_power_group, "groups of 16, 32 ... 1024, or one per row", "gptqmodel qlinear/torch.py: SUPPORTS_GROUP_SIZE"},
    {T, "awq", NULL, LQ_OF_LINEAR, not_marlin_group, "groups of 32, 64 or 128, or one per row", "gptqmodel qlinear/torch_awq.py: SUPPORTS_GROUP_SIZE"},
    {T, "fp8", NULL, LQ_OF_LINEAR, not_block, "blocks of 128 x 128", "quantizer_finegrained_fp8.py"},
    {T, "fp8", NULL, LQ_OF_LINEAR, ragged_blocks, "128 divides both sides of a matrix, or they are shorter (dequantizing, it takes a block for an even share of a side)",
     "finegrained_fp8.py: _dequantize_one; seen: 'Weight shape (576, 576) not divisible by scale grid (5, 5)'"},
    {T, "gguf", "gemma|granite|glm|glm4|bitnet|mixtral|olmoe|opt|gpt_neox|phi|qwen2_vl|qwen3_vl|llava", LQ_OF_FORMAT, NULL, "it knows no such GGUF (and dequantizes those it reads)",
     "integrations/ggml.py: GGUF_CONFIG_MAPPING"},
    NEVER(T, "modelopt", "no quantizer of this name", "quantizers/auto.py"),
    NEVER(T, "squeezellm", "no quantizer of this name", "quantizers/auto.py"),
    NEVER(T, "mlx", "no quantizer of this name", "quantizers/auto.py"),
    NEVER(T, "lqt", "lquant's own file", ""),

    /* GPTQModel.load */
    {G, GPTQ, "phi3|glm|glm4", LQ_OF_FORMAT, NULL, "it splits gate_up_proj into gate_proj and up_proj and finds neither", "seen: 'Missing required quantized weights ... mlp.gate_proj.qweight'"},
    {G, "gptq|gptq_v2|awq", "mixtral", LQ_OF_LINEAR, any_experts, "it looks for experts.E.gate_proj; the hub's, vLLM's and llama.cpp's name is w1",
     "seen: 'Missing required quantized weights ... mlp.experts.0.gate_proj.qweight'; awq: silently random"},
    {G, GPTQ, "qwen2_vl|qwen2_5_vl", LQ_OF_FORMAT, NULL, "it looks for model.language_model.layers", "seen: 'Missing required quantized weights ... model.language_model.layers.0'"},
    {G, GPTQ, NULL, LQ_OF_LINEAR, not_power_group, "groups of 16, 32 ... 1024, or one per row", "qlinear/torch.py: SUPPORTS_GROUP_SIZE"},
    {G, "awq", NULL, LQ_OF_LINEAR, not_marlin_group, "groups of 32, 64 or 128, or one per row", "qlinear/torch_awq.py: SUPPORTS_GROUP_SIZE"},
    NEVER(G, "compressed-tensors|bitsandbytes|fp8|bitnet|modelopt|mlx|squeezellm|gguf|safetensors", "loads GPTQ and AWQ", "models/auto.py"),
    NEVER(G, "lqt", "lquant's own file", ""),

    /* llama.cpp */
    {L, "gguf", "opt", LQ_OF_FORMAT, NULL, "no OPT architecture", "src/llama-arch.h"},
    {L, "gguf", "mistral|mixtral|phi3|qwen2|qwen3|qwen2_moe|qwen3_moe|qwen2_vl|qwen2_5_vl", LQ_OF_MODEL, has_window,
     "it runs no sliding window of theirs: a text longer than one computes differently (a warning without --target)", "src/models/llama.cpp; phi3.cpp: 'Phi SWA is currently disabled'"},
    NEVER(L, "gptq|gptq_v2|compressed-tensors|awq|fp8|modelopt|bitnet|bitsandbytes|mlx|squeezellm|safetensors|lqt", "reads GGUF alone", "src/llama-model-loader.cpp"),

    /* TensorRT-LLM */
    {N, "*", NULL, LQ_OF_MODEL, heads_split, "tp divides the heads, and divides or is a multiple of the kv heads", "_torch/modules/attention.py"},
    {N, GPTQ, NULL, LQ_OF_LINEAR, not_trt_gptq, "4 bits, groups of 64 or 128 (newest source only)", "checkpoints/hf/gptq.py"},
    {N, "fp8", NULL, LQ_OF_LINEAR, not_block, "blocks of 128 x 128", "_torch/model_config.py: load_hf_quant_config"},
    {N, "compressed-tensors", NULL, LQ_OF_LINEAR, int_in_trt, "floats: FP8 per row or in blocks, NVFP4, MXFP4; no integers", "models/quant_config_utils.py"},
    {N, "compressed-tensors", NULL, LQ_OF_LINEAR, not_trt_fp8, "FP8: dynamic activations, one scale per row or block", "models/quant_config_utils.py"},
    {N, "*", "gemma|gemma2|granite|glm|glm4|bitnet|olmoe|opt|gpt2|gpt_neox|falcon|phi", LQ_OF_FORMAT, NULL, "no such architecture", "_torch/models/_arch_index.py"},
    {N, "*", NULL, LQ_OF_LINEAR, straddles, "a group lies on one device: the group size divides the inputs of a device", "_torch/modules/linear.py"},
    {N, "*", NULL, LQ_OF_LINEAR, splits_blocks, "blocks of 128 x 128 divide every device's slice", "_torch/modules/linear.py"},
    {N, "*", NULL, LQ_OF_LINEAR, not_whole, "tp divides a matrix's split side", "_torch/modules/linear.py"},
    {N, "*", NULL, LQ_OF_FUSED, unlike, "q, k and v are of one type, and gate and up: they are one matrix there", "_torch/modules/linear.py"},
    {N, "*", NULL, LQ_OF_EXPERTS, unlike, "the experts of a layer are of one type", "_torch/modules/fused_moe"},
    NEVER(N, "awq|bitsandbytes|bitnet|mlx|squeezellm|gguf", "no loader", "_torch/model_config.py: load_hf_quant_config"),
    NEVER(N, "lqt", "lquant's own file", ""),

    /* mlx-lm */
    {M, "mlx", NULL, LQ_OF_LINEAR, not_mlx_group, "groups of 32, 64 or 128", "mlx: quantize"},
    {M, "awq", NULL, LQ_OF_LINEAR, not_4_bits, "4 bits", "mlx_lm/utils.py: _transform_awq_weights"},
    {M, "awq", NULL, LQ_OF_LINEAR, not_mlx_group, "groups of 32, 64 or 128", "seen: 'The requested group size 16 is not supported.'"},
    {M, "*", "falcon|opt", LQ_OF_FORMAT, NULL, "no such architecture", "mlx_lm/models"},
    NEVER(M, GPTQ, "it refuses a g_idx, which transformers asks for", "mlx_lm/utils.py: _transform_awq_weights"),
    NEVER(M, "compressed-tensors", "it reads the config but not the tensors' names", "mlx_lm/utils.py: _compressed_tensors_quantization"),
    NEVER(M, "modelopt", "it takes NVFP4 activations and weights; ours are weights alone", "mlx_lm/utils.py: load_model"),
    NEVER(M, "bitsandbytes|fp8|squeezellm|gguf", "no loader", "mlx_lm/utils.py: load_model"),
    NEVER(M, "lqt", "lquant's own file", ""),
    {0},
};
