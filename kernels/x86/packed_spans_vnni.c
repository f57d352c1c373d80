/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Packed tiles with whole spans (GGUF's K types) times rounded activations: a span of 256 columns is integers only.
 *
 *   segment     vpdpbusd adds its products, vpmulld takes the sum times the sixteen rows' scale bytes
 *   folded      2-bit codes times scale bytes are bytes themselves: vpmullw of two at a time, and vpdpbusd adds up the whole span
 *   ones        the grid's constant and the zeros take the segments' sums of x, 16 bits each, by vpdpwssd: two segments at once
 *   span        closed in fp64: step (d S - m Z), the two products exact */
#include "kernels/x86/packed_idot512.h"

enum { PAIRS = LQ_SPAN_SEGS / 2, PARAMS_AHEAD = 2048 };

LQ_INLINE __m512i bytes_at(lq_dtype t, const uint8_t *v) { /* of sixteen rows, in dwords */
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)v);
    return t == LQ_I8 ? _mm512_cvtepi8_epi32(b) : _mm512_cvtepu8_epi32(b);
}

/* Of two segments, 16 bits each. */
LQ_INLINE __m512i two_segments(lq_dtype t, const uint8_t *v, size_t apart) {
    return _mm512_mask_mov_epi16(_mm512_slli_epi32(bytes_at(t, v + apart), 16), 0x55555555, bytes_at(t, v));
}

typedef struct ones { int16_t v[MOST][LQ_SPAN_SEGS]; } ones; /* a span's sums of x, segment by segment */

LQ_INLINE void ones_times(const lq_packed *p, lq_dtype type, const uint8_t *v, const ones *x, __m512i *sum, int n) {
    for (int t = 0; t < n; t++) sum[t] = _mm512_setzero_si512();
    for (uint32_t g = 0; g < p->span; g += 2, v += 2 * p->seg_bytes) {
        __m512i w = two_segments(type, v, p->seg_bytes);
        for (int t = 0; t < n; t++) sum[t] = _mm512_dpwssd_epi32(sum[t], w, four((const int8_t *)(x->v[t] + g)));
    }
}

/* One token, nibbles where they are: sums of the low and of the high ones. */
LQ_INLINE void nibbles(lq_step s, const int8_t *x, __m512i *sum) {
    for (int q = 0; q < 4; q++) sum[q & 1] = _mm512_dpbusd_epi32(sum[q & 1], in_place(s.lo, s.half, 4, q), four(x + 4 * q));
}

LQ_INLINE void add_step(lq_step s, const whole *a, const int8_t *const *x, uint32_t c, __m512i by, __m512i *sum, int f0, int f1, bool table, bool fold, int n) {
    for (int q = 0; q < 4; q++) {
        __m512i v = codes_of(s, a, f0, f1, table, q);
        if (fold) v = _mm512_mullo_epi16(v, by);
        add_quad(v, x, c, q, sum, n);
    }
}

/* The products of span b with its scale bytes, the grid's constant left out. */
LQ_INLINE void products(const job *j, uint32_t b, const int8_t *const *x, __m512i *total, int f0, int f1, bool table, bool fold, int n) {
    const lq_packed *p = j->p;
    const uint8_t *codes = p->codes + (size_t)j->tile * p->tile_bytes, *params = lq_packed_params(p, j->tile, b * p->span);
    const bool in_nibbles = n == 1 && f0 == 4 && !f1 && !table;
    __m512i sum[MOST];
    for (int t = 0; t < n; t++) total[t] = _mm512_setzero_si512();
    for (int i = 0; i < MOST; i++) sum[i] = _mm512_setzero_si512();
    for (uint32_t g = 0, c = b * p->span * p->seg; g < p->span; g++, params += p->seg_bytes) {
        __m512i by = bytes_at(fold ? LQ_U8 : p->scale, params);
        if (fold) by = _mm512_or_si512(by, _mm512_slli_epi32(by, 16));
        _mm_prefetch((const char *)params + PARAMS_AHEAD, _MM_HINT_T0);
        for (uint32_t end = c + p->seg; c < end; c += LQ_STEP) {
            lq_step s = lq_step512(codes, c, f0, f1);
            lq_ahead512(s, f0, f1);
            if (in_nibbles) nibbles(s, x[0] + c, sum);
            else add_step(s, &j->a, x, c, by, sum, f0, f1, table, fold, n);
        }
        if (fold) continue;
        for (int t = 0; t < n; t++) {
            __m512i v = in_nibbles ? _mm512_add_epi32(sum[0], _mm512_srai_epi32(sum[1], 4)) : join_some(sum, t, n);
            total[t] = _mm512_add_epi32(total[t], _mm512_mullo_epi32(v, by));
        }
        for (int i = 0; i < MOST; i++) sum[i] = _mm512_setzero_si512();
    }
    for (int t = 0; fold && t < n; t++) total[t] = join_some(sum, t, n);
}

LQ_INLINE void see_ones(const job *j, uint32_t b, const size_t *at, ones *x, int n) {
    const uint32_t span = j->p->span;
    for (int t = 0; t < n; t++) {
        __m512i v = _mm512_maskz_loadu_epi32((__mmask16)((1u << span) - 1), j->x->sum + at[t] + (size_t)b * span);
        _mm256_storeu_si256((__m256i *)(void *)x->v[t], _mm512_cvtepi32_epi16(v));
    }
}

LQ_INLINE void spans_of_tile(const job *j, int f0, int f1, bool table, bool fold, int n) {
    const lq_packed *p = j->p;
    const int8_t *x[MOST];
    size_t at[MOST];
    wide total[MOST];
    const bool min = p->zero != LQ_NONE;
    for (int t = 0; t < n; t++) {
        uint32_t token = j->t0 + (uint32_t)t < j->x->n ? j->t0 + (uint32_t)t : j->x->n - 1;
        x[t] = j->x->x + (size_t)token * lq_packed_ld(p);
        at[t] = (size_t)token * p->segs;
        total[t] = wide_f32(_mm512_setzero_ps());
    }
    for (uint32_t b = 0; b < p->spans; b++) {
        const uint8_t *params = lq_packed_params(p, j->tile, b * p->span), *ups = lq_packed_ups(p, j->tile, b * p->span);
        ones x_sums;
        __m512i sum[MOST], less[MOST], zero[MOST];
        for (int t = 0; t < n; t++) less[t] = zero[t] = _mm512_setzero_si512();
        products(j, b, x, sum, f0, f1, table, fold, n);
        if (min || j->a.less) see_ones(j, b, at, &x_sums, n);
        if (j->a.less) {
            ones_times(p, p->scale, params, &x_sums, less, n);
            for (int t = 0; t < n; t++) sum[t] = _mm512_sub_epi32(sum[t], _mm512_mullo_epi32(less[t], _mm512_set1_epi32(j->a.less)));
        }
        if (min) ones_times(p, p->zero, params + LQ_TILE, &x_sums, zero, n);
        wide d = wide_f32(lq_params512(LQ_F16, ups, 1, 0)), m = min ? wide_f32(lq_params512(LQ_F16, ups + 2 * LQ_TILE, 1, 0)) : d;
        for (int t = 0; t < n; t++) {
            wide v = mul(d, wide_i32(sum[t]));
            if (min) v = sub(v, mul(m, wide_i32(zero[t])));
            total[t] = add(total[t], mul1(v, (double)j->x->step[at[t] + (size_t)b * p->span]));
        }
    }
    __mmask16 rows = lq_rows512(p, j->tile);
    for (int t = 0; t < n && j->t0 + (uint32_t)t < j->x->n; t++) {
        double *to = j->acc + (j->t0 + (uint32_t)t) * j->ld;
        _mm512_storeu_pd(to, _mm512_maskz_mov_pd((__mmask8)rows, total[t].lo));
        _mm512_storeu_pd(to + 8, _mm512_maskz_mov_pd((__mmask8)(rows >> 8), total[t].hi));
    }
}

/* name, the two fields, by table, folded */
#define KINDS(X) \
    X(i2, 2, 0, false, false) X(i3, 2, 1, false, false) X(i4, 4, 0, false, false) X(i5, 4, 1, false, false) X(i6, 4, 2, false, false) \
    X(t4, 4, 0, true, false) X(folded2, 2, 0, false, true)
enum {
#define X(name, f0, f1, table, fold) K_##name,
    KINDS(X)
#undef X
    N_KINDS
};
#define X(name, f0, f1, table, fold)                                           \
    static void name##_1(const job *j) { spans_of_tile(j, f0, f1, table, fold, 1); } \
    static void name##_2(const job *j) { spans_of_tile(j, f0, f1, table, fold, 2); } \
    static void name##_4(const job *j) { spans_of_tile(j, f0, f1, table, fold, 4); } \
    static void name##_8(const job *j) { spans_of_tile(j, f0, f1, table, fold, 8); }
KINDS(X)
#undef X
#define X(name, f0, f1, table, fold) {name##_1, name##_2, name##_4, name##_8},
static const tile_fn by_kind[N_KINDS][4] = {KINDS(X)};
#undef X

static int kind_of(const lq_packed *p) {
    const lq_grid *g = &p->q.sch.grid;
    const lq_plane_desc *s = &p->q.sch.scale;
    if (g->kind != LQ_GRID_INT) return K_t4;
    return g->bits == 2 && s->dtype == LQ_U8 && s->sig && s->sig <= 6 ? K_folded2 : K_i2 + g->bits - 2; /* 3 times 63 is a byte */
}

void lq_packed_spans_vnni(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) {
    const tile_fn *fn = by_kind[kind_of(p)];
    job j = {p, x, 0, 0, make_whole(p), acc, (size_t)nt * LQ_TILE};
    for (j.tile = t0; j.tile < t0 + nt; j.tile++, j.acc += LQ_TILE)
        for (j.t0 = 0; j.t0 < x->n; j.t0 += MOST) {
            uint32_t n = x->n - j.t0;
            fn[n > 4 ? 3 : n > 2 ? 2 : n - 1](&j);
        }
}
