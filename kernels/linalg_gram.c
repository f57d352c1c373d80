/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Gram matrix G = sum over tokens of x x^T, kept as the lower triangle of LQ_GRAM_TILE-square tiles in fp64. A chunk of LQ_GRAM_CHUNK tokens is packed
 * by columns (panels.h); a task owns the sums of one pair of panels, so that each sum sees the chunks in order whatever the thread count. */
#include "kernels/linalg.h"

#include "core/thread.h"
#include "kernels/panels.h"

#include <math.h>

enum { T = LQ_GRAM_TILE };

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

static uint32_t most(uint32_t n, uint32_t limit) { return n < limit ? n : limit; }

typedef struct batch { lq_gram *g; const float *panels; uint32_t n; } batch;

/* Pairs in the order of the lower triangle: (0, 0), (1, 0), (1, 1), (2, 0), .. */
static void add_pair(void *arg, size_t pair) {
    const batch *b = arg;
    size_t i = (size_t)((sqrt(8 * (double)pair + 1) - 1) / 2), size = (size_t)b->n * LQ_PANEL;
    while (i * (i + 1) / 2 > pair) i--;
    while ((i + 1) * (i + 2) / 2 <= pair) i++;
    uint32_t r = (uint32_t)i * LQ_PANEL, c = (uint32_t)(pair - i * (i + 1) / 2) * LQ_PANEL;
    double *sum = tile_at(b->g, r / T, c / T) + (size_t)(r % T) * T + c % T;
    lq_kernels_best()->panel_sums(b->panels + r / LQ_PANEL * size, b->panels + c / LQ_PANEL * size, b->n, sum, T);
}

lq_status lq_gram_add(lq_ctx *ctx, lq_gram *g, const float *x, size_t ldx, uint32_t n) {
    if (!n) return LQ_OK;
    uint32_t chunk = most(n, LQ_GRAM_CHUNK);
    size_t panels = lq_panels(g->k);
    float *packed = lq_panels_new(g->k, chunk);
    if (!packed) return lq_oom(ctx, panels * LQ_PANEL * chunk * sizeof *packed);
    for (uint32_t t = 0; t < n; t += chunk) {
        batch b = {g, packed, most(n - t, chunk)};
        lq_panels_pack(packed, x + t * ldx, ldx, b.n, g->k);
        lq_parallel_for(panels * (panels + 1) / 2, add_pair, &b);
    }
    g->n += n;
    lq_free(packed);
    return LQ_OK;
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
