/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What ties a statistics file to a model: its identity, and which item a linear's inputs are. */
#ifndef LQ_STATISTICS_H
#define LQ_STATISTICS_H
#include "calib/corpus.h"
#include "calib/model.h"
#include "calib/stats_file.h"

/* The linear whose name the statistics of row's input have: the first of those that read the same tensor; NULL: row is none. */
const lq_row *lq_statistics_leader(const lq_catalog *cat, const lq_row *row);
/* "model" of an identity: architecture, parameters that decide activations, names and shapes of the linears, rotation. New reference. */
json_t *lq_statistics_model(const lq_model *m);
/* The whole identity: inputs as lq_manifest_inputs gives them. New reference; NULL: out of memory. */
json_t *lq_statistics_identity(const lq_model *m, const json_t *inputs, const lq_rows *rows, int64_t seed);
/* Is the file of this model? LQ_ERR_MISMATCH says what differs. Other weights of the same shapes are a warning. */
lq_status lq_statistics_fit(lq_ctx *ctx, const lq_stats_file *f, const lq_model *m, const json_t *inputs);
#endif
