/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Matrix times vector, summed in fp64 in column order, rounded once. */
#include "kernels/ref/ref.h"

static float factor(const lq_qtensor *q, uint32_t c) { return q->prescale ? q->prescale[c] : 1; }

void lq_gemv_c(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y) {
    for (uint32_t r = 0; r < nr; r++) {
        double sum = 0;
        for (uint32_t c = 0; c < q->cols; c++) {
            uint32_t col = q->perm ? q->perm[c] : c;
            sum += (double)(lq_qtensor_code_weight(q, r0 + r, c) * factor(q, col)) * (double)x[col];
        }
        y[r] = (float)sum;
    }
    if (q->sch.extra & LQ_X_ADDED) lq_gemv_extras(q, r0, nr, x, y);
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
