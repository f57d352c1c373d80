/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Gram matrix G = sum over tokens of x x^T, kept as the lower triangle of LQ_GRAM_TILE-square tiles in fp64.
 * A task owns up to RUN neighbouring tiles of one tile row: for each chunk of LQ_GRAM_CHUNK tokens it forms their product in
 * fp32 (one gemm) and adds it to the fp64 sums, so that each sum sees the chunks in order whatever the thread count. */
#include "kernels/linalg.h"

#include "core/thread.h"
#include "kernels/blas.h"

enum { T = LQ_GRAM_TILE, RUN = 4 };

static uint32_t tile_rows(uint32_t k) { return (k + T - 1) / T; }
static double *tile_at(const lq_gram *g, uint32_t ti, uint32_t tj) {
    return g->tiles + ((size_t)ti * (ti + 1) / 2 + tj) * T * T;
}

lq_status lq_gram_init(lq_ctx *ctx, lq_gram *g, uint32_t k) {
    size_t t = tile_rows(k);
    *g = (lq_gram){.k = k};
    g->tiles = lq_calloc(t * (t + 1) / 2, sizeof(double) * T * T);
    return g->tiles ? LQ_OK : lq_oom(ctx, t * (t + 1) / 2 * sizeof(double) * T * T);
}

void lq_gram_free(lq_gram *g) {
    lq_free(g->tiles);
    *g = (lq_gram){0};
}

typedef struct batch { lq_gram *g; const float *x; size_t ldx; uint32_t n; } batch;

static void sum_tile(double *sum, const float *part, uint32_t rows, uint32_t cols) {
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < cols; j++) sum[i * T + j] += (double)part[i * (RUN * T) + j];
}

/* Tiles (ti, tj .. tj+RUN-1), as far as they lie in the triangle. */
static void add_run(const batch *b, uint32_t ti, uint32_t tj) {
    float part[T * T * RUN];
    uint32_t k = b->g->k, rows = k - ti * T < T ? k - ti * T : T, last = tj + RUN - 1 < ti ? tj + RUN - 1 : ti;
    uint32_t cols = (last + 1) * T < k ? (last + 1) * T - tj * T : k - tj * T;
    for (uint32_t t0 = 0; t0 < b->n; t0 += LQ_GRAM_CHUNK) {
        uint32_t n = b->n - t0 < LQ_GRAM_CHUNK ? b->n - t0 : LQ_GRAM_CHUNK;
        const float *x = b->x + t0 * b->ldx;
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)rows, (blasint)cols, (blasint)n, 1, x + ti * T,
                    (blasint)b->ldx, x + tj * T, (blasint)b->ldx, 0, part, RUN * T);
        for (uint32_t t = tj; t <= last; t++)
            sum_tile(tile_at(b->g, ti, t), part + (t - tj) * T, rows, cols - (t - tj) * T < T ? cols - (t - tj) * T : T);
    }
}

static uint32_t runs_in_row(uint32_t ti) { return ti / RUN + 1; }

static void add_task(void *arg, size_t i) {
    const batch *b = arg;
    uint32_t ti = tile_rows(b->g->k) - 1; /* the longest rows first: shorter tasks fill the end */
    while (i >= runs_in_row(ti)) i -= runs_in_row(ti--);
    add_run(b, ti, (uint32_t)i * RUN);
}

void lq_gram_add(lq_gram *g, const float *x, size_t ldx, uint32_t n) {
    if (!n) return;
    lq_blas_single();
    size_t tasks = 0;
    for (uint32_t ti = 0; ti < tile_rows(g->k); ti++) tasks += runs_in_row(ti);
    lq_parallel_for(tasks, add_task, &(batch){g, x, ldx, n});
    g->n += n;
}

double lq_gram_at(const lq_gram *g, uint32_t i, uint32_t j) {
    uint32_t hi = i > j ? i : j, lo = i > j ? j : i;
    const double *t = tile_at(g, hi / T, lo / T);
    /* both halves of a diagonal tile are computed; the lower one is the definition */
    return t[(size_t)(hi % T) * T + lo % T];
}

void lq_gram_set(lq_gram *g, uint32_t i, uint32_t j, double v) {
    uint32_t hi = i > j ? i : j, lo = i > j ? j : i;
    tile_at(g, hi / T, lo / T)[(size_t)(hi % T) * T + lo % T] = v;
    if (hi / T == lo / T) tile_at(g, hi / T, lo / T)[(size_t)(lo % T) * T + hi % T] = v;
}

typedef struct spread { const lq_gram *g; double *out; } spread;

static void full_task(void *arg, size_t ti) {
    const spread *s = arg;
    uint32_t k = s->g->k, end = (uint32_t)(ti + 1) * T < k ? (uint32_t)(ti + 1) * T : k;
    for (uint32_t i = (uint32_t)ti * T; i < end; i++)
        for (uint32_t j = 0; j <= i; j++) {
            double v = lq_gram_at(s->g, i, j) / (double)(s->g->n ? s->g->n : 1);
            s->out[(size_t)i * k + j] = v;
            s->out[(size_t)j * k + i] = v;
        }
}

void lq_gram_full(const lq_gram *g, double *out) { lq_parallel_for(tile_rows(g->k), full_task, &(spread){g, out}); }

double lq_gram_trace(const lq_gram *g) {
    double sum = 0;
    for (uint32_t i = 0; i < g->k; i++) sum += lq_gram_at(g, i, i);
    return sum;
}

typedef struct mix { lq_gram *g; const lq_gram *other; double c; } mix;

static void mix_task(void *arg, size_t ti) {
    const mix *m = arg;
    double *to = tile_at(m->g, (uint32_t)ti, 0);
    const double *from = tile_at(m->other, (uint32_t)ti, 0);
    for (size_t i = 0; i < (ti + 1) * T * T; i++) to[i] += m->c * from[i];
}

void lq_gram_mix(lq_gram *g, const lq_gram *other, double c) { lq_parallel_for(tile_rows(g->k), mix_task, &(mix){g, other, c}); }
