/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Packed tiles times activations in digits (ref/digits.c): a lane is a row, vpdpbusd adds four products of unsigned codes and one digit of
 * four activations; three of them use each vector of codes.
 *
 *   one field    bits stay where they are: v & mask << b times x is 2^b times too large, exactly, and has sums of its own
 *   two, tables  the four codes of a quad are put together, even and odd quads having sums of their own */
#include "kernels/x86/packed_avx512.h"

enum { SUMS = 4 };

typedef struct whole { __m512i table; int32_t less; float up; } whole; /* A(code) = (table[code] - less) / up, or code - less */
typedef struct job { const lq_packed *p; const lq_packed_d *x; uint32_t tile, t; whole a; float *y; } job;

LQ_INLINE __m512i four(const int8_t *x) {
    int32_t v;
    memcpy(&v, x, 4);
    return _mm512_set1_epi32(v);
}

LQ_INLINE bool in_place(int f1, bool table) { return !f1 && !table; }
LQ_INLINE int sums_of(int f0, int f1, bool table) { return !in_place(f1, table) || f0 == 8 ? 2 : f0 == 4 ? 2 : 4; }
/* How many bits too high the sums of quad q are. */
LQ_INLINE int above(int f0, int f1, bool table, int q) { return in_place(f1, table) ? lq_bit512(f0, q) : 0; }

LQ_INLINE __m512i codes_of(lq_step s, const whole *a, int f0, int f1, bool table, int q) {
    if (in_place(f1, table)) {
        __m512i v = lq_vector512(s.lo, s.half, f0, q);
        return f0 == 8 ? v : _mm512_and_si512(v, lq_bytes512(((1 << f0) - 1) << lq_bit512(f0, q)));
    }
    __m512i v = lq_quad512(s, f0, f1, q);
    return table ? _mm512_shuffle_epi8(a->table, v) : v;
}

LQ_INLINE void step(lq_step s, const whole *a, const int8_t *x, __m512i (*sum)[SUMS], int f0, int f1, bool table) {
#define QUAD(q)                                                                                     \
    {                                                                                               \
        __m512i v = codes_of(s, a, f0, f1, table, q);                                               \
        const int i = q % sums_of(f0, f1, table);                                                   \
        sum[0][i] = _mm512_dpbusd_epi32(sum[0][i], v, four(x + 16 * q));                            \
        sum[1][i] = _mm512_dpbusd_epi32(sum[1][i], v, four(x + 16 * q + 4));                        \
        sum[2][i] = _mm512_dpbusd_epi32(sum[2][i], v, four(x + 16 * q + 8));                        \
    }
    QUAD(0) QUAD(1) QUAD(2) QUAD(3)
#undef QUAD
}

LQ_INLINE __m512i joined(const __m512i *sum, int f0, int f1, bool table) {
    __m512i v = sum[0];
    for (int i = 1; i < sums_of(f0, f1, table); i++) v = _mm512_add_epi32(v, _mm512_srai_epi32(sum[i], (unsigned)above(f0, f1, table, i)));
    return v;
}

LQ_INLINE float whole_sum(const int32_t *s) { return (float)s[0] * 65536.0f + (float)(s[1] * 256 + s[2]); }

LQ_INLINE void whole_tile(const job *j, int f0, int f1, bool table) {
    const lq_packed *p = j->p;
    const uint8_t *codes = p->codes + (size_t)j->tile * p->tile_bytes;
    size_t first = (size_t)j->t * j->x->blocks;
    const int8_t *x = j->x->x + (size_t)j->t * 4 * lq_packed_ld(p);
    bool code_zero = p->zero != LQ_NONE && p->q.sch.zero_kind == LQ_ZERO_CODE, min = p->zero != LQ_NONE && !code_zero;
    __m512 total = _mm512_setzero_ps();
    for (uint32_t b = 0, g = 0; g < p->segs; g++) {
        lq_scales512 k = lq_scales512_at(p, j->tile, g);
        for (uint32_t c = g * p->seg, end = lq_seg_end(p, g); c < end; b++) {
            uint32_t stop = end - c < LQ_DIGIT_BLOCK ? end : c + LQ_DIGIT_BLOCK;
            const int32_t *ones = j->x->sum + (first + b) * LQ_DIGITS;
            float unit = j->x->step[first + b];
            __m512i sum[LQ_DIGITS][SUMS];
            for (int d = 0; d < LQ_DIGITS; d++) {
                sum[d][0] = _mm512_set1_epi32(-j->a.less * ones[d]);
                for (int i = 1; i < SUMS; i++) sum[d][i] = _mm512_setzero_si512();
            }
            for (; c < stop; c += LQ_STEP) {
                lq_step s = lq_step512(codes, c, f0, f1);
                lq_ahead512(s, f0, f1);
                step(s, &j->a, x + 4 * (size_t)c, sum, f0, f1, table);
            }
            __m512i low = _mm512_add_epi32(_mm512_slli_epi32(joined(sum[1], f0, f1, table), 8), joined(sum[2], f0, f1, table));
            __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(joined(sum[0], f0, f1, table)), _mm512_set1_ps(65536.0f), _mm512_cvtepi32_ps(low));
            v = _mm512_mul_ps(v, _mm512_set1_ps(unit / j->a.up));
            if (code_zero) v = _mm512_fnmadd_ps(k.z, _mm512_set1_ps(unit * whole_sum(ones)), v);
            total = _mm512_fmadd_ps(k.s, v, total);
            if (min) total = _mm512_fnmadd_ps(k.z, _mm512_set1_ps(unit * whole_sum(ones)), total);
        }
    }
    _mm512_mask_storeu_ps(j->y + (size_t)j->tile * LQ_TILE, lq_rows512(p, j->tile), total);
}

#define KINDS(X) \
    X(i1, 1, 0, false) X(i2, 2, 0, false) X(i3, 2, 1, false) X(i4, 4, 0, false) X(i5, 4, 1, false) X(i6, 4, 2, false) X(i8, 8, 0, false) \
    X(t1, 1, 0, true) X(t2, 2, 0, true) X(t3, 2, 1, true) X(t4, 4, 0, true)
enum {
#define X(name, f0, f1, table) K_##name,
    KINDS(X)
#undef X
    N_KINDS
};
#define X(name, f0, f1, table) static void name(const job *j) { whole_tile(j, f0, f1, table); }
KINDS(X)
#undef X

typedef void (*tile_fn)(const job *j);
#define X(name, f0, f1, table) name,
static const tile_fn by_kind[N_KINDS] = {KINDS(X)};
#undef X

/* A table of whole numbers as bytes above the least of them. */
static whole make_whole(const lq_packed *p) {
    const lq_grid grid = lq_packed_grid(p), *g = &grid;
    float up = lq_packed_whole(p);
    uint8_t t[64];
    int32_t v[16], least = INT32_MAX;
    if (g->kind == LQ_GRID_INT) return (whole){_mm512_setzero_si512(), g->bias, up};
    for (uint32_t i = 0; i < 16; i++) {
        v[i] = (int32_t)(lq_grid_value(&p->q, 0, i & ((1u << g->bits) - 1)) * up);
        if (v[i] < least) least = v[i];
    }
    for (int i = 0; i < 64; i++) t[i] = (uint8_t)(v[i % 16] - least);
    return (whole){lq_load512(t), -least, up};
}

void lq_packed_digits_vnni(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_d *x, float *y, size_t ldy) {
    const lq_grid grid = lq_packed_grid(p), *g = &grid;
    tile_fn fn = by_kind[g->kind != LQ_GRID_INT ? K_t1 + g->bits - 1 : g->bits < 7 ? K_i1 + g->bits - 1 : K_i8];
    job j = {p, x, 0, 0, make_whole(p), y};
    for (j.tile = t0; j.tile < t0 + nt; j.tile++)
        for (j.t = 0; j.t < x->n; j.t++) {
            j.y = y + j.t * ldy;
            fn(&j);
        }
}

/* The largest |x|, and whether all are finite, by the bits: those of a NaN or an infinity are above all others. */
bool lq_digits_avx512(const float *x, uint32_t n, int8_t *d, int32_t sum[LQ_DIGITS], float *step) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN), low = _mm512_set1_epi32(255), up = _mm512_set1_epi32(0x808080);
    const __m512i by_digit = _mm512_broadcast_i32x4(_mm_setr_epi8(2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12, 3, 7, 11, 15));
    __m512i most = _mm512_setzero_si512(), add[LQ_DIGITS] = {most, most, most}, size = most, largest = most;
    uint32_t nonzero = 0;
    for (uint32_t i = 0; i < n; i += 16) most = _mm512_max_epu32(most, _mm512_andnot_si512(sign, _mm512_loadu_si512((const void *)(x + i))));
    uint32_t bits = _mm512_reduce_max_epu32(most), e = (bits + 0x20000) >> 23;
    bool finite = bits < 0x7f800000;
    e = e < 23 || !finite ? 1 : e - 22;
    __m512 scale = _mm512_castsi512_ps(_mm512_set1_epi32((int32_t)(finite ? (254 - e) << 23 : 0)));
    for (uint32_t i = 0; i < n; i += 16) {
        __m512i v = finite ? _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), scale)) : _mm512_setzero_si512();
        __m512i magnitude = _mm512_abs_epi32(v);
        size = _mm512_add_epi32(size, magnitude);
        largest = _mm512_max_epu32(largest, magnitude);
        nonzero += (uint32_t)__builtin_popcount(_mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_setzero_ps(), _CMP_NEQ_UQ));
        v = _mm512_add_epi32(v, up);
        for (int k = 0; k < LQ_DIGITS; k++) {
            __m512i digit = _mm512_and_si512(_mm512_srli_epi32(v, (unsigned)(16 - 8 * k)), low);
            add[k] = _mm512_add_epi32(add[k], digit);
        }
        _mm512_storeu_si512((void *)(d + 4 * (size_t)i), _mm512_shuffle_epi8(_mm512_xor_si512(v, up), by_digit));
    }
    for (int k = 0; k < LQ_DIGITS; k++) sum[k] = _mm512_reduce_add_epi32(add[k]) - 128 * (int32_t)n;
    uint32_t s = finite ? e << 23 : 0x7fc00000;
    memcpy(step, &s, sizeof s);
    return finite && (nonzero < 2 || (uint32_t)_mm512_reduce_add_epi32(size) - _mm512_reduce_max_epu32(largest) >= (nonzero - 1) << 15);
}
