/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The operations of cu.h on a CPU. Products of halves and of bytes are exact, sums of an mma are rounded once to fp32: a GPU may round more
 * often, and by cutting off. */
#ifndef LQ_EMU_OPS_H
#define LQ_EMU_OPS_H
#include <cmath>
#include <cstring>

extern "C" {
#include "core/num.h"
}

#define LQ_OP static inline
#define LQ_UNROLL

LQ_OP uint32_t lq_block_x() { return blockIdx.x; }
LQ_OP uint32_t lq_block_y() { return blockIdx.y; }
LQ_OP uint32_t lq_thread_x() { return threadIdx.x; }
LQ_OP unsigned char *lq_shared() { return emu::shared; }
LQ_OP uint4 lq_load_stream(const uint4 *p) { return *p; }
LQ_OP uint4 lq_load_written(const uint4 *p) { return *p; }
LQ_OP void lq_let_next() {}
LQ_OP void lq_wait_before() { emu::wait_before(); }
LQ_OP void lq_prefetch(const void *p, uint32_t bytes) { emu::prefetch(p, bytes); }

template <int LUT> LQ_OP uint32_t lq_lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d = 0;
    for (int i = 0; i < 8; i++)
        if (LUT >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return d;
}

LQ_OP uint32_t lq_place(const void *p) { return (uint32_t)((const uint8_t *)p - emu::shared); }
LQ_OP uint32_t lq_word_at(uint32_t place) { return *(const uint32_t *)(const void *)(emu::shared + place); }

LQ_OP uint32_t lq_bytes(uint32_t a, uint32_t b, uint32_t select) {
    uint64_t from = (uint64_t)b << 32 | a;
    uint32_t d = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = select >> 4 * i & 15, v = (uint32_t)(from >> 8 * (s & 7)) & 255;
        d |= (s & 8 ? (v & 128 ? 255u : 0u) : v) << 8 * i;
    }
    return d;
}

/* a + b of doubles to a half, rounded once: the sum is made odd where it is not exact. */
LQ_OP uint16_t lq_emu_half_sum(double a, double b) {
    double s = a + b, t = s - a, rest = (a - (s - t)) + (b - t);
    float f = (float)s;
    double left = (s - (double)f) + rest;
    if (left != 0 && std::isfinite(f)) { /* a float has more than two digits to spare over a half: odd means inexact */
        uint32_t u;
        if ((left > 0) != (f > 0) && f != 0) f = std::nextafterf(f, 0);
        memcpy(&u, &f, 4);
        u |= 1;
        memcpy(&f, &u, 4);
    }
    return lq_f32_f16(f);
}
LQ_OP float lq_float(uint16_t h) { return lq_f16_f32(h); }
LQ_OP uint16_t lq_half(float v) { return lq_f32_f16(v); }
LQ_OP double lq_emu_lo(uint32_t v) { return lq_f16_f32((uint16_t)v); }
LQ_OP double lq_emu_hi(uint32_t v) { return lq_f16_f32((uint16_t)(v >> 16)); }
LQ_OP uint32_t lq_emu_two(uint16_t lo, uint16_t hi) { return (uint32_t)lo | (uint32_t)hi << 16; }
LQ_OP uint32_t lq_sub2(uint32_t a, uint32_t b) { return lq_emu_two(lq_emu_half_sum(lq_emu_lo(a), -lq_emu_lo(b)), lq_emu_half_sum(lq_emu_hi(a), -lq_emu_hi(b))); }
LQ_OP uint32_t lq_fma2(uint32_t a, uint32_t b, uint32_t c) {
    return lq_emu_two(lq_emu_half_sum(lq_emu_lo(a) * lq_emu_lo(b), lq_emu_lo(c)), lq_emu_half_sum(lq_emu_hi(a) * lq_emu_hi(b), lq_emu_hi(c)));
}
LQ_OP uint32_t lq_mul2(uint32_t a, uint32_t b) { return lq_emu_two(lq_emu_half_sum(lq_emu_lo(a) * lq_emu_lo(b), 0), lq_emu_half_sum(lq_emu_hi(a) * lq_emu_hi(b), 0)); }

LQ_OP double lq_scaled(double step, double s, double sum, double z, double ones) { return 0.0 + step * (s * sum - z * ones); }

LQ_OP void lq_emu_nothing(void *const *, unsigned) {}
LQ_OP void lq_sync_warp() { emu::meet(0xffffffffu, "a warp barrier", nullptr, lq_emu_nothing); }

struct lq_emu_vote { bool v; uint32_t all; };
LQ_OP void lq_emu_vote_all(void *const lane[32], unsigned) {
    uint32_t all = 0;
    for (int i = 0; i < 32; i++) all |= (uint32_t)((lq_emu_vote *)lane[i])->v << i;
    for (int i = 0; i < 32; i++) ((lq_emu_vote *)lane[i])->all = all;
}
LQ_OP uint32_t lq_ballot(bool v) {
    lq_emu_vote x = {v, 0};
    emu::meet(0xffffffffu, "a ballot", &x, lq_emu_vote_all);
    return x.all;
}

template <typename T> struct lq_emu_xor { T v, got; int lanes; };
template <typename T> LQ_OP void lq_emu_xor_all(void *const lane[32], unsigned) {
    for (int i = 0; i < 32; i++) ((lq_emu_xor<T> *)lane[i])->got = ((lq_emu_xor<T> *)lane[i ^ ((lq_emu_xor<T> *)lane[i])->lanes])->v;
}
template <typename T> LQ_OP T lq_shuffle_xor(T v, int lanes) {
    lq_emu_xor<T> x = {v, v, lanes};
    emu::meet(0xffffffffu, "a shuffle", &x, lq_emu_xor_all<T>);
    return x.got;
}

struct lq_emu_turn { uint32_t v, got; };
LQ_OP void lq_emu_transpose_all(void *const lane[32], unsigned) {
    for (int l = 0; l < 32; l++) {
        uint32_t lo = ((lq_emu_turn *)lane[l % 4 * 8 + l / 8])->v, hi = ((lq_emu_turn *)lane[l % 4 * 8 + 4 + l / 8])->v;
        ((lq_emu_turn *)lane[l])->got = lq_emu_two((uint16_t)(lo >> 16 * (l / 4 % 2)), (uint16_t)(hi >> 16 * (l / 4 % 2)));
    }
}
LQ_OP uint32_t lq_transpose(uint32_t v) {
    lq_emu_turn x = {v, v};
    emu::meet(0xffffffffu, "a transposition", &x, lq_emu_transpose_all);
    return x.got;
}

LQ_OP float lq_mul(float a, float b) { return a * b; }
LQ_OP float lq_add(float a, float b) { return a + b; }
LQ_OP float lq_sub(float a, float b) { return a - b; }
LQ_OP uint32_t lq_bits_of(float v) { return lq_f32_bits(v); }
LQ_OP float lq_of_bits(uint32_t u) { return lq_bits_f32(u); }

struct lq_emu_mma { const uint32_t *a; uint32_t b[2]; float *c; int32_t *ci; };
LQ_OP void lq_emu_mma_f16_all(void *const lane[32], unsigned) {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++) {
        const lq_emu_mma *m = (const lq_emu_mma *)lane[l];
        int g = l / 4, q = l % 4;
        for (int i = 0; i < 4; i++)
            for (int h = 0; h < 2; h++) a[g + i % 2 * 8][2 * q + h + i / 2 * 8] = lq_f16_f32((uint16_t)(m->a[i] >> 16 * h));
        for (int i = 0; i < 2; i++)
            for (int h = 0; h < 2; h++) b[2 * q + h + 8 * i][g] = lq_f16_f32((uint16_t)(m->b[i] >> 16 * h));
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int r = l / 4 + i / 2 * 8, n = l % 4 * 2 + i % 2;
            double sum = ((lq_emu_mma *)lane[l])->c[i];
            for (int k = 0; k < 16; k++) sum += (double)a[r][k] * (double)b[k][n];
            ((lq_emu_mma *)lane[l])->c[i] = (float)sum;
        }
}
LQ_OP void lq_mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    lq_emu_mma m = {a, {b0, b1}, c, nullptr};
    emu::meet(0xffffffffu, "mma of halves", &m, lq_emu_mma_f16_all);
}

LQ_OP void lq_emu_mma_u8s8_all(void *const lane[32], unsigned) {
    uint8_t a[16][32];
    int8_t b[32][8];
    for (int l = 0; l < 32; l++) {
        const lq_emu_mma *m = (const lq_emu_mma *)lane[l];
        int g = l / 4, q = l % 4;
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) a[g + i % 2 * 8][4 * q + j + i / 2 * 16] = (uint8_t)(m->a[i] >> 8 * j);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 4; j++) b[4 * q + j + 16 * i][g] = (int8_t)(m->b[i] >> 8 * j);
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int r = l / 4 + i / 2 * 8, n = l % 4 * 2 + i % 2;
            int64_t sum = ((lq_emu_mma *)lane[l])->ci[i];
            for (int k = 0; k < 32; k++) sum += a[r][k] * b[k][n];
            ((lq_emu_mma *)lane[l])->ci[i] = (int32_t)sum;
        }
}
LQ_OP void lq_mma_u8s8(int32_t c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    lq_emu_mma m = {a, {b0, b1}, nullptr, c};
    emu::meet(0xffffffffu, "mma of bytes", &m, lq_emu_mma_u8s8_all);
}
#endif
