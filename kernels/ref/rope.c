/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Rotary position embedding (Su et al. 2021) in the half-split order: the pair (j, j + rot/2) turns by angle j;
 * lq_rope_pairs_c: the pair (2j, 2j + 1). */
#include "kernels/ref/ref.h"

void lq_rope_c(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin) {
    uint32_t half = rot / 2;
    for (uint32_t h = 0; h < heads; h++) {
        float *a = x + (size_t)h * dim, *b = a + half;
        for (uint32_t j = 0; j < half; j++) {
            float u = a[j], v = b[j];
            a[j] = u * cos[j] - v * sin[j];
            b[j] = v * cos[j] + u * sin[j];
        }
    }
}

void lq_rope_pairs_c(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin) {
    for (uint32_t h = 0; h < heads; h++) {
        float *a = x + (size_t)h * dim;
        for (uint32_t j = 0; j < rot / 2; j++) {
            float u = a[2 * j], v = a[2 * j + 1];
            a[2 * j] = u * cos[j] - v * sin[j];
            a[2 * j + 1] = v * cos[j] + u * sin[j];
        }
    }
}
