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
 * gain, a range that ends). The block is loaded as F32 and the plan has set its rows' quantize and out_dtype. */
void lq_fold_settle(const lq_model *m, int32_t block, const lq_site *site, bool pow2, float *s);
/* Folds settled scales into the loaded block. */
void lq_fold_apply(lq_model *m, int32_t block, const lq_site *site, const float *s);
/* Kept rows of the catalog that the site changes; returns their number. At most LQ_FOLD_ROWS. */
enum { LQ_FOLD_ROWS = 2 * LQ_SITE_READERS + 2 };
uint32_t lq_fold_kept(const lq_model *m, int32_t block, const lq_site *site, const lq_row *rows[LQ_FOLD_ROWS]);

/* A kept row of a loaded block as it is to be written (out_dtype; lq_row_elems values), and back into the block. */
lq_status lq_fold_store(lq_ctx *ctx, const lq_model *m, const lq_row *row, lq_buf *out);
lq_status lq_fold_restore(lq_ctx *ctx, lq_model *m, const lq_row *row, const void *p, size_t n);
#endif
