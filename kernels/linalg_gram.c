/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Gram matrix G = sum over tokens of x x^T, kept as the lower triangle of LQ_GRAM_TILE-square tiles in fp64.
 * A task owns a block of SIDE by SIDE tiles: for each chunk of LQ_GRAM_CHUNK tokens it forms their product in fp32 (one gemm, on the
 * diagonal one syrk) and adds it to the fp64 sums, so that each sum sees the chunks in order whatever the thread count. */
#include "kernels/linalg.h"

#include "core/thread.h"
#include "kernels/blas.h"

enum { T = LQ_GRAM_TILE, SIDE = 2, BLOCK = SIDE * T };

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

static void sum_tile(double *sum, const float *part, uint32_t rows, uint32_t cols, bool lower) {
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < (lower ? i + 1 : cols); j++) sum[i * T + j] += (double)part[i * BLOCK + j];
}

static uint32_t most(uint32_t n, uint32_t limit) { return n < limit ? n : limit; }

static void sum_block(const batch *b, uint32_t ti, uint32_t tj, const float *part) {
    uint32_t k = b->g->k, rows = tile_rows(k);
    for (uint32_t i = 0; i < SIDE && ti + i < rows; i++)
        for (uint32_t j = 0; j < SIDE && tj + j <= ti + i; j++)
            sum_tile(tile_at(b->g, ti + i, tj + j), part + (size_t)i * T * BLOCK + j * T, most(k - (ti + i) * T, T), most(k - (tj + j) * T, T), ti + i == tj + j);
}

/* Tiles from (ti, tj) on, as far as they lie in the triangle; of a tile on the diagonal its lower half. */
static void add_block(const batch *b, uint32_t ti, uint32_t tj) {
    float part[BLOCK * BLOCK];
    blasint ld = (blasint)b->ldx, rows = (blasint)most(b->g->k - ti * T, BLOCK), cols = (blasint)most(b->g->k - tj * T, BLOCK);
    for (uint32_t t0 = 0; t0 < b->n; t0 += LQ_GRAM_CHUNK) {
        const float *x = b->x + t0 * b->ldx;
        blasint n = (blasint)most(b->n - t0, LQ_GRAM_CHUNK);
        if (ti == tj) cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, rows, n, 1, x + ti * T, ld, 0, part, BLOCK);
        else cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, rows, cols, n, 1, x + ti * T, ld, x + tj * T, ld, 0, part, BLOCK);
        sum_block(b, ti, tj, part);
    }
}

static uint32_t block_rows(uint32_t k) { return (k + BLOCK - 1) / BLOCK; }

/* Blocks below the diagonal first, then those on it, which have half the work: shorter tasks fill the end. */
static void add_task(void *arg, size_t i) {
    const batch *b = arg;
    uint32_t all = block_rows(b->g->k), below = all * (all - 1) / 2, bi = 1;
    if (i >= below) {
        uint32_t at = (uint32_t)(i - below) * SIDE;
        add_block(b, at, at);
        return;
    }
    for (; i >= bi; bi++) i -= bi;
    add_block(b, bi * SIDE, (uint32_t)i * SIDE);
}

void lq_gram_add(lq_gram *g, const float *x, size_t ldx, uint32_t n) {
    if (!n) return;
    lq_blas_single();
    size_t all = block_rows(g->k);
    lq_parallel_for(all * (all + 1) / 2, add_task, &(batch){g, x, ldx, n});
    g->n += n;
}

double lq_gram_at(const lq_gram *g, uint32_t i, uint32_t j) {
    uint32_t hi = i > j ? i : j, lo = i > j ? j : i;
    const double *t = tile_at(g, hi / T, lo / T);
    /* of a diagonal tile the lower half is the definition */
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
    uint32_t k = s->g->k, i0 = (uint32_t)ti * T, rows = most(k - i0, T);
    double n = (double)(s->g->n ? s->g->n : 1);
    for (uint32_t tj = 0; tj <= ti; tj++) {
        const double *t = tile_at(s->g, (uint32_t)ti, tj);
        for (uint32_t i = 0; i < rows; i++)
            for (uint32_t j = 0; j < (tj == ti ? i + 1 : T); j++) {
                double v = t[(size_t)i * T + j] / n;
                s->out[(size_t)(i0 + i) * k + tj * T + j] = v;
                s->out[(size_t)(tj * T + j) * k + i0 + i] = v;
            }
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
