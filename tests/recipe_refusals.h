/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Which recipe cannot be had for which architecture, and why: a refusal outside this table fails test_matrix. */
#ifndef LQ_TESTS_RECIPE_REFUSALS_H
#define LQ_TESTS_RECIPE_REFUSALS_H
#include "matrix.h"

static const refusal recipe_refusals[] = {
    {"*", "mxfp4*", "do not divide its", "a block of 32 weights shares a scale and rows are stored apart: narrow golden models have widths it does not divide"},
    {"*", "nvfp4*", "do not divide its", "the same with blocks of 16"},
    {"*", "* --rotate hadamard", "its LayerNorms subtract a mean", "rotation would make RMSNorms of them: another architecture"},
    {"*", "* --rotate hadamard", "a norm writes the residual stream", "post-norm: its gain stands between writer and stream and cannot be folded"},
    {"olmoe", "* --rotate *", "stands between the value projection and attention", "OLMoE clips q, k and v"},
    {"bitnet", "* --rotate *", "stands between attention and the output projection", "BitNet norms the heads' output"},
    {"opt_350m", "smoothquant*", "its norms write the residual stream", "post-norm: no linear alone reads a norm"},
    {0},
};
#endif
