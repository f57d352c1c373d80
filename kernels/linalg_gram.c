/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Gram matrix G = sum over tokens of x x^T, kept as the lower triangle of LQ_GRAM_TILE-square tiles in fp64.
 * The triangle is cut into strips of rows, an even number alike in height, and these into blocks of at most COLS columns. A task owns a block: for each
 * chunk of LQ_GRAM_CHUNK tokens it forms the product in fp32 (one gemm; on the diagonal one syrk) and adds it to the fp64 sums, so that each sum sees
 * the chunks in order whatever the thread count. Wide blocks are packed for gemm least often. */
#include "kernels/linalg.h"

#include "core/thread.h"
#include "kernels/blas.h"

enum { T = LQ_GRAM_TILE, ROWS = 192, COLS = 768 };

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

typedef struct batch { lq_gram *g; const float *x; size_t ldx; uint32_t n, strips, rows; } batch; /* rows: of a strip, but for the last */

static uint32_t most(uint32_t n, uint32_t limit) { return n < limit ? n : limit; }

/* part[rows][cols] to rows r0 .., columns c0 .., as far as these lie on the diagonal or below. */
static void sum_block(lq_gram *g, uint32_t r0, uint32_t rows, uint32_t c0, uint32_t cols, const float *part) {
    for (uint32_t r = r0; r < r0 + rows; r++, part += cols)
        for (uint32_t c = c0, end = most(c0 + cols, r + 1), stop; c < end; c = stop) {
            double *to = tile_at(g, r / T, c / T) + (size_t)(r % T) * T + c % T;
            const float *from = part + (c - c0);
            stop = most(end, (c / T + 1) * T);
            for (uint32_t i = 0; i < stop - c; i++) to[i] += (double)from[i];
        }
}

static void add_block(const batch *b, uint32_t r0, uint32_t rows, uint32_t c0, uint32_t cols, bool diagonal) {
    float part[ROWS * COLS];
    blasint ld = (blasint)b->ldx;
    for (uint32_t t0 = 0; t0 < b->n; t0 += LQ_GRAM_CHUNK) {
        const float *x = b->x + t0 * b->ldx;
        blasint n = (blasint)most(b->n - t0, LQ_GRAM_CHUNK);
        if (cols) {
            cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)rows, (blasint)cols, n, 1, x + r0, ld, x + c0, ld, 0, part, (blasint)cols);
            sum_block(b->g, r0, rows, c0, cols, part);
        }
        if (!diagonal) continue;
        cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, (blasint)rows, n, 1, x + r0, ld, 0, part, (blasint)rows);
        sum_block(b->g, r0, rows, r0, rows, part);
    }
}

static uint32_t parts(uint32_t n, uint32_t limit) { return n ? (n + limit - 1) / limit : 1; }
static uint32_t blocks_of(const batch *b, uint32_t strip) { return parts(strip * b->rows, COLS); }

/* The longest strip, the shortest, the longest of the rest, ..: any run of them has about its share of the work. */
static uint32_t strip_at(const batch *b, uint32_t i) { return i % 2 ? i / 2 : b->strips - 1 - i / 2; }

static void add_task(void *arg, size_t task) {
    const batch *b = arg;
    uint32_t s = strip_at(b, 0);
    for (uint32_t i = 0; task >= blocks_of(b, s); s = strip_at(b, ++i)) task -= blocks_of(b, s);
    uint32_t r0 = s * b->rows, n = blocks_of(b, s), wide = (parts(r0, n) + 15) / 16 * 16, c0 = most((uint32_t)task * wide, r0);
    add_block(b, r0, most(b->g->k - r0, b->rows), c0, most(wide, r0 - c0), task + 1 == n);
}

void lq_gram_add(lq_gram *g, const float *x, size_t ldx, uint32_t n) {
    if (!n) return;
    lq_blas_single();
    batch b = {g, x, ldx, n, g->k > ROWS ? 2 * parts(g->k, 2 * ROWS) : 1, 0};
    b.rows = (parts(g->k, b.strips) + 15) / 16 * 16;
    b.strips = parts(g->k, b.rows);
    size_t tasks = 0;
    for (uint32_t s = 0; s < b.strips; s++) tasks += blocks_of(&b, s);
    lq_parallel_for(tasks, add_task, &b);
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
