/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* RMSNorm (Zhang & Sennrich 2019): y = gain * x / sqrt(mean(x^2) + eps); and the two other whole-vector operations. */
#include "kernels/ref/lanes.h"
#include "kernels/ref/ref.h"

#include <math.h>

double lq_dot_c(const float *a, const float *b, size_t n) {
    double lane[LQ_LANES] = {0};
    for (size_t i = 0; i < n; i++) lane[i % LQ_LANES] += (double)a[i] * (double)b[i]; /* the product is exact */
    return lq_lanes_sum(lane);
}

void lq_rmsnorm_c(const float *x, const float *gain, float eps, uint32_t d, float *y) {
    float scale = (float)(1 / sqrt(lq_dot_c(x, x, d) / d + (double)eps));
    for (uint32_t i = 0; i < d; i++) y[i] = x[i] * scale * gain[i];
}

void lq_add_c(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}
