/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GPTQ as Frantar et al. 2022 write it, in fp64: inverse Hessian, its Cholesky factor, one column at a time. */
#ifndef LQ_TEST_TEXTBOOK_H
#define LQ_TEST_TEXTBOOK_H
#include "core/pack.h"
#include "kernels/linalg.h"
#include "quant/grid.h"

/* Code that the rounder gives w at (r, c) under the planes of q. */
static inline uint32_t textbook_code(const lq_qtensor *q, uint32_t r, uint32_t c, float w) {
    const lq_scheme *s = &q->sch;
    float x[LQ_LANES], scale[LQ_LANES], zero[LQ_LANES] = {0}, value[LQ_LANES];
    uint32_t code[LQ_LANES];
    lq_rounder round;
    lq_rounder_init(&round, q, r, 0);
    for (int l = 0; l < LQ_LANES; l++) {
        x[l] = w;
        scale[l] = s->scale.dtype == LQ_NONE ? 1 : lq_plane_get(&s->scale, &q->scale, lq_plane_index(&s->scale, q->cols, r, c));
        if (s->zero_kind) zero[l] = lq_plane_get(&s->zero, &q->zero, lq_plane_index(&s->zero, q->cols, r, c));
    }
    lq_round_lanes(&round, x, scale, zero, code, value);
    return code[0];
}

/* In place: the inverse of a symmetric positive definite matrix (Gauss-Jordan), then its upper Cholesky factor U, U^T U. */
static inline void textbook_factor(double *h, uint32_t k) {
    for (uint32_t p = 0; p < k; p++) {
        double d = h[p * k + p];
        h[p * k + p] = 1;
        for (uint32_t c = 0; c < k; c++) h[p * k + c] /= d;
        for (uint32_t r = 0; r < k; r++) {
            double x = h[r * k + p];
            if (r == p) continue;
            h[r * k + p] = 0;
            for (uint32_t c = 0; c < k; c++) h[r * k + c] -= x * h[p * k + c];
        }
    }
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t j = i; j < k; j++) {
            double s = h[i * k + j];
            for (uint32_t p = 0; p < i; p++) s -= h[p * k + i] * h[p * k + j];
            h[i * k + j] = i == j ? sqrt(s) : s / h[i * k + i];
        }
}

/* Codes into q, whose planes are set; the sum of the squared loss terms is returned. */
static inline double textbook(const lq_gram *g, const uint32_t *perm, double damp, const float *weights, lq_qtensor *q) {
    uint32_t k = g->k;
    double *u = lq_calloc((size_t)k * k, sizeof *u), *w = lq_calloc(k, sizeof *w), mean = 0, loss = 0;
    for (uint32_t i = 0; i < k; i++) mean += lq_gram_at(g, i, i) / (double)g->n / k;
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t j = 0; j < k; j++) u[i * k + j] = lq_gram_at(g, perm[i], perm[j]) / (double)g->n + (i == j ? damp * mean : 0);
    textbook_factor(u, k);
    for (uint32_t r = 0; r < q->rows; r++) {
        for (uint32_t i = 0; i < k; i++) w[i] = (double)weights[(size_t)r * k + perm[i]];
        for (uint32_t i = 0; i < k; i++) {
            uint32_t code = textbook_code(q, r, perm[i], (float)w[i]);
            lq_code_put(q->codes + r * q->row_bytes, q->sch.grid.bits, perm[i], code);
            double e = (w[i] - (double)lq_qtensor_code_weight(q, r, perm[i])) / u[i * k + i];
            for (uint32_t j = i + 1; j < k; j++) w[j] -= e * u[i * k + j];
            loss += e * e;
        }
    }
    lq_free(w);
    lq_free(u);
    return loss;
}
#endif
