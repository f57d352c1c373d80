/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* llama-quantize's mixtures: which block type each tensor of a GGUF gets. Rules as in llama.cpp's llama-quant.cpp of October 2026. */
#ifndef LQ_MIXTURE_H
#define LQ_MIXTURE_H
#include "core/catalog.h"

typedef struct lq_mixture {
    const char *name;
    int number;              /* general.file_type */
    lq_dtype base;           /* what most tensors get; F32, F16, BF16: nothing is quantized */
    bool only;               /* the name is no type of lq_types too: --scheme NAME means the mixture */
} lq_mixture;
extern const lq_mixture lq_mixtures[]; /* name NULL ends */
/* Any case; Q3_K, Q4_K, Q5_K are their _M, a number is a file_type, as llama-quantize has it; NULL: none. IQ1, IQ2 and IQ3 have no fitter here. */
const lq_mixture *lq_mixture_by_name(const char *name);

typedef struct lq_mixture_opts {
    lq_dtype output, embed;  /* --output-tensor-type, --token-embedding-type; NONE: by the rules */
    bool pure;               /* every tensor gets the base type */
    bool leave_output;       /* output.weight is not quantized */
    bool imatrix;            /* some rules ask whether there is one */
    bool no_fallback;        /* a row that its type's blocks do not divide is refused */
} lq_mixture_opts;

/* type[cat->n]: the block or float type of every linear weight; LQ_NONE for what is never quantized. Fallbacks are logged, each with its type
 * and both together with what they do to the bits per weight. Experts of a block get one type. */
lq_status lq_mixture_types(lq_ctx *ctx, const lq_mixture *m, const lq_mixture_opts *o, const lq_catalog *cat, lq_dtype *type);
/* What llama-quantize takes where a block type's blocks do not divide a row; the type itself where they do. */
lq_dtype lq_mixture_fallback(lq_dtype t, uint32_t cols);
#endif
