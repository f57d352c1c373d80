/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* --rotate: which rotation a model gets. */
#ifndef LQ_ROTATE_CHOICE_H
#define LQ_ROTATE_CHOICE_H
#include "calib/corpus.h"
#include "calib/rotate.h"
#include "quant/plan.h"

enum { LQ_ROTATION_NONE, LQ_ROTATION_HADAMARD, LQ_ROTATION_HEADS, LQ_ROTATION_AUTO };
#define LQ_ROTATION_CHOICES "none|hadamard|heads|auto"
#define LQ_ROTATION_FIXED "none|hadamard|heads" /* where there is nothing to judge by */

/* hadamard: the residual stream and, where the architecture allows it, the heads; heads: these only. What is refused says why. */
lq_status lq_rotation_set(lq_ctx *ctx, lq_model *m, int choice, int64_t seed);

typedef struct lq_rotation_judge { /* what auto decides by */
    const lq_plan_opts *plan;
    const lq_method *method;
    const void *method_opts;
    const lq_format *format;
    const lq_corpus_opts *corpus;
    uint64_t cache_budget;
    const char *work_dir;
} lq_rotation_judge;

typedef struct lq_verdict { /* sums over the linears of tr(E H E^T) / tr(W H W^T), E the error of rounding to the planned type */
    double plain, rotated;
    uint32_t linears;
    int choice;                  /* LQ_ROTATION_NONE when nothing is gained */
} lq_verdict;

/* auto: one fp pass over a short sample of the calibration text; m stays as it is. What cannot be rotated is not, and a log
 * line says why. */
lq_status lq_rotation_judged(lq_ctx *ctx, lq_model *m, int64_t seed, const lq_rotation_judge *judge, lq_verdict *out);
#endif
