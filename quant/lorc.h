/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Low-rank compensation of a quantized matrix (LoRC, ZeroQuant-V2, arXiv 2303.08302). */
#ifndef LQ_LORC_H
#define LQ_LORC_H
#include "quant/method.h"

/* Fills q->lr (LQ_X_LOWRANK, rank of its scheme) with the best A B for E = W - Q: of |E - A B|^2, or, given the Gram matrix, of
 * tr((E - A B) H (E - A B)^T). A and B share the scale and are rounded to F16. */
lq_status lq_lorc_fit(lq_ctx *ctx, const lq_weights *w, const lq_gram *gram, lq_qtensor *q);
#endif
