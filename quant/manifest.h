/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant-manifest.json: what made these bytes, and nothing that differs between two runs that make the same bytes. */
#ifndef LQ_MANIFEST_H
#define LQ_MANIFEST_H
#include "calib/corpus.h"
#include "quant/plan.h"

/* New references; NULL: out of memory. */
json_t *lq_manifest_inputs(lq_ctx *ctx, lq_source *src, lq_status *st); /* [{"name", "sha256"}] of weights and sidecars */
json_t *lq_manifest_calibration(const lq_rows *rows, int64_t seed);
json_t *lq_manifest_module(const lq_row *row, const lq_qtensor *q, const lq_outcome *o);
json_t *lq_manifest_kept(const lq_catalog *cat);                              /* [{"name", "type", "why"?}] */
json_t *lq_manifest_outputs(lq_ctx *ctx, const char *dir, lq_status *st);     /* [{"name", "sha256"}] of every file in dir */
lq_outcome lq_manifest_outcome(const json_t *module);                         /* the numbers of a module entry, for quotas */
#endif
