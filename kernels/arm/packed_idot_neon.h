/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Packed tiles times rounded activations in 128-bit vectors; the file that includes this has defined, above it,
 *
 *   lq_dot128(acc, w, x)   acc + the products of adjacent signed bytes over four pairs w[i], x[i], four to a dword
 *
 * Weights are the codes, or a table's whole numbers, as signed bytes: less 128 where they would not fit. That and the grid's constant take
 * their products with the sum of x. */
#include "kernels/arm/packed_neon.h"
#include "kernels/spans.h"

enum { WHOLE_MOST = 4 };

typedef struct whole { /* A(code) = table[code] + least, or code - flip + least */
    uint8x16_t table, flip;
    int32_t least;
} whole;

LQ_INLINE int8x16_t weights(const whole *a, lq_step s, int f0, int f1, bool table, int h, int q) {
    uint8x16_t w = lq_quad128(s, f0, f1, h, q);
    return vreinterpretq_s8_u8(table ? vqtbl1q_u8(a->table, w) : f0 == 8 ? veorq_u8(w, a->flip) : w);
}

/* sum[4 n] += the sums of columns [c, end) of n tokens, four rows each */
LQ_INLINE void add_columns(const whole *a, const uint8_t *codes, uint32_t c, uint32_t end, const int8_t *from, uint32_t ld, int32x4_t *sum, int h, int f0, int f1, bool table, int n) {
    for (; c < end; c += LQ_STEP) {
        lq_step s = lq_step_at(codes, c, f0, f1);
        int8x16_t w[4], x[4];
        for (int q = 0; q < 4; q++) w[q] = weights(a, s, f0, f1, table, h, q);
        for (int t = 0; t < n; t++) {
            for (int q = 0; q < 4; q++) {
                int32_t four;
                memcpy(&four, from + (size_t)t * ld + c + 4 * q, 4);
                x[q] = vreinterpretq_s8_s32(vdupq_n_s32(four));
            }
            sum[t] = lq_dot128(sum[t], w, x);
        }
    }
}

/* acc[0], acc[1] += step (s sum - z ones) */
LQ_INLINE void add_scaled(double *acc, int32x2_t sum, float32x2_t s, float32x2_t z, bool min, double ones, double step) {
    float64x2_t wide = vcvt_f64_f32(s), zero = vcvt_f64_f32(z);
    if (!min) zero = vmulq_f64(zero, wide);
    float64x2_t v = vsubq_f64(vmulq_f64(wide, vcvtq_f64_s64(vmovl_s32(sum))), vmulq_f64(zero, vdupq_n_f64(ones)));
    vst1q_f64(acc, vaddq_f64(vld1q_f64(acc), vmulq_f64(vdupq_n_f64(step), v)));
}

LQ_INLINE void close_segment(const whole *a, const lq_scales128 *k, int h, bool min, int32x4_t sum, int32_t ones, float step, double *acc) {
    float32x4_t s = vld1q_f32(k->s + 4 * h), z = vld1q_f32(k->z + 4 * h);
    sum = vaddq_s32(sum, vdupq_n_s32((int32_t)((uint32_t)a->least * (uint32_t)ones)));
    add_scaled(acc + 4 * h, vget_low_s32(sum), vget_low_f32(s), vget_low_f32(z), min, ones, (double)step);
    add_scaled(acc + 4 * h + 2, vget_high_s32(sum), vget_high_f32(s), vget_high_f32(z), min, ones, (double)step);
}

LQ_INLINE int32x4_t bytes_at(lq_dtype t, const uint8_t *v) { /* of four rows */
    int32_t b[4];
    for (int i = 0; i < 4; i++) b[i] = t == LQ_I8 ? (int8_t)v[i] : v[i];
    return vld1q_s32(b);
}

/* acc[0], acc[1] += step (d sum - m zero) */
LQ_INLINE void add_span(double *acc, int32x2_t sum, int32x2_t zero, float32x2_t d, float32x2_t m, bool has_zero, double step) {
    float64x2_t v = vmulq_f64(vcvt_f64_f32(d), vcvtq_f64_s64(vmovl_s32(sum)));
    if (has_zero) v = vsubq_f64(v, vmulq_f64(vcvt_f64_f32(m), vcvtq_f64_s64(vmovl_s32(zero))));
    vst1q_f64(acc, vaddq_f64(vld1q_f64(acc), vmulq_f64(vdupq_n_f64(step), v)));
}

/* Whole spans (GGUF's K types), the one from segment g on: integers up to its end. Four rows of n tokens. */
LQ_INLINE void one_span(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t g, uint32_t t, double *acc, size_t apart, int h, int f0, int f1, bool table, int n) {
    uint32_t ld = lq_packed_ld(p), row = tile * LQ_TILE + 4 * (uint32_t)h;
    const bool has_zero = p->zero != LQ_NONE;
    int32x4_t sum[WHOLE_MOST], zero[WHOLE_MOST];
    float d[4], m[4] = {0};
    for (uint32_t i = 0; i < 4; i++) d[i] = lq_scale_up(p, row + i, g);
    for (uint32_t i = 0; has_zero && i < 4; i++) m[i] = lq_zero_up(p, row + i, g);
    for (int i = 0; i < n; i++) sum[i] = zero[i] = vdupq_n_s32(0);
    for (uint32_t k = g; k < g + p->span; k++) {
        const uint8_t *params = lq_packed_params(p, tile, k) + 4 * h;
        int32x4_t part[WHOLE_MOST], scale = bytes_at(p->scale, params), z = has_zero ? bytes_at(p->zero, params + LQ_TILE) : scale;
        for (int i = 0; i < n; i++) part[i] = vdupq_n_s32(a->least * x->sum[(size_t)(t + (uint32_t)i) * p->segs + k]);
        add_columns(a, p->codes + (size_t)tile * p->tile_bytes, k * p->seg, (k + 1) * p->seg, x->x + (size_t)t * ld, ld, part, h, f0, f1, table, n);
        for (int i = 0; i < n; i++) {
            sum[i] = vmlaq_s32(sum[i], part[i], scale);
            zero[i] = vmlaq_s32(zero[i], z, vdupq_n_s32(x->sum[(size_t)(t + (uint32_t)i) * p->segs + k]));
        }
    }
    float32x4_t up = vld1q_f32(d), down = vld1q_f32(m);
    for (uint32_t i = 0; i < (uint32_t)n; i++) {
        double *to = acc + (t + i) * apart + 4 * h, step = (double)x->step[(size_t)(t + i) * p->segs + g];
        add_span(to, vget_low_s32(sum[i]), vget_low_s32(zero[i]), vget_low_f32(up), vget_low_f32(down), has_zero, step);
        add_span(to + 2, vget_high_s32(sum[i]), vget_high_s32(zero[i]), vget_high_f32(up), vget_high_f32(down), has_zero, step);
    }
}

/* n = 1, 2 or 4 tokens from t on; their acc lie `apart` doubles from each other. */
LQ_INLINE void whole_tile(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, double *acc, size_t apart, int f0, int f1, bool table, int n) {
    uint32_t ld = lq_packed_ld(p);
    const bool spans = lq_spans_whole(p);
    for (uint32_t g = 0; spans && g < p->segs; g += p->span)
        for (int h = 0; h < LQ_QUARTERS; h++) one_span(p, a, x, tile, g, t, acc, apart, h, f0, f1, table, n);
    for (uint32_t g = 0; !spans && g < p->segs; g++) {
        lq_scales128 k = lq_scales128_at(p, tile, g);
        for (int h = 0; h < LQ_QUARTERS; h++) {
            int32x4_t sum[WHOLE_MOST];
            for (int i = 0; i < n; i++) sum[i] = vdupq_n_s32(0);
            add_columns(a, p->codes + (size_t)tile * p->tile_bytes, g * p->seg, lq_seg_end(p, g), x->x + (size_t)t * ld, ld, sum, h, f0, f1, table, n);
            for (uint32_t i = 0; i < (uint32_t)n; i++) {
                size_t at = (size_t)(t + i) * p->segs + g;
                close_segment(a, &k, h, p->q.sch.zero_kind == LQ_ZERO_MIN, sum[i], x->sum[at], x->step[at], acc + (t + i) * apart);
            }
        }
    }
}

/* name, the two fields, by table */
#define WHOLE_KINDS(X)                                                                                             \
    X(c1, 1, 0, false) X(c2, 2, 0, false) X(c3, 2, 1, false) X(c4, 4, 0, false) X(c5, 4, 1, false)                 \
    X(c6, 4, 2, false) X(c8, 8, 0, false) X(t1, 1, 0, true) X(t2, 2, 0, true) X(t4, 4, 0, true)
enum {
#define X(name, f0, f1, table) WHOLE_##name,
    WHOLE_KINDS(X)
#undef X
};

typedef void (*whole_fn)(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, uint32_t n, double *acc, size_t apart);
#define X(name, f0, f1, table)                                                                                                                     \
    static void name(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, uint32_t n, double *acc, size_t apart) { \
        if (n == 1) whole_tile(p, a, x, tile, t, acc, apart, f0, f1, table, 1);                                                                    \
        else if (n == 2) whole_tile(p, a, x, tile, t, acc, apart, f0, f1, table, 2);                                                               \
        else whole_tile(p, a, x, tile, t, acc, apart, f0, f1, table, 4);                                                                           \
    }
WHOLE_KINDS(X)
#undef X
#define X(name, f0, f1, table) name,
static const whole_fn by_whole_kind[] = {WHOLE_KINDS(X)};
#undef X

static int whole_kind(const lq_grid *g) {
    if (g->kind == LQ_GRID_LUT) return g->bits == 1 ? WHOLE_t1 : g->bits == 2 ? WHOLE_t2 : WHOLE_t4;
    return WHOLE_c1 + (g->bits < 7 ? g->bits : 7) - 1;
}

static whole whole_make(const lq_packed *p) { /* the whole tables lie within an int8 as they are */
    const lq_grid *g = &p->q.sch.grid;
    bool table = g->kind == LQ_GRID_LUT, flip = !table && g->bits == 8;
    uint8_t t[16] = {0};
    for (uint32_t i = 0; table && i < 16; i++) t[i] = (uint8_t)(int8_t)lq_grid_value(&p->q, 0, i & ((1u << g->bits) - 1));
    return (whole){vld1q_u8(t), vdupq_n_u8(flip ? 128 : 0), table ? 0 : (flip ? 128 : 0) - g->bias};
}

/* The entry of the kernel table. */
static void packed_idot128(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) {
    const size_t apart = (size_t)nt * LQ_TILE;
    int kind = whole_kind(&p->q.sch.grid);
    whole a = whole_make(p);
    memset(acc, 0, x->n * apart * sizeof *acc);
    for (uint32_t t = 0, n; t < x->n; t += n) {
        n = x->n - t >= 4 ? 4 : x->n - t >= 2 ? 2 : 1;
        for (uint32_t tile = t0; tile < t0 + nt; tile++) by_whole_kind[kind](p, &a, x, tile, t, n, acc + (size_t)(tile - t0) * LQ_TILE, apart);
    }
    for (uint32_t t = 0, kept = lq_tile_rows(p, t0 + nt - 1); t < x->n && nt; t++) /* rows that are not there had scales all the same */
        for (uint32_t i = kept; i < LQ_TILE; i++) acc[(t + 1) * apart - LQ_TILE + i] = 0;
}
