/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Two checkpoints of one model, in any formats: which tensors are there, which types they have, how far their weights are apart. */
#ifndef LQ_DIFF_H
#define LQ_DIFF_H
#include "calib/model.h"
#include "core/recast.h"

typedef enum lq_diff_kind { LQ_DIFF_SAME, LQ_DIFF_VALUES, LQ_DIFF_SHAPE, LQ_DIFF_ONLY_A, LQ_DIFF_ONLY_B } lq_diff_kind;
extern const char *const lq_diff_kinds[]; /* "same", "differs", "shape", "only in A", "only in B" */

typedef struct lq_diff_row {
    const char *name;        /* borrowed from a model */
    lq_diff_kind kind;       /* SAME: every decoded weight is equal, whatever the types */
    char type_a[64], type_b[64]; /* "" where it is not */
    bool same_type;
    int64_t codes;           /* codes that differ where both have the same grid and order of columns; -1: not comparable */
    lq_loss loss;            /* of b's weights against a's */
} lq_diff_row;

typedef struct lq_diff {
    lq_diff_row *rows;
    size_t n, count[5];      /* count: by kind */
    size_t types;            /* tensors in both whose types differ */
    lq_loss loss;
} lq_diff;

/* Tensors are matched by what they are in the model (names of unknown ones). One pair is in memory at a time. out->rows in A's order, then those
 * of B alone; the models must outlive it. */
lq_status lq_diff_make(lq_ctx *ctx, lq_model *a, lq_model *b, lq_diff *out);
void lq_diff_free(lq_diff *d);
#endif
