/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Matrix times vector, summed in fp64 in column order, rounded once. */
#include "kernels/ref/ref.h"

#include "core/pack.h"

static float weight(const lq_qtensor *q, uint32_t r, uint32_t c) {
    const lq_scheme *s = &q->sch;
    float a = lq_grid_value(q, r, lq_code_get(q->codes + (size_t)r * q->row_bytes, s->grid.bits, c)), scale = 1, zero = 0;
    if (s->scale.dtype != LQ_NONE) scale = lq_plane_get(&s->scale, &q->scale, lq_plane_index(&s->scale, q->cols, r, c));
    if (s->zero_kind != LQ_ZERO_NONE) zero = lq_plane_get(&s->zero, &q->zero, lq_plane_index(&s->zero, q->cols, r, c));
    return s->zero_kind == LQ_ZERO_MIN ? scale * a - zero : scale * (a - zero);
}

void lq_gemv_c(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y) {
    for (uint32_t r = 0; r < nr; r++) {
        double sum = 0;
        for (uint32_t c = 0; c < q->cols; c++) sum += (double)weight(q, r0 + r, c) * (double)x[q->perm ? q->perm[c] : c];
        y[r] = (float)sum;
    }
}

void lq_gemv_fp_c(lq_dtype t, const void *w, size_t stride, uint32_t nr, uint32_t cols, const float *x, float *y) {
    enum { PART = 256 }; /* a multiple of every block */
    float part[PART];
    for (uint32_t r = 0; r < nr; r++) {
        const unsigned char *row = (const unsigned char *)w + r * stride;
        double sum = 0;
        for (uint32_t c0 = 0; c0 < cols; c0 += PART) {
            uint32_t n = cols - c0 < PART ? cols - c0 : PART;
            lq_dtype_decode(t, row + lq_dtype_row_bytes(t, c0), part, n);
            for (uint32_t c = 0; c < n; c++) sum += (double)part[c] * (double)x[c0 + c];
        }
        y[r] = (float)sum;
    }
}
