/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What every road to a GGUF shares: metadata for a resolved catalog. */
#ifndef LQ_GGUF_OUT_H
#define LQ_GGUF_OUT_H
#include "calib/gguf_meta.h"
#include "formats/sink.h"

/* Metadata for a format that wants it, *out NULL for the others; caller frees with lq_gguf_meta_free. What llama.cpp cannot hold is refused here, before
 * any weight is touched. */
lq_status lq_gguf_out_make(lq_ctx *ctx, const lq_format *f, const lq_model *m, const lq_gguf_opts *o, lq_gguf_meta **out);
/* The JSON under LQ_GGUF_KEY_MANIFEST instead of another; steals v, NULL: out of memory. NULL meta: nothing. */
lq_status lq_gguf_out_manifest(lq_ctx *ctx, lq_gguf_meta *meta, json_t *v);
/* The keys that depend on the catalog's types, and those the user says otherwise: last, right before the sink is opened. mixture: llama.cpp's number of a mixture, -1: that of the type
 * most weights have. NULL meta: nothing. */
void lq_gguf_out_finish(lq_gguf_meta *meta, const lq_catalog *cat, int mixture);
#endif
