/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Master weights of BitNet b1.58: config.json says the linears of the blocks are made ternary, and their inputs 8-bit, as the model
 * runs. lquant's view of such a model is the model that runs: reads of these linears give ternary weights. */
#ifndef LQ_MASTER_H
#define LQ_MASTER_H
#include "calib/model.h"

/* Reads quantization_config of the source; sets par.master. LQ_ERR_UNSUPPORTED for settings no published model has. */
lq_status lq_master_find(lq_ctx *ctx, lq_model *m);
bool lq_is_master(const lq_model *m, const lq_row *row);
/* w[n], all of a matrix, in place: clamp(round(w / s), -1, 1) s with s = mean |w|. Returns s. Source: arXiv 2402.17764, eq. 1-3. */
float lq_master_round(float *w, uint64_t n);
extern const lq_scheme lq_master_scheme; /* codes 0..2, one scale, activations I8 per token */
/* The linear as it runs. */
lq_status lq_master_linear(lq_ctx *ctx, lq_model *m, const lq_row *row, lq_qtensor *q);
#endif
