/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* e^x in fp32 without branches, fused products or library calls, so that every variant gives the same bits:
 *   x = n ln 2 + r,  |r| <= ln 2 / 2,   e^x = 2^n (1 + r + r^2 P(r))
 * P is the degree-4 polynomial of least maximum relative error (3.1e-9 before rounding). Error below 1.5 units in the last
 * place, results below 2^-126 included; 0 below -104, infinity above 88.73, NaN stays NaN. */
#ifndef LQ_EXP_H
#define LQ_EXP_H
#include "core/num.h"

#define LQ_EXP_LO (-104.0f)
#define LQ_EXP_HI 89.0f
#define LQ_EXP_LOG2E 0x1.715476p+0f
#define LQ_EXP_ROUND 0x1.8p+23f       /* adding it rounds to an integer, kept in the low bits */
#define LQ_EXP_LN2_HI 0x1.63p-1f      /* nine bits: n times it is exact */
#define LQ_EXP_LN2_LO (-0x1.bd0106p-13f)
#define LQ_EXP_P0 0x1.fffffcp-2f
#define LQ_EXP_P1 0x1.555492p-3f
#define LQ_EXP_P2 0x1.5558f2p-5f
#define LQ_EXP_P3 0x1.123a0ap-7f
#define LQ_EXP_P4 0x1.6a23f0p-10f

static inline float lq_exp(float x) {
    x = x < LQ_EXP_LO ? LQ_EXP_LO : x;
    x = x > LQ_EXP_HI ? LQ_EXP_HI : x;
    float t = x * LQ_EXP_LOG2E + LQ_EXP_ROUND, n = t - LQ_EXP_ROUND;
    float r = x - n * LQ_EXP_LN2_HI - n * LQ_EXP_LN2_LO;
    float p = (((LQ_EXP_P4 * r + LQ_EXP_P3) * r + LQ_EXP_P2) * r + LQ_EXP_P1) * r + LQ_EXP_P0;
    float y = p * (r * r) + r + 1.0f;
    /* two factors: 2^n alone may lie outside the normal numbers */
    int32_t k = (int32_t)(lq_f32_bits(t) - lq_f32_bits(LQ_EXP_ROUND)), half = k >> 1;
    return y * lq_bits_f32((uint32_t)(half + 127) << 23) * lq_bits_f32((uint32_t)(k - half + 127) << 23);
}
#endif
