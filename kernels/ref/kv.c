/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Values of a small key-value cache as floats. */
#include "core/num.h"
#include "kernels/ref/ref.h"

void lq_kv8_c(lq_dtype t, const void *src, float step, float *dst, size_t n) {
    const uint8_t *in = src;
    for (size_t i = 0; i < n; i++) dst[i] = step * (t == LQ_I8 ? (float)(int8_t)in[i] : lq_e4m3_f32(in[i]));
}

void lq_kv4_c(const void *src, float low, float step, float *dst, size_t n) {
    const uint8_t *in = src;
    for (size_t i = 0; i < n; i++) dst[i] = low + step * (float)(in[i / 2] >> 4 * (i & 1) & 15);
}
