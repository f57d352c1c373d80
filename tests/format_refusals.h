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
    {"safetensors", "*", "it holds float tensors only", "an ordinary folder"},
    {0},
};

static const refusal arch_format_refusals[] = { /* format, architecture */
    {0},
};
#endif
