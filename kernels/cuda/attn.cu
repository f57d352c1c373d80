/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/attn_mma.cuh"
#include "kernels/cuda/families.h"

const char *LQ_UNIT_NAME(kv_put)(const lq_device_kv *kv, const float *k, const float *v, const lq_device_tokens *at) { return attn::put(kv, k, v, at); }
const char *LQ_UNIT_NAME(attn)(const lq_device_attn *a, const lq_device_kv *kv, const float *q, const lq_device_tokens *at, float *out) { return attn::any(a, kv, q, at, out); }
const char *LQ_UNIT_NAME(turn)(const lq_device_turn *t, const lq_device_tokens *at) { return attn::turn(t, at); }
