/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Kernels are compiled in units by family, for each device with names of its own: a program may hold both devices. */
#ifndef LQ_FAMILIES_H
#define LQ_FAMILIES_H
#include "kernels/cuda/launch.h"

extern "C" {
#include "kernels/cuda/cuda.h"
}

#ifdef LQ_EMU
#define LQ_UNIT_NAME(name) lq_emu_##name
#else
#define LQ_UNIT_NAME(name) lq_cuda_##name
#endif

/* As the entries of lq_device and lq_device_ops that they are. */
const char *LQ_UNIT_NAME(gemv)(const lq_device_matrix *m, const float *x, uint32_t n, float *y);
const char *LQ_UNIT_NAME(gemm)(const lq_device_matrix *m, const float *x, uint32_t n, float *y); /* more tokens than gemv takes in a pass */
const char *LQ_UNIT_NAME(gemv_product)(const lq_device_product *p); /* of x */
const char *LQ_UNIT_NAME(idot_product)(const lq_device_product *p); /* of codes */
const char *LQ_UNIT_NAME(idot_split)(const lq_device_product *p); /* of codes and their rest, many tokens: one part, nothing after it */
const char *LQ_UNIT_NAME(idot)(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *sum, uint32_t n, float *y);
const char *LQ_UNIT_NAME(idot_many)(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *sum, uint32_t n, float *y);
const char *LQ_UNIT_NAME(kv_put)(const lq_device_kv *kv, const float *k, const float *v, const lq_device_tokens *at);
const char *LQ_UNIT_NAME(attn)(const lq_device_attn *a, const lq_device_kv *kv, const float *q, const lq_device_tokens *at, float *out);
const char *LQ_UNIT_NAME(turn)(const lq_device_turn *t, const lq_device_tokens *at);
#endif
