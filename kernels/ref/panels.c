/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/ref/ref.h"

#include <math.h>

void lq_panel_sums_c(const float *a, const float *b, uint32_t n, double *sum, size_t ld) {
    for (uint32_t i = 0; i < LQ_PANEL; i++) {
        float row[LQ_PANEL] = {0};
        for (uint32_t t = 0; t < n; t++)
            for (uint32_t j = 0; j < LQ_PANEL; j++) row[j] = fmaf(a[(size_t)t * LQ_PANEL + i], b[(size_t)t * LQ_PANEL + j], row[j]);
        for (uint32_t j = 0; j < LQ_PANEL; j++) sum[i * ld + j] += (double)row[j];
    }
}
