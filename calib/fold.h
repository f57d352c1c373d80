/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Carrying out a fold on a loaded block: producer's channels divided by s, readers' columns multiplied by it. */
#ifndef LQ_FOLD_H
#define LQ_FOLD_H
#include "calib/model.h"
#include "calib/sites.h"

/* What is kept in a float type is written as that type, so a factor is legal where nothing kept is rounded by it. Replaces each
 * of s[site->scales] by the nearest legal one: within [1e-4, 1e4]; a power of two when pow2, or when the site touches a kept
 * matrix or bias that is not F32; the ratio of the old gain to the new one, which is rounded to its type first; else 1 (a zero
 * gain, a range that ends). The block is loaded as F32 and the plan has set its rows' quantize and out_dtype. expert: whose site it is
 * where the producer is an expert's, else -1. */
lq_status lq_fold_settle(lq_ctx *ctx, const lq_model *m, int32_t block, int32_t expert, const lq_site *site, bool pow2, float *s);
/* Folds settled scales into the loaded block. */
lq_status lq_fold_apply(lq_ctx *ctx, lq_model *m, int32_t block, int32_t expert, const lq_site *site, const float *s);
/* fn for every kept row of the catalog that the site changes. */
lq_status lq_fold_kept(lq_ctx *ctx, const lq_model *m, int32_t block, int32_t expert, const lq_site *site, lq_status (*fn)(void *user, const lq_row *row), void *user);

/* A kept row of a loaded block as it is to be written (out_dtype; lq_row_elems values), and back into the block. */
lq_status lq_fold_store(lq_ctx *ctx, const lq_model *m, const lq_row *row, lq_buf *out);
lq_status lq_fold_restore(lq_ctx *ctx, lq_model *m, const lq_row *row, const void *p, size_t n);
#endif
