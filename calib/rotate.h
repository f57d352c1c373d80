/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Rotation as a view of a model: every read of a tensor gives the folded and rotated one, the function stays the same.
 *
 *   stream (R1)  x -> x Q:   E Q;  W diag(gain) Q for what reads norm(x), the norm's gain becomes one;  Q^T W, b Q for what adds to x
 *   heads  (R2)  v -> v S^-1 R in every head:  R^T S^-1 W_v, b_v S^-1 R;  W_o S R, head by head; S balances v and o channel by channel
 *
 * QuaRot: Ashkboos et al. 2024, arXiv 2404.00456, sections 4.1 and 4.2; SpinQuant: Liu et al. 2024, arXiv 2405.16406. Where the
 * endpoints lie follows from walking the architecture's op table. All products in fp64, rounded once. */
#ifndef LQ_ROTATE_H
#define LQ_ROTATE_H
#include "calib/model.h"
#include "kernels/orthogonal.h"

enum { LQ_ROTATE_STREAM = 1, LQ_ROTATE_HEADS = 2 };

typedef struct lq_turn {         /* what rotation does to the tensors of one role in one layer */
    uint16_t gain;               /* lq_role of the norm whose gain goes into the columns; LQ_R_NONE */
    bool in_stream, out_stream;  /* columns and rows times Q */
    bool in_heads, out_heads;    /* the same with R, head by head */
    lq_op_kind split;            /* how the value heads lie in the rows (lq_split_row); LINEAR: they are all of them */
    bool one;                    /* a norm whose gain went elsewhere */
} lq_turn;

typedef struct lq_rotation {
    unsigned what;               /* LQ_ROTATE_* */
    uint64_t seed;
    bool untied;                 /* the catalog gained a head that is stored as the embedding */
    lq_orthogonal stream, heads;
} lq_rotation;

/* LQ_OK when the model can be rotated so; else LQ_ERR_UNSUPPORTED with the reason. */
lq_status lq_model_rotatable(lq_ctx *ctx, const lq_model *m, unsigned what);
/* From here on the model reads rotated. Call it before anything is loaded or planned: a tied embedding is untied, its catalog
 * gains the head. The same seed gives the same bytes. */
lq_status lq_model_rotate(lq_ctx *ctx, lq_model *m, unsigned what, uint64_t seed);
/* What happens to this row; all zero when nothing does. */
lq_turn lq_rotation_turn(const lq_model *m, const lq_row *row);
bool lq_turn_any(lq_turn t);
/* w[rows][cols] as stored, views undone, becomes what the rotated model has there. Parallel inside. */
lq_status lq_rotation_apply(lq_ctx *ctx, lq_model *m, const lq_row *row, float *w);
/* g[k][k], the symmetric second moments of the inputs of `row` (a linear) before rotation, becomes those after. Parallel inside. */
lq_status lq_rotation_moments(lq_ctx *ctx, lq_model *m, const lq_row *row, double *g);
/* x[n][k], inputs of `row` before rotation, become those after. Parallel inside. */
lq_status lq_rotation_inputs(lq_ctx *ctx, lq_model *m, const lq_row *row, float *x, uint32_t n);
void lq_rotation_free(lq_rotation **r);
#endif
