/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Sum of integer products, the definition that every faster way is judged against. */
#include "kernels/ref/ref.h"

#include "core/pack.h"

int64_t lq_codes_dot_c(const lq_qtensor *q, uint32_t r, uint32_t c0, uint32_t n, const float *code) {
    int64_t sum = 0;
    const uint8_t *row = q->codes + (size_t)r * q->row_bytes;
    for (uint32_t c = c0; c < c0 + n; c++) sum += (int64_t)lq_grid_value(q, r, lq_code_get(row, q->sch.grid.bits, c)) * (int64_t)code[c];
    return sum;
}
