/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Scalar conversions between float and the small float types, and the one random generator. */
#ifndef LQ_NUM_H
#define LQ_NUM_H
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t lq_f32_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float lq_bits_f32(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

static inline float lq_f16_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
    if (e == 31) return lq_bits_f32(sign | 0x7f800000u | m << 13);
    if (e) return lq_bits_f32(sign | (e + 112) << 23 | m << 13);
    float v = (float)m * 0x1p-24f;
    return sign ? -v : v;
}
uint16_t lq_f32_f16(float f);  /* round to nearest even; overflow gives infinity, as IEEE 754 says */
static inline float lq_bf16_f32(uint16_t h) { return lq_bits_f32((uint32_t)h << 16); }
uint16_t lq_f32_bf16(float f); /* round to nearest even; NaN stays NaN */
float lq_e4m3_f32(uint8_t v);  /* OCP FP8 E4M3FN: bias 7, max 448, 0x7F/0xFF NaN */
uint8_t lq_f32_e4m3(float f);  /* nearest even, saturating at +-448 */
float lq_e5m2_f32(uint8_t v);
float lq_e8m0_f32(uint8_t v);  /* 2^(v-127); 255 is NaN */
uint8_t lq_f32_e8m0(float f);  /* nearest power of two, a tie to the larger; saturating; 0 and negative give the smallest */
/* f kept to `sig` significant bits (round to nearest even); sig in 1..24. Zero, infinity and NaN pass. */
float lq_round_sig(float f, int sig);

/* PCG32 (O'Neill 2014, XSH-RR 64/32). */
typedef struct lq_rng { uint64_t state, inc; } lq_rng;
void lq_rng_seed(lq_rng *r, uint64_t seed, uint64_t stream);
uint32_t lq_rng_u32(lq_rng *r);
uint32_t lq_rng_below(lq_rng *r, uint32_t n); /* unbiased, in [0, n); n >= 1 */
float lq_rng_unit(lq_rng *r);                 /* [0, 1), 24 bits */
float lq_rng_normal(lq_rng *r);               /* mean 0, variance 1 */
#endif
