/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* RMSNorm (Zhang & Sennrich 2019): y = gain * x / sqrt(mean(x^2) + eps). LayerNorm (Ba, Kiros & Hinton 2016):
 * y = gain * (x - mean) / sqrt(var + eps) + shift. And the two other whole-vector operations. */
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

void lq_layernorm_c(const float *x, const float *gain, const float *shift, float eps, uint32_t d, float *y) {
    double sum[LQ_LANES] = {0}, square[LQ_LANES] = {0};
    for (uint32_t i = 0; i < d; i++) sum[i % LQ_LANES] += x[i];
    double mean = lq_lanes_sum(sum) / d;
    for (uint32_t i = 0; i < d; i++) square[i % LQ_LANES] += (x[i] - mean) * (x[i] - mean);
    double scale = 1 / sqrt(lq_lanes_sum(square) / d + (double)eps);
    for (uint32_t i = 0; i < d; i++) y[i] = (float)((x[i] - mean) * scale) * (gain ? gain[i] : 1) + (shift ? shift[i] : 0);
}

void lq_add_c(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}
