/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Q(W diag(s)) diag(1/s): what a target scheme makes of scaled weights, seen from the unscaled side. */
#include "quant/xform.h"

#include "core/thread.h"
#include "kernels/kernels.h"

enum { SLICE = 32 };

typedef struct job { const float *w, *s; float *scaled, *out; uint32_t rows, cols; const lq_qtensor *q; } job;

static void scale_slice(void *arg, size_t i) {
    const job *j = arg;
    for (uint32_t r = (uint32_t)i * SLICE; r < (i + 1) * SLICE && r < j->rows; r++) {
        size_t at = (size_t)r * j->cols;
        for (uint32_t c = 0; c < j->cols; c++) j->scaled[at + c] = j->w[at + c] * j->s[c];
    }
}

static void decode_slice(void *arg, size_t i) {
    const job *j = arg;
    uint32_t r0 = (uint32_t)i * SLICE, nr = j->rows - r0 < SLICE ? j->rows - r0 : SLICE;
    float *out = j->out + (size_t)r0 * j->cols;
    lq_kernels_best()->dequant(j->q, r0, nr, out);
    for (uint32_t r = 0; j->s && r < nr; r++)
        for (uint32_t c = 0; c < j->cols; c++) out[(size_t)r * j->cols + c] /= j->s[c];
}

lq_status lq_xform_pseudo(lq_ctx *ctx, const lq_scheme *target, const float *w, uint32_t rows, uint32_t cols, const float *s, lq_fit fit,
                          const float *h, float *out) {
    lq_qtensor q = {0};
    float *hs = s && h && fit != LQ_FIT_MINMAX ? LQ_NEWN(float, cols) : NULL;
    lq_scheme plain = *target;
    lq_status st = LQ_OK;
    if (s && h && fit != LQ_FIT_MINMAX && !hs) LQ_GO(lq_oom(ctx, cols * 4));
    for (uint32_t c = 0; hs && c < cols; c++) hs[c] = h[c] / (s[c] * s[c]);
    plain.act = (lq_act){0};
    LQ_GO(lq_qtensor_init(ctx, &q, &plain, (lq_slot){.block = -1, .expert = -1}, rows, cols));
    job j = {w, s, out, out, rows, cols, &q}; /* the scaled weights stand where the result will */
    if (s) lq_parallel_for((rows + SLICE - 1) / SLICE, scale_slice, &j);
    const float *from = s ? out : w;
    LQ_GO(lq_grid_fit(ctx, &q, from, hs ? hs : h, fit));
    lq_grid_round(&q, from);
    lq_parallel_for((rows + SLICE - 1) / SLICE, decode_slice, &j);
done:
    lq_qtensor_free(&q);
    lq_free(hs);
    return st;
}
