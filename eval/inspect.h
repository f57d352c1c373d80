/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a model on disk holds, from headers alone. */
#ifndef LQ_INSPECT_H
#define LQ_INSPECT_H
#include "eval/loaded.h"

/* Everything as one object (schema 1). m may be NULL when the source is no model that can be bound: then tensors have no role. */
lq_status lq_inspect_json(lq_ctx *ctx, lq_source *src, const lq_model *m, json_t **out); /* new reference */
/* The same object as text; tensors: with one line per tensor. */
lq_status lq_inspect_text(lq_ctx *ctx, const json_t *v, bool tensors, lq_buf *out);
#endif
