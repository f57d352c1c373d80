/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Products of bytes by sdot: four signed products added to 32 bits at once. */
#include "kernels/arm/packed_neon.h"

LQ_INLINE int32x4_t lq_dot128(int32x4_t acc, const int8x16_t w[4], const int8x16_t x[4]) {
    return vdotq_s32(vdotq_s32(vdotq_s32(vdotq_s32(acc, w[0], x[0]), w[1], x[1]), w[2], x[2]), w[3], x[3]);
}

#include "kernels/arm/packed_idot_neon.h"

void lq_packed_idot_dotprod(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) { packed_idot128(p, t0, nt, x, acc); }
