/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/ref/ref.h"

void lq_dequant_c(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out) {
    for (uint32_t r = 0; r < nr; r++) lq_qtensor_decode_row(q, r0 + r, out + (size_t)r * q->cols);
}

void lq_decode_c(lq_dtype t, const void *src, float *dst, size_t n) { lq_dtype_decode(t, src, dst, n); }
