/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Scales of fixed codes, jointly best under the Hessian. */
#ifndef LQ_RESCALE_H
#define LQ_RESCALE_H
#include "core/qtensor.h"
#include "kernels/linalg.h"

/* Moves the group scales of q (tiles of one row that divide its columns, single level, values proportional to the scale: no zeros, no own
 * codebook) to where tr((W-Q)(H + damp mean diag)(W-Q)^T) is least with the codes as they are; rounded to their type, and only in rows
 * where that loses less than before. h[cols][cols], w[rows][cols]. Parallel, same bits at any thread count. algorithms.md 20, 26 H. */
lq_status lq_rescale(lq_ctx *ctx, const float *w, const float *h, double damp, lq_qtensor *q);
#endif
