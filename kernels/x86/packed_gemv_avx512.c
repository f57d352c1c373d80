/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Packed tiles times floats. A lane is a row; a code becomes a float in one of three ways:
 *
 *   INT    (v & mask << k) | bits of 2^(23 - k) is the float 2^(23 - k) + code: the code at bit k of a lane is shifted into no other place;
 *          minus 2^(23 - k) + bias + zero, exactly
 *   TABLE  vpermps reads the four lowest bits of a lane; a table of fewer entries is repeated
 *   E4M3   sign and magnitude put where a float has them, 2^120 too small
 *
 * No lane adds more than 256 products before they are added to the next level. */
#include "kernels/x86/packed_avx512.h"

enum { INT, TABLE, E4M3 };
enum { CHUNK = 256 / LQ_STEP, MOST = 8 }; /* steps, tokens of a pass */

typedef struct grid { __m512 table, bias; } grid;
typedef struct job { const lq_packed *p; const lq_packed_x *x; uint32_t tile, t0; grid a; float *y; size_t ldy; } job;
/* Of a segment: what is subtracted from the float of bit k (INT), and from any A(code). */
typedef struct less { __m512 at[4], z; } less;

/* Bits of a lane that hold column i of a step, in a vector of field f, are moved to one of four places. */
LQ_INLINE int place(int f, int bit) { return f == 4 ? bit & 15 : f == 8 ? bit & 8 : bit & 7; }
LQ_INLINE int slot(int f, int k) { return f == 8 ? k / 8 : k / f; }

LQ_INLINE less make_less(const grid *a, __m512 zero, int f, int how, bool whole) {
    less l = {.z = zero};
    for (int i = 0; i < 4 && how == INT; i++) {
        int k = f == 8 ? 8 * (i & 1) : f * i;
        l.at[i] = _mm512_add_ps(_mm512_set1_ps((float)(1 << (23 - k))), whole ? _mm512_add_ps(a->bias, zero) : a->bias);
    }
    return l;
}

/* Column 4 q + j of a step. Two fields are joined to bytes first. */
LQ_INLINE __m512 value(lq_step s, const grid *a, const less *l, int f0, int f1, int how, bool post, int q, int j) {
    int f = f1 ? 8 : f0, bit = 8 * j + (f1 ? 0 : lq_bit512(f0, q)), bits = f1 ? f0 + f1 : f0, k = place(f, bit);
    __m512i v = f1 ? lq_quad512(s, f0, f1, q) : lq_vector512(s.lo, s.half, f0, q);
    __m512 w;
    if (how == TABLE) w = _mm512_permutexvar_ps(lq_down512(v, bit), a->table);
    else if (how == E4M3) {
        typedef int32_t i32x16 __attribute__((vector_size(64)));
        __m512i u = (__m512i)((i32x16)lq_down512(v, bit - 24) >> 4); /* the sign, four times more, then seven bits */
        w = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int)0x87f00000u))), _mm512_set1_ps(0x1p120f));
    } else {
        __m512i mask = _mm512_set1_epi32(((1 << bits) - 1) << k), one = _mm512_castps_si512(_mm512_set1_ps((float)(1 << (23 - k))));
        w = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(lq_down512(v, bit - k), mask, one, 0xea)); /* v & mask | one */
        w = _mm512_sub_ps(w, l->at[slot(f, k)]);
    }
    return post ? _mm512_sub_ps(w, l->z) : w;
}

LQ_INLINE __mmask64 nans(lq_step s, int how) {
    __mmask64 m = 0;
    for (int q = 0; q < 4 && how == E4M3; q++) m |= _mm512_cmpeq_epi8_mask(_mm512_and_si512(lq_load512(s.lo + 64 * q), lq_bytes512(127)), lq_bytes512(127));
    return m;
}

/* acc[0 .. n) of n tokens; fewer tokens have several sums each, so that a sum need not wait for the one before. */
LQ_INLINE void step(lq_step s, const grid *a, const less *l, const float *const *x, uint32_t c, __m512 *acc, int f0, int f1, int how, bool post, int n) {
    int sums = n >= 4 ? 1 : 4 / n;
#define COLUMN(q, j)                                                                                                                      \
    {                                                                                                                                     \
        __m512 w = value(s, a, l, f0, f1, how, post, q, j);                                                                               \
        for (int t = 0; t < n; t++) acc[t * sums + (4 * q + j) % sums] = _mm512_fmadd_ps(w, _mm512_set1_ps((x[t] + c)[4 * q + j]), acc[t * sums + (4 * q + j) % sums]); \
    }
#define QUAD(q) COLUMN(q, 0) COLUMN(q, 1) COLUMN(q, 2) COLUMN(q, 3)
    QUAD(0) QUAD(1) QUAD(2) QUAD(3)
#undef QUAD
#undef COLUMN
}

LQ_INLINE __m512 joined(const __m512 *acc, int sums) {
    return sums == 1 ? acc[0] : sums == 2 ? _mm512_add_ps(acc[0], acc[1]) : _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3]));
}

LQ_INLINE void whole_tile(const job *j, int f0, int f1, int how, bool post, int n) {
    const lq_packed *p = j->p;
    const uint8_t *codes = p->codes + (size_t)j->tile * p->tile_bytes;
    const float *x[MOST];
    __m512 total[MOST], acc[MOST], part[MOST];
    __mmask64 bad = 0;
    bool min = p->q.sch.zero_kind == LQ_ZERO_MIN;
    int sums = n >= 4 ? 1 : 4 / n;
    for (int t = 0; t < n; t++) {
        uint32_t token = j->t0 + (uint32_t)t < j->x->n ? j->t0 + (uint32_t)t : j->x->n - 1;
        x[t] = j->x->x + (size_t)token * lq_packed_ld(p);
        total[t] = _mm512_setzero_ps();
    }
    for (uint32_t g = 0; g < p->segs; g++) {
        lq_scales512 k = lq_scales512_at(p, j->tile, g);
        less l = make_less(&j->a, k.z, f1 ? 8 : f0, how, !post && !min);
        uint32_t c = g * p->seg, end = lq_seg_end(p, g);
        for (int t = 0; t < n; t++) part[t] = _mm512_setzero_ps();
        while (c < end) {
            uint32_t stop = end - c > CHUNK * LQ_STEP ? c + CHUNK * LQ_STEP : end;
            for (int i = 0; i < n * sums; i++) acc[i] = _mm512_setzero_ps();
            for (; c < stop; c += LQ_STEP) {
                lq_step s = lq_step512(codes, c, f0, f1);
                lq_ahead512(s, f0, f1);
                bad |= nans(s, how);
                step(s, &j->a, &l, x, c, acc, f0, f1, how, post, n);
            }
            for (int t = 0; t < n; t++) part[t] = _mm512_add_ps(part[t], joined(acc + t * sums, sums));
        }
        for (int t = 0; t < n; t++) {
            total[t] = _mm512_fmadd_ps(k.s, part[t], total[t]);
            if (min && j->t0 + (uint32_t)t < j->x->n) total[t] = _mm512_fnmadd_ps(k.z, _mm512_set1_ps(j->x->sum[(size_t)(j->t0 + (uint32_t)t) * p->segs + g]), total[t]);
        }
    }
    __mmask16 nan = how == E4M3 ? _mm512_test_epi32_mask(_mm512_movm_epi8(bad), _mm512_set1_epi32(-1)) : 0;
    for (int t = 0; t < n && j->t0 + (uint32_t)t < j->x->n; t++)
        _mm512_mask_storeu_ps(j->y + (j->t0 + (uint32_t)t) * j->ldy + (size_t)j->tile * LQ_TILE, lq_rows512(p, j->tile),
                              _mm512_mask_mov_ps(total[t], nan, _mm512_set1_ps(__builtin_nanf(""))));
}

/* name, fields, how; post: zeros that are no whole numbers, or under no whole number, are subtracted by themselves */
#define KINDS(X) \
    X(i1, 1, 0, INT) X(i2, 2, 0, INT) X(i3, 2, 1, INT) X(i4, 4, 0, INT) X(i5, 4, 1, INT) X(i6, 4, 2, INT) X(i8, 8, 0, INT) \
    X(t1, 1, 0, TABLE) X(t2, 2, 0, TABLE) X(t3, 2, 1, TABLE) X(t4, 4, 0, TABLE) X(e4m3, 8, 0, E4M3)
enum {
#define X(name, f0, f1, how) K_##name,
    KINDS(X)
#undef X
    N_KINDS
};
#define X(name, f0, f1, how)                                                  \
    static void name##_1(const job *j) { whole_tile(j, f0, f1, how, false, 1); } \
    static void name##_2(const job *j) { whole_tile(j, f0, f1, how, false, 2); } \
    static void name##_4(const job *j) { whole_tile(j, f0, f1, how, false, 4); } \
    static void name##_8(const job *j) { whole_tile(j, f0, f1, how, false, 8); } \
    static void name##_1z(const job *j) { whole_tile(j, f0, f1, how, true, 1); } \
    static void name##_8z(const job *j) { whole_tile(j, f0, f1, how, true, 8); }
KINDS(X)
#undef X

typedef void (*tile_fn)(const job *j);
enum { PASSES = 4 };
#define X(name, f0, f1, how) {{name##_1, name##_2, name##_4, name##_8}, {name##_1z, name##_8z, name##_8z, name##_8z}},
static const tile_fn by_kind[N_KINDS][2][PASSES] = {KINDS(X)};
#undef X

static int kind_of(const lq_packed *p) {
    const lq_grid own = lq_packed_grid(p), *g = &own;
    if (g->kind == LQ_GRID_E4M3) return K_e4m3;
    if (g->kind == LQ_GRID_INT) return g->bits < 7 ? K_i1 + g->bits - 1 : K_i8;
    return K_t1 + g->bits - 1;
}

static grid make_grid(const lq_packed *p) {
    const lq_grid own = lq_packed_grid(p), *g = &own;
    float t[16] = {0};
    for (uint32_t i = 0; i < 16 && g->bits <= 4; i++) t[i] = lq_grid_value(&p->q, 0, i & ((1u << g->bits) - 1));
    return (grid){_mm512_loadu_ps(t), _mm512_set1_ps((float)g->bias)};
}

void lq_packed_gemv_avx512(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_x *x, float *y, size_t ldy) {
    bool post = p->q.sch.zero_kind == LQ_ZERO_CODE && (p->zero != LQ_U8 || lq_packed_grid(p).kind != LQ_GRID_INT);
    const tile_fn *fn = by_kind[kind_of(p)][post];
    job j = {p, x, 0, 0, make_grid(p), y, ldy};
    for (j.tile = t0; j.tile < t0 + nt; j.tile++)
        for (j.t0 = 0; j.t0 < x->n; j.t0 += MOST) {
            uint32_t n = x->n - j.t0;
            fn[n > 4 ? 3 : n > 2 ? 2 : n - 1](&j);
        }
}
