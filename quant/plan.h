/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a run will do, decided before any weight is touched: the scheme of every row, legality, sizes. */
#ifndef LQ_PLAN_H
#define LQ_PLAN_H
#include "core/options.h"
#include "formats/sink.h"
#include "quant/method.h"

typedef struct lq_plan_opts {
    int64_t bits, group;          /* group 0: choose the largest of 128, 64, 32 that divides every quantized width; -1: per row */
    int asym;
    const char *scheme;           /* NULL or a named scheme */
    int scale_dtype;              /* 0: exact in F16 and BF16; 1: f16 */
    lq_strlist tensor_type;       /* REGEX=TYPE */
    lq_strlist ignore;            /* REGEX */
    int keep_unfit;
    int quantize_head, dtype;     /* --lm-head same; kept dtype for sources that hold no float type */
} lq_plan_opts;

typedef struct lq_plan {
    lq_catalog *cat;              /* rows resolved */
    const lq_method *method;
    const void *method_opts;
    const lq_format *format;
    uint32_t n_quantized, n_kept; /* linears */
    uint64_t weights_quantized, bytes_quantized, bytes_kept; /* stored bytes of the output */
    double bpw;                   /* of the quantized linears */
} lq_plan;
/* Named types of --tensor-type and --scheme: `lquant list types`. */
typedef struct lq_type { const char *name, *what; int bits, group, sym; } lq_type; /* group 0: the run's; bits 0: keep */
extern const lq_type lq_types[];
lq_status lq_plan_make(lq_ctx *ctx, lq_catalog *cat, const lq_plan_opts *o, const lq_method *method, const void *method_opts,
                       const lq_format *format, lq_plan *out);
#endif
