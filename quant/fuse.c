/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* max |W| over the linears that runtimes run as one (q/k/v, gate/up): such a matrix has a single second-level scale (NVFP4). */
#include "quant/road.h"

#include <math.h>

static bool wanted(const lq_row *row) { return row->fuse >= 0 && row->scheme.scale.parent != LQ_NONE && !row->scheme.scale.span; }

static bool fused(const lq_row *a, const lq_row *b) {
    return a->fuse == b->fuse && a->slot.block == b->slot.block && a->slot.expert == b->slot.expert && a->part == b->part && b->linear && b->quantize;
}

static float largest(const float *w, uint64_t n) {
    float most = 0;
    for (uint64_t i = 0; i < n; i++) most = fmaxf(most, fabsf(w[i]));
    return most;
}

float lq_fuse_stage(const lq_stage *stage, uint32_t i) {
    const lq_row *row = stage->lin[i]->row;
    float most = 0;
    for (uint32_t k = 0; k < stage->n && row->quantize && wanted(row); k++)
        if (fused(row, stage->lin[k]->row)) most = fmaxf(most, largest(stage->lin[k]->w, lq_row_elems(stage->lin[k]->row)));
    return most;
}

lq_status lq_fuse_read(road *r, const lq_row *row, float *out) {
    const lq_row *rows = r->model->cat.rows, *first = row;
    *out = 0;
    if (!wanted(row)) return LQ_OK;
    while (first > rows && fused(row, first - 1)) first--; /* most often the siblings stand together: one reading serves them all */
    if (r->fuse_of == first) return *out = r->fuse_most, LQ_OK;
    for (size_t i = 0; i < r->model->cat.n; i++) {
        if (!fused(row, &rows[i])) continue;
        float *w = lq_calloc(lq_row_elems(&rows[i]), sizeof *w);
        lq_status st = w ? lq_model_read_f32(r->ctx, r->model, &rows[i], w) : lq_oom(r->ctx, 4 * lq_row_elems(&rows[i]));
        if (!st) *out = fmaxf(*out, largest(w, lq_row_elems(&rows[i])));
        lq_free(w);
        LQ_TRY(st);
    }
    r->fuse_of = first;
    r->fuse_most = *out;
    return LQ_OK;
}
