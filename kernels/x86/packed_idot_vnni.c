/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Packed tiles times rounded activations: a lane is a row, vpdpbusd adds four products of unsigned codes and signed activations.
 *
 *   one token    the bits of a field stay where they are: v & mask << b times x is 2^b times too large, exactly, and has a sum of its own
 *                (at most 255 * 127 * 65536, below 2^31)
 *   more tokens  the four codes of a quad are cut out once for up to eight tokens
 *
 * A(code) is code - bias or table[code] - least, the constant taken times the sum of x. */
#include "kernels/x86/packed_idot512.h"

enum { SUMS = 8 };

LQ_INLINE void step_one(lq_step s, const int8_t *x, __m512i *sum, int f0, int f1) {
    for (int q = 0; q < 4; q++) {
        sum[q] = _mm512_dpbusd_epi32(sum[q], in_place(s.lo, s.half, f0, q), four(x + 4 * q));
        if (f1) sum[4 + q] = _mm512_dpbusd_epi32(sum[4 + q], in_place(s.hi, s.half, f1, q), four(x + 4 * q));
    }
}

LQ_INLINE __m512i join_one(const __m512i *sum, int f0, int f1) {
    __m512i lo = _mm512_setzero_si512(), hi = lo;
    for (int q = 0; q < 4; q++) {
        lo = _mm512_add_epi32(lo, _mm512_srai_epi32(sum[q], (unsigned)lq_bit512(f0, q)));
        if (f1) hi = _mm512_add_epi32(hi, _mm512_srai_epi32(sum[4 + q], (unsigned)lq_bit512(f1, q)));
    }
    return f1 ? _mm512_add_epi32(lo, _mm512_slli_epi32(hi, (unsigned)f0)) : lo;
}

LQ_INLINE void step_some(lq_step s, const whole *a, const int8_t *const *x, uint32_t c, __m512i *sum, int f0, int f1, bool table, int n) {
    for (int q = 0; q < 4; q++) {
        __m512i v = codes_of(s, a, f0, f1, table, q);
        add_quad(v, x, c, q, sum, n);
    }
}

LQ_INLINE void whole_tile(const job *j, int f0, int f1, bool table, int n) {
    const lq_packed *p = j->p;
    const uint8_t *codes = p->codes + (size_t)j->tile * p->tile_bytes;
    const int8_t *x[MOST];
    size_t at[MOST];
    __m512i sum[SUMS];
    wide total[MOST];
    bool min = p->q.sch.zero_kind == LQ_ZERO_MIN, has_zero = p->zero != LQ_NONE;
    for (int t = 0; t < n; t++) {
        uint32_t token = j->t0 + (uint32_t)t < j->x->n ? j->t0 + (uint32_t)t : j->x->n - 1;
        x[t] = j->x->x + (size_t)token * lq_packed_ld(p);
        at[t] = (size_t)token * p->segs;
        total[t] = wide_f32(_mm512_setzero_ps());
    }
    for (uint32_t g = 0; g < p->segs; g++) {
        lq_scales512 k = lq_scales512_at(p, j->tile, g);
        for (int i = 0; i < SUMS; i++) sum[i] = _mm512_setzero_si512();
        for (uint32_t c = g * p->seg, end = lq_seg_end(p, g); c < end; c += LQ_STEP) {
            lq_step s = lq_step512(codes, c, f0, f1);
            lq_ahead512(s, f0, f1);
            if (n == 1 && !table) step_one(s, x[0] + c, sum, f0, f1);
            else step_some(s, &j->a, x, c, sum, f0, f1, table, n);
        }
        /* without a zero the definition's 0 s makes a NaN of an infinite scale and changes nothing else but the sign of a zero term */
        wide s = wide_f32(has_zero ? k.s : _mm512_add_ps(k.s, _mm512_mul_ps(k.s, _mm512_setzero_ps()))), z = wide_f32(k.z);
        if (!min) z = mul(z, s);
        for (int t = 0; t < n; t++) {
            int32_t ones = j->x->sum[at[t] + g];
            __m512i whole_sum = n == 1 && !table ? join_one(sum, f0, f1) : join_some(sum, t, n);
            whole_sum = _mm512_sub_epi32(whole_sum, _mm512_set1_epi32((int32_t)((uint32_t)j->a.less * (uint32_t)ones)));
            wide v = mul(s, wide_i32(whole_sum));
            if (has_zero) v = sub(v, mul1(z, (double)ones));
            total[t] = add(total[t], mul1(v, (double)j->x->step[at[t] + g]));
        }
    }
    __mmask16 rows = lq_rows512(p, j->tile);
    for (int t = 0; t < n && j->t0 + (uint32_t)t < j->x->n; t++) {
        double *to = j->acc + (j->t0 + (uint32_t)t) * j->ld;
        _mm512_storeu_pd(to, _mm512_maskz_mov_pd((__mmask8)rows, total[t].lo));
        _mm512_storeu_pd(to + 8, _mm512_maskz_mov_pd((__mmask8)(rows >> 8), total[t].hi));
    }
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
#define X(name, f0, f1, table)                                       \
    static void name##_1(const job *j) { whole_tile(j, f0, f1, table, 1); } \
    static void name##_2(const job *j) { whole_tile(j, f0, f1, table, 2); } \
    static void name##_4(const job *j) { whole_tile(j, f0, f1, table, 4); } \
    static void name##_8(const job *j) { whole_tile(j, f0, f1, table, 8); }
KINDS(X)
#undef X

enum { PASSES = 4 };
#define X(name, f0, f1, table) {name##_1, name##_2, name##_4, name##_8},
static const tile_fn by_kind[N_KINDS][PASSES] = {KINDS(X)};
#undef X

void lq_packed_idot_vnni(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) {
    if (lq_spans_whole(p)) {
        lq_packed_spans_vnni(p, t0, nt, x, acc);
        return;
    }
    const lq_grid grid = lq_packed_grid(p), *g = &grid;
    const tile_fn *fn = by_kind[g->kind != LQ_GRID_INT ? K_t1 + g->bits - 1 : g->bits < 7 ? K_i1 + g->bits - 1 : K_i8];
    job j = {p, x, 0, 0, make_whole(p), acc, (size_t)nt * LQ_TILE};
    for (j.tile = t0; j.tile < t0 + nt; j.tile++, j.acc += LQ_TILE)
        for (j.t0 = 0; j.t0 < x->n; j.t0 += MOST) {
            uint32_t n = x->n - j.t0;
            fn[n > 4 ? 3 : n > 2 ? 2 : n - 1](&j);
        }
}
