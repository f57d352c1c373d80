/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The packed layout (kernels/packed.h) in plain C: decoded, times activations in fp64, times rounded activations as whole numbers. */
#include "kernels/ref/ref.h"
#include "kernels/spans.h"

static uint32_t last_row(const lq_packed *p, uint32_t t0, uint32_t nt) { return (t0 + nt) * LQ_TILE < p->q.rows ? (t0 + nt) * LQ_TILE : p->q.rows; }
static uint32_t seg_end(const lq_packed *p, uint32_t g) { return p->q.cols - g * p->seg < p->seg ? p->q.cols : (g + 1) * p->seg; }

void lq_packed_dequant_c(const lq_packed *p, uint32_t t0, uint32_t nt, float *out) {
    const lq_qtensor *q = &p->q;
    bool min = q->sch.zero_kind == LQ_ZERO_MIN;
    for (uint32_t r = t0 * LQ_TILE; r < last_row(p, t0, nt); r++, out += q->cols)
        for (uint32_t c = 0; c < q->cols; c++) {
            float a = lq_grid_value(q, r, lq_packed_code(p, r, c)), s = lq_packed_scale(p, r, c / p->seg), z = lq_packed_zero(p, r, c / p->seg);
            out[q->perm ? q->perm[c] : c] = min ? a * s - z : (a - z) * s;
        }
}

void lq_packed_gemv_c(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_x *x, float *y, size_t ldy) {
    bool min = p->q.sch.zero_kind == LQ_ZERO_MIN;
    for (uint32_t t = 0; t < x->n; t++)
        for (uint32_t r = t0 * LQ_TILE; r < last_row(p, t0, nt); r++) {
            double sum = 0;
            for (uint32_t c = 0; c < p->q.cols; c++) {
                double a = lq_grid_value(&p->q, r, lq_packed_code(p, r, c)), s = lq_packed_scale(p, r, c / p->seg), z = lq_packed_zero(p, r, c / p->seg);
                sum += (min ? a * s - z : (a - z) * s) * (double)x->x[(size_t)t * lq_packed_ld(p) + c];
            }
            y[t * ldy + r] = (float)sum;
        }
}

/* Sum of A(code) x over a segment, A a whole number. */
static int32_t segment_sum(const lq_packed *p, uint32_t r, uint32_t g, const int8_t *x) {
    int32_t sum = 0;
    for (uint32_t c = g * p->seg; c < seg_end(p, g); c++) sum += (int32_t)lq_grid_value(&p->q, r, lq_packed_code(p, r, c)) * x[c];
    return sum;
}

/* Of span b: whole sums with the bytes of both levels, closed once. */
static double span_sum(const lq_packed *p, uint32_t r, uint32_t b, const int8_t *x, const int32_t *ones, float step) {
    int32_t sum = 0, zero = 0;
    uint32_t first = b * p->span;
    for (uint32_t g = first; g < first + p->span; g++) {
        sum += lq_scale_byte(p, r, g) * segment_sum(p, r, g, x);
        if (p->zero != LQ_NONE) zero += lq_zero_byte(p, r, g) * ones[g];
    }
    double v = (double)lq_scale_up(p, r, first) * sum;
    if (p->zero != LQ_NONE) v -= (double)lq_zero_up(p, r, first) * zero;
    return (double)step * v;
}

static void idot_spans(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) {
    for (uint32_t t = 0; t < x->n; t++)
        for (uint32_t i = 0, r = t0 * LQ_TILE; i < nt * LQ_TILE; i++, r++) {
            const int32_t *ones = x->sum + (size_t)t * p->segs;
            const float *step = x->step + (size_t)t * p->segs;
            double sum = 0;
            for (uint32_t b = 0; r < p->q.rows && b < p->spans; b++) sum += span_sum(p, r, b, x->x + (size_t)t * lq_packed_ld(p), ones, step[b * p->span]);
            acc[(size_t)t * nt * LQ_TILE + i] = sum;
        }
}

void lq_packed_idot_c(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) {
    bool min = p->q.sch.zero_kind == LQ_ZERO_MIN;
    if (lq_spans_whole(p)) {
        idot_spans(p, t0, nt, x, acc);
        return;
    }
    for (uint32_t t = 0; t < x->n; t++)
        for (uint32_t i = 0, r = t0 * LQ_TILE; i < nt * LQ_TILE; i++, r++) {
            double sum = 0;
            for (uint32_t g = 0; r < p->q.rows && g < p->segs; g++) {
                double s = (double)lq_packed_scale(p, r, g), z = (double)lq_packed_zero(p, r, g) * (min ? 1 : s);
                int32_t ones = x->sum[(size_t)t * p->segs + g];
                sum += (double)x->step[(size_t)t * p->segs + g] * (s * segment_sum(p, r, g, x->x + (size_t)t * lq_packed_ld(p)) - z * ones);
            }
            acc[(size_t)t * nt * LQ_TILE + i] = sum;
        }
}
