/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A quantized matrix said in another scheme. Planes are carried over, replicated or merged, codes shifted, widened or looked up; where the
 * values have a place in the new scheme every weight stays the same float, else the nearest codes are taken and the difference is told. */
#ifndef LQ_RECAST_H
#define LQ_RECAST_H
#include "core/qtensor.h"

typedef struct lq_loss {     /* decoded weights against what they were; adds up over matrices */
    uint64_t weights, changed; /* changed: another float; -0 counts as 0 */
    double max_abs;          /* largest |w - w'| */
    double square, energy;   /* sums of (w - w')^2 and w^2 */
} lq_loss;
void lq_loss_add(lq_loss *sum, const lq_loss *l);
/* n weights compared; adds to *sum. */
void lq_loss_measure(lq_loss *sum, const float *was, const float *is, size_t n);
double lq_loss_rms(const lq_loss *l); /* sqrt(square / energy); 0 without energy */

/* q in scheme `want`: shape, slot, bias, errors and what both schemes have of extras go along; out owns itself. *loss: of the decoded weights;
 * changed 0: every weight kept its value. How activations are quantized is no weight: it changes silently (a static step is carried
 * where both schemes have one).
 * Carried over: scales and zeros to finer tiles, to coarser ones where they agree, to other dtypes, into or out of a second level; a zero
 * point as grid bias, CODE plane or MIN plane; integer codes into more or fewer bits; E2M1 and sign codes as integers or E4M3; every
 * grid to floats; a grid with one scale per row to a table per row; columns back from a permuted order; extras into floats.
 * Else LQ_ERR_UNSUPPORTED with a sentence: the codes would have to be chosen anew. Deterministic at any thread count. */
lq_status lq_recast(lq_ctx *ctx, const lq_qtensor *q, const lq_scheme *want, lq_qtensor *out, lq_loss *loss);
#endif
