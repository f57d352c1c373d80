/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Random matrices for the tests of quant/: heavy-tailed weights, correlated inputs with outlier channels. */
#ifndef LQ_TEST_MATRICES_H
#define LQ_TEST_MATRICES_H
#include "calib/stats.h"
#include "core/num.h"
#include "core/qtensor.h"

static inline float *random_weights(uint64_t seed, uint32_t rows, uint32_t cols) {
    float *w = lq_calloc((size_t)rows * cols, sizeof *w);
    lq_rng rng;
    lq_rng_seed(&rng, seed, 1);
    for (size_t i = 0; i < (size_t)rows * cols; i++) {
        float g = lq_rng_normal(&rng);
        w[i] = 0.05f * g * (lq_rng_below(&rng, 50) ? 1 : 4);
    }
    return w;
}

/* x[n][cols]: a few shared directions plus noise; channel gains over two decades. */
static inline float *random_inputs(uint64_t seed, uint32_t n, uint32_t cols) {
    enum { SHARED = 6 };
    float *x = lq_calloc((size_t)n * cols, sizeof *x), *mix = lq_calloc((size_t)SHARED * cols, sizeof *mix), *gain = lq_calloc(cols, sizeof *gain);
    lq_rng rng;
    lq_rng_seed(&rng, seed, 2);
    for (uint32_t i = 0; i < SHARED * cols; i++) mix[i] = lq_rng_normal(&rng);
    for (uint32_t c = 0; c < cols; c++) gain[c] = lq_rng_below(&rng, 20) ? 0.2f + lq_rng_unit(&rng) : 10;
    for (uint32_t t = 0; t < n; t++) {
        float shared[SHARED];
        for (int s = 0; s < SHARED; s++) shared[s] = lq_rng_normal(&rng);
        for (uint32_t c = 0; c < cols; c++) {
            float v = 0.5f * lq_rng_normal(&rng);
            for (int s = 0; s < SHARED; s++) v += shared[s] * mix[(size_t)s * cols + c];
            x[(size_t)t * cols + c] = gain[c] * v;
        }
    }
    lq_free(gain);
    lq_free(mix);
    return x;
}

/* Statistics as calibration would gather them; free with stats_drop. */
static inline lq_stats stats_of(const float *x, uint32_t n, uint32_t cols) {
    lq_stats s;
    if (lq_stats_init(NULL, &s, LQ_NEED_GRAM | LQ_NEED_ABSMAX, cols) == LQ_OK) lq_stats_add(NULL, &s, x, n);
    return s;
}

static inline void stats_drop(lq_stats *s) { lq_stats_free(s); }

/* An arbitrary symmetric H as the Gram matrix of one token. */
static inline lq_stats stats_of_hessian(const double *h, uint32_t cols) {
    lq_stats s = {.needs = LQ_NEED_GRAM, .cols = cols, .n = 1};
    if (lq_gram_init(NULL, &s.gram, cols) != LQ_OK) return s;
    s.gram.n = 1;
    for (uint32_t i = 0; i < cols; i++)
        for (uint32_t j = 0; j <= i; j++) {
            size_t ti = i / LQ_GRAM_TILE, tj = j / LQ_GRAM_TILE;
            s.gram.tiles[(ti * (ti + 1) / 2 + tj) * LQ_GRAM_TILE * LQ_GRAM_TILE + (i % LQ_GRAM_TILE) * LQ_GRAM_TILE + j % LQ_GRAM_TILE] =
                h[(size_t)i * cols + j];
        }
    return s;
}

/* e H e^T of one row in plain fp64; e = w - decoded row of q (q NULL: e = w). */
static inline double row_loss(const lq_gram *g, const float *w, const lq_qtensor *q, uint32_t r) {
    uint32_t k = g->k;
    float *v = lq_calloc(k, sizeof *v);
    double sum = 0;
    if (q) lq_qtensor_decode_row(q, r, v);
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t j = 0; j < k; j++)
            sum += ((double)w[(size_t)r * k + i] - (double)v[i]) * lq_gram_at(g, i, j) / (double)g->n * ((double)w[(size_t)r * k + j] - (double)v[j]);
    lq_free(v);
    return sum;
}

static inline double loss_of(const lq_gram *g, const float *w, const lq_qtensor *q, uint32_t rows) {
    double sum = 0;
    for (uint32_t r = 0; r < rows; r++) sum += row_loss(g, w, q, r);
    return sum;
}
#endif
