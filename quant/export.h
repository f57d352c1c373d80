/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A model on disk as other checkpoints, its codes not chosen again: each matrix is read once, said in every format's scheme (core/recast),
 * written, and read back. One matrix is in memory at a time. */
#ifndef LQ_EXPORT_H
#define LQ_EXPORT_H
#include "calib/model.h"
#include "core/recast.h"
#include "quant/legal.h"
#include "quant/outputs.h"

typedef struct lq_export_opts {
    bool lossy;              /* what has no exact place takes the nearest one */
    lq_dtype dtype;          /* of float tensors in the output; LQ_NONE: as they are stored, BF16 for decoded ones */
    uint64_t shard_size;
    const lq_strlist *override_kv; /* gguf: keys said otherwise; NULL: none */
    const char *pre;         /* gguf: tokenizer.ggml.pre when the tokenizer's is not recognised; NULL */
    lq_targets targets;      /* runtimes that are to load every output */
    const json_t *about;     /* keys for the manifest; borrowed, may be NULL */
} lq_export_opts;

typedef struct lq_export_kind { char from[80], to[80]; size_t tensors; lq_loss loss; bool anew; const char *act; } lq_export_kind; /* act: "", or what changes about activations */
typedef struct lq_exported {     /* one output */
    const lq_format *format;
    lq_export_kind *kinds;       /* by type in and type out, in order of appearance */
    size_t n_kinds, quantized;   /* quantized: matrices still on codes */
    lq_loss loss;
    char worst[256];             /* tensor of the largest difference */
    uint64_t bytes;              /* of tensors */
} lq_exported;
void lq_exported_free(lq_exported *e);

/* Into the job's folder, out[outs->n] filled (the caller frees each, after a failure too). Without `lossy` a weight that changes is
 * LQ_ERR_UNSUPPORTED naming tensor, scheme, nearest scheme and the formats that hold it; floats asked for by dtype or by the format
 * safetensors may be rounded. LQ_ERR_QUALITY: something reads back differently. */
lq_status lq_export(lq_ctx *ctx, lq_source *src, lq_model *m, const lq_outputs *outs, lq_job *job, const lq_export_opts *o, lq_exported *out);
#endif
