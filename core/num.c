/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/num.h"

uint16_t lq_f32_f16(float f) {
    uint32_t u = lq_f32_bits(f), sign = (u >> 16) & 0x8000, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* >= 65520 rounds past the largest half */
    if (a < 0x38800000u) /* below 2^-14: a multiple of 2^-24 */
        return (uint16_t)(sign | (uint32_t)rintf(lq_bits_f32(a) * 0x1p24f));
    uint32_t rounded = a + 0xfff + ((a >> 13) & 1);
    return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

uint16_t lq_f32_bf16(float f) {
    uint32_t u = lq_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float lq_e4m3_f32(uint8_t v) {
    int e = (v >> 3) & 15, m = v & 7;
    if (e == 15 && m == 7) return NAN;
    float f = e ? lq_bits_f32((uint32_t)(e + 120) << 23 | (uint32_t)m << 20) : (float)m * 0x1p-9f;
    return v & 128 ? -f : f;
}

uint8_t lq_f32_e4m3(float f) {
    uint8_t sign = signbit(f) ? 128 : 0;
    float a = fabsf(f);
    if (isnan(f)) return sign | 0x7f;
    if (a >= 448) return sign | 0x7e;
    if (a < 0.015625f) return sign | (uint8_t)rintf(a * 0x1p9f); /* subnormals, and the carry into the first normal */
    uint32_t u = lq_f32_bits(a), code = ((u + 0x7ffff + ((u >> 20) & 1)) >> 20) - (120 << 3); /* the exponent's bias 127 becomes 7 */
    return sign | (uint8_t)(code > 0x7e ? 0x7e : code);
}

float lq_e5m2_f32(uint8_t v) { return lq_f16_f32((uint16_t)(v << 8)); }
float lq_e8m0_f32(uint8_t v) { return v == 255 ? NAN : lq_bits_f32(v ? (uint32_t)v << 23 : 1u << 22); }

uint8_t lq_f32_e8m0(float f) {
    int e;
    if (!(f > 0)) return 0;
    if (isinf(f)) return 254;
    float m = frexpf(f, &e); /* f = m 2^e, m in [1/2, 1) */
    e += m >= 0.75f ? 127 : 126;
    return (uint8_t)(e < 0 ? 0 : e > 254 ? 254 : e);
}

float lq_round_sig(float f, int sig) {
    if (f == 0 || !isfinite(f)) return f;
    double v = (double)f; /* never subnormal */
    uint64_t bits, drop = 53 - (uint64_t)sig;
    memcpy(&bits, &v, sizeof bits);
    bits += ((uint64_t)1 << (drop - 1)) - 1 + (sig == 1 || bits >> drop & 1); /* ties to even; a leading 1 is not stored and odd */
    bits = bits >> drop << drop;
    memcpy(&v, &bits, sizeof v);
    return (float)v;
}

void lq_rng_seed(lq_rng *r, uint64_t seed, uint64_t stream) {
    r->state = 0;
    r->inc = stream << 1 | 1;
    lq_rng_u32(r);
    r->state += seed;
    lq_rng_u32(r);
}

uint32_t lq_rng_u32(lq_rng *r) {
    uint64_t old = r->state;
    r->state = old * 6364136223846793005ull + r->inc;
    uint32_t x = (uint32_t)(((old >> 18) ^ old) >> 27), rot = (uint32_t)(old >> 59);
    return x >> rot | x << (-rot & 31);
}

uint32_t lq_rng_below(lq_rng *r, uint32_t n) {
    uint32_t limit = -n % n, x;
    do x = lq_rng_u32(r);
    while (x < limit);
    return x % n;
}

float lq_rng_unit(lq_rng *r) { return (float)(lq_rng_u32(r) >> 8) * 0x1p-24f; }

float lq_rng_normal(lq_rng *r) {
    double u = ((double)lq_rng_u32(r) + 1) * 0x1p-32, v = (double)lq_rng_u32(r) * 0x1p-32;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}
