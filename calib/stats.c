/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "calib/stats.h"

#include "core/thread.h"

#include <math.h>
#include <string.h>

enum { SLICE = 64 }; /* columns; sums run over tokens in order, whatever the thread count */

lq_status lq_stats_init(lq_ctx *ctx, lq_stats *s, unsigned needs, uint32_t cols) {
    *s = (lq_stats){.needs = needs, .cols = cols, .stride = 1};
    lq_status st = LQ_OK;
    if (needs & ~(unsigned)(LQ_NEED_ABSMAX | LQ_NEED_GRAM | LQ_NEED_SQUARES | LQ_NEED_CROSS | LQ_NEED_SAMPLES)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "statistics of kind %u are not gathered yet", needs);
    if (needs & LQ_NEED_ABSMAX && !((s->absmax = LQ_NEWN(float, cols)) && (s->abssum = LQ_NEWN(double, cols)))) st = lq_oom(ctx, (size_t)cols * 12);
    if (!st && needs & LQ_NEED_SQUARES && !(s->squares = LQ_NEWN(double, cols))) st = lq_oom(ctx, (size_t)cols * 8);
    if (!st && needs & LQ_NEED_GRAM) st = lq_gram_init(ctx, &s->gram, cols);
    if (!st && needs & LQ_NEED_CROSS) st = lq_gram_init(ctx, &s->held, cols);
    bool cross = !(needs & LQ_NEED_CROSS) || ((s->cross = LQ_NEWN(double, (size_t)cols * cols)) && (s->held_cross = LQ_NEWN(double, (size_t)cols * cols)));
    if (!st && !cross) st = lq_oom(ctx, (size_t)cols * cols * 16);
    if (!st && needs & LQ_NEED_SAMPLES && !(s->samples = LQ_NEWN(float, (size_t)LQ_SAMPLES * cols))) st = lq_oom(ctx, (size_t)LQ_SAMPLES * cols * 4);
    if (st) lq_stats_free(s);
    return st;
}

/* Every stride-th token; when there is no more room every other one goes and the stride doubles: the choice depends on nothing
 * but the number of tokens. */
static void add_samples(lq_stats *s, const float *x, uint32_t n) {
    size_t row = s->cols * sizeof *x;
    for (uint64_t t = s->n; t < s->n + n; t++) {
        if (t % s->stride) continue;
        if (s->n_samples == LQ_SAMPLES) {
            for (uint32_t i = 1; i < LQ_SAMPLES / 2; i++) memcpy(s->samples + (size_t)i * s->cols, s->samples + (size_t)2 * i * s->cols, row);
            s->n_samples /= 2;
            s->stride *= 2;
            if (t % s->stride) continue;
        }
        memcpy(s->samples + (size_t)s->n_samples++ * s->cols, x + (size_t)(t - s->n) * s->cols, row);
    }
}

typedef struct job { lq_stats *s; const float *x; uint32_t n; uint8_t *bad; } job; /* bad: [slices] 1 + column in the slice */

static void add_slice(void *arg, size_t i) {
    const job *j = arg;
    uint32_t c0 = (uint32_t)i * SLICE, c1 = j->s->cols - c0 < SLICE ? j->s->cols : c0 + SLICE, w = c1 - c0;
    float max[SLICE] = {0};
    double sum[SLICE] = {0};
    bool odd = false;
    for (uint32_t t = 0; t < j->n; t++) {
        const float *x = j->x + (size_t)t * j->s->cols + c0;
        for (uint32_t c = 0; c < w; c++) {
            float a = fabsf(x[c]);
            max[c] = a > max[c] ? a : max[c];
            sum[c] += a;
        }
    }
    for (uint32_t c = 0; c < w; c++) odd = odd || !isfinite(sum[c]); /* NaN and infinity stay in a sum */
    for (uint32_t c = 0; odd && c < w; c++)
        for (uint32_t t = 0; t < j->n && !j->bad[i]; t++)
            if (!isfinite(j->x[(size_t)t * j->s->cols + c0 + c])) j->bad[i] = (uint8_t)(c + 1);
    if (!(j->s->needs & LQ_NEED_ABSMAX)) return;
    for (uint32_t c = 0; c < w; c++) {
        j->s->absmax[c0 + c] = max[c] > j->s->absmax[c0 + c] ? max[c] : j->s->absmax[c0 + c];
        j->s->abssum[c0 + c] += sum[c];
    }
}

static void square_slice(void *arg, size_t i) {
    const job *j = arg;
    uint32_t c0 = (uint32_t)i * SLICE, c1 = j->s->cols - c0 < SLICE ? j->s->cols : c0 + SLICE;
    for (uint32_t t = 0; t < j->n; t++)
        for (uint32_t c = c0; c < c1; c++) {
            double x = j->x[(size_t)t * j->s->cols + c];
            j->s->squares[c] += x * x;
        }
}

static void add_squares(lq_stats *s, const float *x, uint32_t n) {
    if (s->needs & LQ_NEED_SQUARES) lq_parallel_for((s->cols + SLICE - 1) / SLICE, square_slice, &(job){s, x, n, NULL});
}

double lq_stats_second(const lq_stats *s, uint32_t c) {
    return s->needs & LQ_NEED_GRAM ? lq_gram_at(&s->gram, c, c) : s->needs & LQ_NEED_SQUARES ? s->squares[c] : -1;
}

/* Maxima, sums, and the check that every value is finite. */
static lq_status scan(lq_ctx *ctx, lq_stats *s, const float *x, uint32_t n) {
    size_t slices = (s->cols + SLICE - 1) / SLICE;
    job j = {s, x, n, lq_alloc(slices)};
    if (!j.bad) return lq_oom(ctx, slices);
    lq_parallel_for(slices, add_slice, &j);
    lq_status st = LQ_OK;
    for (size_t i = 0; i < slices && !st; i++)
        if (j.bad[i]) st = lq_fail(ctx, LQ_ERR_QUALITY, "the activations are not finite in column %zu", i * SLICE + j.bad[i] - 1);
    lq_free(j.bad);
    return st;
}

/* What is not finite stays on a Gram matrix's diagonal: without maxima to take there is nothing else to look for. */
static bool gram_tells(const lq_stats *s) { return s->needs & LQ_NEED_GRAM && !(s->needs & LQ_NEED_ABSMAX); }

static lq_status add_gram(lq_ctx *ctx, lq_stats *s, const float *x, uint32_t n) {
    bool odd = false;
    if (s->needs & LQ_NEED_GRAM) LQ_TRY(lq_gram_add(ctx, &s->gram, x, s->cols, n));
    for (uint32_t c = 0; gram_tells(s) && c < s->cols && !odd; c++) odd = !isfinite(lq_gram_at(&s->gram, c, c));
    return odd ? scan(ctx, s, x, n) : LQ_OK;
}

lq_status lq_stats_add(lq_ctx *ctx, lq_stats *s, const float *x, uint32_t n) {
    if (!gram_tells(s)) LQ_TRY(scan(ctx, s, x, n));
    if (s->needs & LQ_NEED_SAMPLES) add_samples(s, x, n);
    add_squares(s, x, n);
    s->n += n;
    return add_gram(ctx, s, x, n);
}

lq_status lq_stats_add_weighted(lq_ctx *ctx, lq_stats *s, float *x, const float *w, uint32_t n) {
    if (!gram_tells(s)) LQ_TRY(scan(ctx, s, x, n));
    if (s->needs & LQ_NEED_SAMPLES) add_samples(s, x, n);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t c = 0; c < s->cols; c++) x[(size_t)t * s->cols + c] *= w[t];
    add_squares(s, x, n);
    s->n += n;
    return add_gram(ctx, s, x, n);
}

static double total(const double *v, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += v[i];
    return sum;
}

static void shrink_squares(lq_stats *s, const lq_stats *prior, double c, bool empty) {
    double own = total(s->squares, s->cols), other = total(prior->squares, s->cols), f = empty ? 1 : other > 0 ? c * own / other : 0;
    for (uint32_t i = 0; i < s->cols; i++) s->squares[i] += f * prior->squares[i];
}

static void mix_square(double *s, const double *other, size_t k, double f) {
    for (size_t i = 0; i < k * k; i++) s[i] += f * other[i];
}

/* The held-out part has some of the prior's where it has tokens. */
static void shrink_cross(lq_stats *s, const lq_stats *prior, double f, bool empty) {
    mix_square(s->cross, prior->cross, s->cols, f);
    if (empty) s->held.n = prior->held.n;
    if (!s->held.n || !prior->held.n) return;
    lq_gram_mix(&s->held, &prior->held, f);
    mix_square(s->held_cross, prior->held_cross, s->cols, f);
}

void lq_stats_shrink(lq_stats *s, const lq_stats *prior, double c) {
    bool empty = !s->n;
    if (s->needs & LQ_NEED_GRAM) {
        double own = lq_gram_trace(&s->gram), other = lq_gram_trace(&prior->gram), f = empty ? 1 : other > 0 ? c * own / other : 0;
        lq_gram_mix(&s->gram, &prior->gram, f);
        if (s->cross && prior->cross) shrink_cross(s, prior, f, empty);
    }
    if (s->needs & LQ_NEED_SQUARES) shrink_squares(s, prior, c, empty);
    if (!empty) return;
    s->n = s->gram.n = prior->n;
    if (s->needs & LQ_NEED_SAMPLES) {
        s->n_samples = prior->n_samples;
        s->stride = prior->stride;
        memcpy(s->samples, prior->samples, (size_t)s->n_samples * s->cols * sizeof *s->samples);
    }
    if (!(s->needs & LQ_NEED_ABSMAX)) return;
    memcpy(s->absmax, prior->absmax, s->cols * sizeof *s->absmax);
    memcpy(s->abssum, prior->abssum, s->cols * sizeof *s->abssum);
}

lq_status lq_stats_add_cross(lq_ctx *ctx, lq_stats *s, float *fp, const float *x, uint32_t n, bool held) {
    for (size_t i = 0; i < (size_t)n * s->cols; i++) fp[i] -= x[i];
    LQ_TRY(lq_cross_add(ctx, s->cross, s->cols, fp, x, n));
    if (!held) return LQ_OK;
    LQ_TRY(lq_cross_add(ctx, s->held_cross, s->cols, fp, x, n));
    return lq_gram_add(ctx, &s->held, x, s->cols, n);
}

void lq_stats_divide(lq_stats *s, const float *by) {
    for (uint32_t i = 0; i < s->cols; i++) {
        double d = by[i];
        if (s->absmax) s->absmax[i] /= by[i], s->abssum[i] /= d;
        if (s->squares) s->squares[i] /= d * d;
        for (uint32_t j = 0; s->gram.tiles && j <= i; j++) lq_gram_set(&s->gram, i, j, lq_gram_at(&s->gram, i, j) / (d * (double)by[j]));
    }
    for (size_t i = 0; i < (size_t)s->n_samples * s->cols; i++) s->samples[i] /= by[i % s->cols];
}

void lq_stats_free(lq_stats *s) {
    lq_gram_free(&s->held);
    lq_free(s->cross);
    lq_free(s->held_cross);
    lq_free(s->absmax);
    lq_free(s->abssum);
    lq_free(s->squares);
    lq_gram_free(&s->gram);
    lq_free(s->samples);
    *s = (lq_stats){0};
}
