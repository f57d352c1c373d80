/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Products of bytes as 16 bits (at most 128 * 127), added in pairs to 32. */
#include "kernels/arm/packed_neon.h"

LQ_INLINE int32x4_t lq_dot128(int32x4_t acc, const int8x16_t w[4], const int8x16_t x[4]) {
    int32x4_t lo = vdupq_n_s32(0), hi = lo; /* two dwords for a row: rows 0, 1; rows 2, 3 */
    for (int q = 0; q < 4; q++) {
        lo = vpadalq_s16(lo, vmull_s8(vget_low_s8(w[q]), vget_low_s8(x[q])));
        hi = vpadalq_s16(hi, vmull_high_s8(w[q], x[q]));
    }
    return vaddq_s32(acc, vpaddq_s32(lo, hi));
}

#include "kernels/arm/packed_idot_neon.h"

void lq_packed_idot_neon(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) { packed_idot128(p, t0, nt, x, acc); }
