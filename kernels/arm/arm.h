/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The 64-bit Arm variants, by file; each is called only on machines that have its instruction set. */
#ifndef LQ_ARM_H
#define LQ_ARM_H
#include "kernels/ref/ref.h"

void lq_packed_dequant_neon(const lq_packed *p, uint32_t t0, uint32_t nt, float *out);
void lq_packed_gemv_neon(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_x *x, float *y, size_t ldy);
void lq_packed_idot_neon(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);
void lq_packed_idot_dotprod(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);
#endif
