/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* How a model lies in a GGUF beyond the names of its tensors: what the writer (gguf_meta.c) does and the reader (params_gguf.c, model.c) undoes,
 * stated once. Facts: llama.cpp's loader (src/models) and its converter (conversion/), October 2026. */
#ifndef LQ_GGUF_FORM_H
#define LQ_GGUF_FORM_H
#include "calib/arch.h"
#include "formats/source.h"

/* A setting that is one number of the metadata. */
typedef struct lq_gguf_setting {
    const char *suffix;      /* "<architecture>.<suffix>" */
    unsigned trait;          /* of the architectures that have the key */
    size_t at;               /* a float of lq_params */
    float absent;            /* what llama.cpp takes where the key is not there */
} lq_gguf_setting;
extern const lq_gguf_setting lq_gguf_settings[]; /* suffix NULL ends */

/* Divisors of rotary frequencies: F32 vectors that are no matrix of the model and no row of a catalog. */
typedef struct lq_gguf_factor {
    const char *name;
    unsigned trait;
    lq_rope_kind kind;       /* that they are of; DEFAULT: of none, they say all */
    size_t at;               /* a double * of lq_rope, [dim/2] */
} lq_gguf_factor;
extern const lq_gguf_factor lq_gguf_factors[]; /* name NULL ends */
bool lq_gguf_is_factor(const lq_arch *a, const char *name);

/* How the rows of a tensor lie: file row i is row rows[i] of the matrix (NULL: as it is); `add` is added to every element. */
typedef struct lq_gguf_lay { const uint32_t *rows; float add; } lq_gguf_lay;
/* part of a role, [n] rows, of ndim dimensions. *rows: from mem. */
lq_status lq_gguf_lay_of(lq_ctx *ctx, const lq_arch *a, const lq_params *p, lq_role role, lq_part part, uint32_t ndim, lq_arena *mem, lq_gguf_lay *out);

/* What a file of this architecture means where no key says it. */
lq_status lq_gguf_act(lq_ctx *ctx, const lq_arch *a, lq_actfn *out);       /* "lquant.hidden_act" says another one */
double lq_gguf_attn_scale(const lq_arch *a, const lq_params *p);           /* BY_BLOCKS */
bool lq_gguf_norm_topk(const lq_arch *a);                                  /* probabilities of the chosen experts are divided by their sum */

/* Parameters from the metadata and from which tensors there are, range-checked. */
lq_status lq_params_from_gguf(lq_ctx *ctx, const lq_arch *a, lq_source *src, lq_params *p);
#endif
