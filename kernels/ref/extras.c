/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a qtensor holds besides codes: low rank and sparse values are added to what the codes give, kept columns replace it
 * (core/qtensor.h). Codes under kept columns mean 0, so for gemv they too are added. */
#include "kernels/ref/ref.h"

#include "core/num.h"

void lq_dequant_extras(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out, lq_decode_fn decode) {
    enum { PART = 512 };
    uint32_t rank = q->sch.extra & LQ_X_LOWRANK ? q->sch.rank : 0;
    float b[PART];
    for (uint32_t k = 0; k < rank; k++) /* a row of b is decoded once for all rows; a weight's sums keep their order */
        for (uint32_t c0 = 0; c0 < q->cols; c0 += PART) {
            uint32_t n = q->cols - c0 < PART ? q->cols - c0 : PART;
            decode(LQ_F16, q->lr.b + (size_t)k * q->cols + c0, b, n);
            for (uint32_t r = 0; r < nr; r++) {
                float a = lq_f16_f32(q->lr.a[(size_t)(r0 + r) * rank + k]), *w = out + (size_t)r * q->cols + c0;
                for (uint32_t c = 0; c < n; c++) w[c] += a * b[c];
            }
        }
    for (uint32_t r = 0; r < nr; r++) lq_qtensor_add_sparse(q, r0 + r, out + (size_t)r * q->cols);
}

static double sparse_row(const lq_qtensor *q, uint32_t r, const float *x) {
    const lq_csr *o = &q->outliers;
    double sum = 0;
    for (uint32_t i = o->n ? o->row[r] : 0; o->n && i < o->row[r + 1]; i++) sum += (double)lq_f16_f32(o->v[i]) * (double)x[o->col[i]];
    return sum;
}

/* Kept columns, less what low rank and sparse values gave there. */
static double kept_row(const lq_qtensor *q, uint32_t r, const float *x) {
    const lq_cols *kept = &q->outlier_cols;
    const lq_csr *o = &q->outliers;
    uint32_t rank = q->sch.extra & LQ_X_LOWRANK ? q->sch.rank : 0;
    uint32_t at = o->n ? o->row[r] : 0, end = o->n ? o->row[r + 1] : 0;
    double sum = 0;
    for (uint32_t i = 0; i < kept->n; i++) {
        uint32_t c = kept->idx[i];
        double w = lq_f16_f32(kept->v[(size_t)r * kept->n + i]);
        for (uint32_t k = 0; k < rank; k++) w -= (double)lq_f16_f32(q->lr.a[(size_t)r * rank + k]) * (double)lq_f16_f32(q->lr.b[(size_t)k * q->cols + c]);
        while (at < end && o->col[at] < c) at++;
        if (at < end && o->col[at] == c) w -= (double)lq_f16_f32(o->v[at]);
        sum += w * (double)x[c];
    }
    return sum;
}

void lq_gemv_low(const lq_qtensor *q, uint32_t r0, uint32_t nr, uint32_t k0, uint32_t n, const double *t, float *y) {
    for (uint32_t r = 0; r < nr; r++) {
        double sum = 0;
        for (uint32_t k = 0; k < n; k++) sum += (double)lq_f16_f32(q->lr.a[(size_t)(r0 + r) * q->sch.rank + k0 + k]) * t[k];
        y[r] = (float)((double)y[r] + sum);
    }
}

void lq_gemv_sparse(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y) {
    for (uint32_t r = 0; r < nr; r++) {
        if (q->sch.extra & LQ_X_OUTLIERS) y[r] = (float)((double)y[r] + sparse_row(q, r0 + r, x));
        if (q->sch.extra & LQ_X_OUTLIER_COLS) y[r] = (float)((double)y[r] + kept_row(q, r0 + r, x));
    }
}

void lq_gemv_extras(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y) {
    enum { RANK = 64 }; /* products with x at a time */
    uint32_t rank = q->sch.extra & LQ_X_LOWRANK ? q->sch.rank : 0;
    for (uint32_t k0 = 0; k0 < rank; k0 += RANK) {
        double t[RANK];
        uint32_t n = rank - k0 < RANK ? rank - k0 : RANK;
        for (uint32_t k = 0; k < n; k++) {
            t[k] = 0;
            for (uint32_t c = 0; c < q->cols; c++) t[k] += (double)lq_f16_f32(q->lr.b[(size_t)(k0 + k) * q->cols + c]) * (double)x[c];
        }
        lq_gemv_low(q, r0, nr, k0, n, t, y);
    }
    lq_gemv_sparse(q, r0, nr, x, y);
}

lq_dtype lq_qtensor_floats(const lq_qtensor *q) {
    if (q->perm || q->sch.scale.dtype != LQ_NONE || q->sch.zero_kind != LQ_ZERO_NONE) return LQ_NONE;
    return lq_grid_dtype(q->sch.grid.kind);
}
