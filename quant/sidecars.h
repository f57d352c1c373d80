/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The files that travel with the weights: copied byte for byte, or made for a source that has none (GGUF). */
#ifndef LQ_SIDECARS_H
#define LQ_SIDECARS_H
#include "calib/model.h"
#include "formats/sink.h"

/* Top-level keys of config.json that differ from the source's (null: dropped), for lq_sink_opts.config: embeddings a rotation untied,
 * quantization_config where a quantized source is decoded or told how master weights are run, the float type where floats says it (LQ_NONE: as it is). New reference;
 * NULL: out of memory. */
json_t *lq_sidecars_changes(const lq_model *m, lq_dtype floats);
/* All files but the description of a quantization that is gone. */
lq_status lq_sidecars_write(lq_ctx *ctx, lq_source *src, const lq_model *m, lq_sink *sink);
#endif
