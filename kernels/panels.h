/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Activations by columns, for sums over tokens: panels of LQ_PANEL columns, [panels][n][LQ_PANEL], zeros behind the last column. Packed once for all
 * products of a chunk of tokens, where a library packs what it multiplies at every call. Private to linalg_gram.c and linalg_cross.c. */
#ifndef LQ_PANELS_H
#define LQ_PANELS_H
#include "core/mem.h"
#include "kernels/kernels.h"

static inline uint32_t lq_panels(uint32_t k) { return (k + LQ_PANEL - 1) / LQ_PANEL; }
/* Room for n tokens of k columns, or NULL; lq_free frees it. */
float *lq_panels_new(uint32_t k, uint32_t n);
/* x[n][k], stride in floats. Parallel inside. */
void lq_panels_pack(float *to, const float *x, size_t ldx, uint32_t n, uint32_t k);
#endif
