/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Attention of one query per head: products with keys, and the mean of values. */
#include "kernels/ref/lanes.h"
#include "kernels/ref/ref.h"

#include <math.h>

/* Sixteen lanes of a product, in fp32: quads first, since vectors add within 128 bits before they add across. */
static float quads_sum(const float *l) {
    float q[4];
    for (int i = 0; i < 4; i++) q[i] = (l[4 * i] + l[4 * i + 2]) + (l[4 * i + 1] + l[4 * i + 3]);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

void lq_attn_scores_c(const float *q, uint32_t heads, uint32_t d, const float *keys, size_t ld, uint32_t n, float *score, size_t lds) {
    for (uint32_t j = 0; j < n; j++)
        for (uint32_t h = 0; h < heads; h++) {
            float lane[LQ_LANES] = {0};
            for (uint32_t c = 0; c < d; c++) lane[c % LQ_LANES] = fmaf(q[(size_t)h * d + c], keys[j * ld + c], lane[c % LQ_LANES]);
            score[h * lds + j] = quads_sum(lane);
        }
}

void lq_attn_mix_c(const float *w, size_t ldw, uint32_t heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out) {
    for (uint32_t h = 0; h < heads; h++)
        for (uint32_t j = 0; j < n; j++)
            for (uint32_t c = 0; c < d; c++) out[(size_t)h * d + c] = fmaf(w[h * ldw + j], values[j * ld + c], out[(size_t)h * d + c]);
}
