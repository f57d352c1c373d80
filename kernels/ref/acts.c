/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Activations on their way to whole numbers and back: their extent, their rounding, sums rounded to float. */
#include "core/num.h"
#include "kernels/ref/ref.h"

uint32_t lq_absmax_c(const float *x, size_t n) {
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t u = lq_f32_bits(x[i]) & 0x7fffffffu;
        most = u > most ? u : most;
    }
    return most;
}

int32_t lq_round8_c(const float *x, float inv, size_t n, int8_t *code) {
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        float v = x[i] * inv;
        v = v > 127 ? 127 : v < -127 ? -127 : v;
        code[i] = (int8_t)((v + 0x1.8p23f) - 0x1.8p23f); /* nearest, ties to even */
        sum += code[i];
    }
    return sum;
}

void lq_narrow_c(const double *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = (float)x[i];
}
