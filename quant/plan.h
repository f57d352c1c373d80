/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a run will do, decided before any weight is touched: the scheme of every row, legality, sizes. */
#ifndef LQ_PLAN_H
#define LQ_PLAN_H
#include "core/options.h"
#include "formats/sink.h"
#include "quant/method.h"
#include "quant/types.h"

typedef struct lq_plan_opts {
    int64_t bits, group;     /* group 0: the largest of 128, 64, 32 that divides every quantized width; -1: one per row */
    int asym;                /* 0: as the type has it; 1: --asym, 2: --sym */
    int scale_dtype;         /* 0: exact in F16 and BF16; 1: F16 */
    const char *scheme;      /* NULL or a type of lq_types, instead of the default */
    const char *recipe_type; /* not an option: lq_recipe_type; NULL: the method's own, else int* */
    lq_strlist tensor_type;  /* REGEX=TYPE, on module names; the last match wins */
    lq_strlist ignore;       /* REGEX */
    int keep_unfit;          /* a linear the format cannot hold stays in its source type instead of being refused */
    const char *mixture;     /* not an option: lq_mixture_by_name, instead of scheme; NULL: scheme may still name one */
    const char *output_type, *embed_type; /* of a mixture */
    int pure, no_fallback, leave_output;
    bool imatrix;            /* not an option: there is one */
    bool no_requantize;      /* not an option: what the input has in blocks is copied or refused */
    bool requantize;         /* not an option: what the input has in codes is quantized again */
    const lq_format *const *also; /* not an option: further formats that must accept every scheme; NULL ends; NULL: none */
    int dtype;               /* index of lq_float_choices: type of kept tensors the source holds in no float type */
} lq_plan_opts;
extern const lq_opt lq_plan_options[];
#define LQ_FLOAT_CHOICES "bf16|f16|f32"
lq_dtype lq_float_choice(int index);

typedef struct lq_plan {
    lq_catalog *cat;         /* rows resolved; borrowed */
    const lq_method *method;
    const void *method_opts;
    const lq_format *format;
    uint32_t n_quantized, n_kept;            /* linears */
    uint64_t weights, bytes_quantized;       /* of the quantized linears */
    uint64_t bytes_kept, bytes_source;       /* everything else in the output; the whole input */
    int64_t group;                           /* the run's group size, chosen or given */
    int file_type;                           /* of a mixture: general.file_type; -1: none */
} lq_plan;

/* Fills plan and the catalog's quantize, scheme, out_dtype and why_kept. The first linear that cannot be done is an
 * LQ_ERR_UNSUPPORTED that names it and the nearest legal setting. */
lq_status lq_plan_make(lq_ctx *ctx, lq_catalog *cat, const lq_plan_opts *o, const lq_method *method, const void *method_opts,
                       const lq_format *format, lq_plan *out);
/* The scheme of a linear that no rule names; an open group size counts as 128. */
lq_status lq_plan_base(lq_ctx *ctx, const lq_plan_opts *o, const lq_method *method, const void *method_opts, lq_scheme *out);
/* A linear that was to be quantized stays as it is; why is static. */
void lq_plan_keep(lq_plan *p, const lq_plan_opts *o, lq_row *row, const char *why);
double lq_plan_bpw(const lq_plan *p);        /* bits per weight of the quantized linears, scales and zeros included */
void lq_plan_print(const lq_plan *p, FILE *out);
#endif
