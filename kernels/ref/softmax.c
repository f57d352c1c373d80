/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* softmax(scale x) and log sum e^x, both after taking the maximum out; the sum in fp64. */
#include "kernels/ref/exp.h"
#include "kernels/ref/lanes.h"
#include "kernels/ref/ref.h"

static float largest(const float *x, size_t n) {
    float m = x[0];
    for (size_t i = 1; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

void lq_softmax_c(float *x, size_t n, float scale) {
    double lane[LQ_LANES] = {0};
    if (!n) return;
    for (size_t i = 0; i < n; i++) x[i] *= scale;
    float m = largest(x, n);
    for (size_t i = 0; i < n; i++) {
        x[i] = lq_exp(x[i] - m);
        lane[i % LQ_LANES] += (double)x[i];
    }
    float inverse = (float)(1 / lq_lanes_sum(lane));
    for (size_t i = 0; i < n; i++) x[i] *= inverse;
}

double lq_logsumexp_c(const float *x, size_t n) {
    double lane[LQ_LANES] = {0};
    if (!n) return -INFINITY;
    float m = largest(x, n);
    for (size_t i = 0; i < n; i++) lane[i % LQ_LANES] += (double)lq_exp(x[i] - m);
    return (double)m + log(lq_lanes_sum(lane));
}
