/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Which method's own type a format cannot hold, and which format cannot hold which architecture, and why: a refusal outside these
 * tables fails test_format_matrix. What one runtime or another makes of a checkpoint is quant/legal_rules.c. */
#ifndef LQ_TESTS_FORMAT_REFUSALS_H
#define LQ_TESTS_FORMAT_REFUSALS_H
#include "matrix.h"

static const refusal method_format_refusals[] = { /* format, method with its flags */
    {"gptq*", "*", "it holds integer weights alone", "a GPTQ linear is codes, scales and zero points"},
    {"gptq*", "hqq*", "zero points are codes of one byte per scale", "HQQ's zero points lie between codes; --asym rounds them"},
    {"gptq*", "ternary*", "scales are F16, one per row and group", "one F32 scale for a matrix; --group-size gives it groups"},
    {"awq", "*", "it holds", "AWQ's one layout: 4-bit integers with zero points"},
    {"awq", "hqq*", "zero points are codes of one byte per scale", "as GPTQ"},
    {"awq", "ternary*", "2 bits do not fit", "AWQ's one layout"},
    {"mlx", "*", "it holds weights in groups alone", "no scale for a whole row, no quantized activations"},
    {"mlx", "*", "and floats of", "affine integers, and the floats of one level of scales"},
    {"mlx", "hqq*", "zero points that are codes do not fit", "MLX adds a bias: zero * scale would be rounded"},
    {"mlx", "ternary*", "scales are F16, BF16 or F32, one per row and group", "one scale for a matrix; --group-size gives it groups"},
    {"modelopt", "*", "", "FP8, NVFP4, W4A16_AWQ: whatever sentence says so"},
    {"bitnet", "*", "it holds -1, 0, 1 alone", ""},
    {"bitnet", "ternary*", "its linears round their activations", "the method's own type has none: --scheme b1.58"},
    {"squeezellm", "*", "it holds codebooks of 4 to 16 values per row", ""},
    {"compressed-tensors", "*", "it holds integers of 2 to 8 bits, FP8, MXFP4 and NVFP4", "no tables of values, no floats"},
    {"compressed-tensors", "int8*", "activations with outliers apart do not fit", "LLM.int8 is bitsandbytes'"},
    {"compressed-tensors", "hqq*", "zero points are codes of one byte per scale", "as GPTQ"},
    {"compressed-tensors", "ternary*", "zero points are codes of one byte per scale", "-1, 0, 1 around zero is no zero point of two bits"},
    {"fp8", "*", "it holds E4M3 weights alone", "FP8"},
    {"fp8", "fp8*", "scales are F32, for blocks or for the whole matrix", "the method's own is one scale per row: --scheme FP8-block"},
    {"bitsandbytes", "*", "it holds NF4, FP4 and LLM.int8", "bitsandbytes' three"},
    {"bitsandbytes", "*", "integers are 8 bits, symmetric, with one F32 scale per row", "LLM.int8"},
    {"gguf", "*", "a GGUF has no block type for", "ggml's block types are types of their own"},
    {"safetensors", "*", "it holds float tensors only", "an ordinary folder"},
    {0},
};

static const refusal arch_format_refusals[] = { /* format, architecture */
    {"gguf", "opt*", "llama.cpp has no architecture for 'opt'", ""},
    {"gguf", "bitnet", "this model has relu2", "llama.cpp's bitnet is that of the first models"},
    {"gguf", "falcon*", "has no biases", "llama.cpp's Falcon"},
    {"gguf", "falcon*", "has no place for", "norms of Falcon 40B's two branches"},
    {"gguf", "gpt_neox*", "has no place for", ""},
    {"gguf", "olmoe", "has neither clip_qkv nor shared kv heads", "the golden model has both"},
    {"gguf", "glm", "wants heads as wide as the stream", "golden model with wider ones"},
    {"gguf", "gpt_neox*", "wants attention biases", "golden model without them"},
    {"gguf", "gemma*", "scales attention scores", "llama.cpp knows the scale of the released sizes alone"},
    {"gguf", "gemma*", "has no bias of the output projection", "golden model with one; llama.cpp's Gemma creates none"},
    {"gguf", "qwen*_moe", "has experts in every layer", "mlp_only_layers and decoder_sparse_step are not in its loader"},
    {0},
};
#endif
