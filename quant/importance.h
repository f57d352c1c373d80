/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Statistics as llama.cpp's importance matrix, both ways. */
#ifndef LQ_IMPORTANCE_H
#define LQ_IMPORTANCE_H
#include "calib/corpus.h"
#include "calib/imatrix.h"
#include "calib/model.h"
#include "calib/stats.h"

/* Does OUT's name ask for llama.cpp's form? The file's name in a job's folder, or NULL. */
const char *lq_importance_form(const char *out);
/* One pass over the rows: every block's matrices (the head and the embedding are left out, as llama-imatrix leaves them), experts by the tokens
 * that came to them, all alike. */
lq_status lq_importance_gather(lq_ctx *ctx, lq_model *m, const lq_rows *rows, uint64_t cache_budget, const char *work_dir, lq_imatrix *out);
/* The entry of a row as statistics with squares (n = 1 token: means). *have false: it has none. LQ_ERR_MISMATCH: of another shape. */
lq_status lq_importance_stats(lq_ctx *ctx, const lq_imatrix *m, const lq_row *row, lq_stats *out, bool *have);
#endif
