/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/orthogonal.h"

#include "core/num.h"

#include <string.h>

enum { LARGEST_BASE = 256 };

static bool is_prime(uint32_t n) {
    for (uint32_t i = 2; i * i <= n; i++)
        if (n % i == 0) return false;
    return n > 1;
}

/* The Legendre symbol (a/q). */
static int legendre(uint32_t a, uint32_t q) {
    uint64_t r = 1, b = a % q;
    for (uint32_t e = (q - 1) / 2; e; e >>= 1, b = b * b % q)
        if (e & 1) r = r * b % q;
    return r == q - 1 ? -1 : (int)r;
}

/* The matrix both constructions start from: row and column 0 border the symbols (j - i / q); symmetric for q = 1 mod 4, else skew. */
static int conference(uint32_t q, uint32_t i, uint32_t j) {
    if (i == j) return 0;
    if (!i) return 1;
    if (!j) return q % 4 == 1 ? 1 : -1;
    return legendre(j + q - i, q);
}

static bool paley1(uint32_t k) { return k >= 4 && (k - 1) % 4 == 3 && is_prime(k - 1); }
static bool paley2(uint32_t k) { return k % 4 == 0 && k >= 12 && (k / 2 - 1) % 4 == 1 && is_prime(k / 2 - 1); }

static double paley1_at(uint32_t k, uint32_t i, uint32_t j) { return conference(k - 1, i, j) + (i == j); }
static double paley2_at(uint32_t k, uint32_t i, uint32_t j) { /* C x [1 1; 1 -1] + I x [1 -1; -1 -1] */
    int both = i & j & 1, c = conference(k / 2 - 1, i / 2, j / 2);
    if (i / 2 != j / 2) return both ? -c : c;
    return (i & 1) || (j & 1) ? -1 : 1;
}

/* Order of the base: the smallest Hadamard matrix known here that divides n by a power of two, else n's odd part. */
static uint32_t base_order(uint32_t n, bool *hadamard) {
    uint32_t odd = n;
    while (odd % 2 == 0) odd /= 2;
    *hadamard = true;
    if (odd == 1) return 1;
    for (uint32_t k = odd; k <= LARGEST_BASE && n % k == 0; k *= 2)
        if (paley1(k) || paley2(k)) return k;
    *hadamard = false;
    return odd;
}

/* Rows of normal numbers made orthonormal one by one, twice, so that rounding does not accumulate. */
static void random_base(lq_orthogonal *q, lq_rng *rng, double scale) {
    uint32_t k = q->k;
    for (uint32_t i = 0; i < k; i++) {
        double *row = q->base + (size_t)i * k, norm = 0;
        for (uint32_t c = 0; c < k; c++) row[c] = (double)lq_rng_normal(rng);
        for (uint32_t again = 0; again < 2; again++)
            for (uint32_t j = 0; j < i; j++) {
                const double *other = q->base + (size_t)j * k;
                double dot = 0;
                for (uint32_t c = 0; c < k; c++) dot += row[c] * other[c];
                for (uint32_t c = 0; c < k; c++) row[c] -= dot * other[c];
            }
        for (uint32_t c = 0; c < k; c++) norm += row[c] * row[c];
        for (uint32_t c = 0; c < k; c++) row[c] /= sqrt(norm);
    }
    for (size_t i = 0; i < (size_t)k * k; i++) q->base[i] *= scale;
}

static void make_base(lq_orthogonal *q, lq_rng *rng) {
    double scale = 1 / sqrt((double)(q->hadamard ? q->n : q->p));
    if (!q->hadamard) {
        random_base(q, rng, scale);
        return;
    }
    for (uint32_t i = 0; i < q->k; i++)
        for (uint32_t j = 0; j < q->k; j++)
            q->base[(size_t)i * q->k + j] = scale * (q->k == 1 ? 1 : paley1(q->k) ? paley1_at(q->k, i, j) : paley2_at(q->k, i, j));
}

lq_status lq_orthogonal_init(lq_ctx *ctx, lq_orthogonal *q, uint32_t n, uint64_t seed, uint64_t stream) {
    *q = (lq_orthogonal){.n = n};
    if (!n) return lq_fail(ctx, LQ_ERR_INTERNAL, "a rotation of order 0");
    q->k = base_order(n, &q->hadamard);
    q->p = n / q->k;
    if (q->k > LQ_ORTHOGONAL_ODD) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "no rotation of order %u: its odd part %u is beyond %d", n, q->k, LQ_ORTHOGONAL_ODD);
    q->base = LQ_NEWN(double, (size_t)q->k * q->k);
    q->sign = LQ_NEWN(double, n);
    if (!q->base || !q->sign) {
        lq_orthogonal_free(q);
        return lq_oom(ctx, (size_t)n * 8);
    }
    lq_rng rng;
    lq_rng_seed(&rng, seed, stream);
    for (uint32_t i = 0; i < n; i++) q->sign[i] = lq_rng_u32(&rng) & 1 ? 1 : -1;
    make_base(q, &rng);
    return LQ_OK;
}

/* v <- v (S x I), S unscaled */
static void sylvester(const lq_orthogonal *q, double *v) {
    for (uint32_t half = 1; half < q->p; half *= 2)
        for (uint32_t i = 0; i < q->p; i += 2 * half)
            for (size_t c = (size_t)i * q->k; c < (size_t)(i + half) * q->k; c++) {
                double a = v[c], b = v[c + (size_t)half * q->k];
                v[c] = a + b;
                v[c + (size_t)half * q->k] = a - b;
            }
}

/* v <- v (I x B) or v (I x B^T) */
static void base(const lq_orthogonal *q, bool transposed, double *v, double *scratch) {
    uint32_t k = q->k;
    for (uint32_t part = 0; part < q->p; part++) {
        double *x = v + (size_t)part * k;
        memset(scratch, 0, k * sizeof *scratch);
        for (uint32_t i = 0; i < k; i++)
            for (uint32_t j = 0; j < k; j++) scratch[j] += x[i] * q->base[transposed ? (size_t)j * k + i : (size_t)i * k + j];
        memcpy(x, scratch, k * sizeof *x);
    }
}

void lq_orthogonal_apply(const lq_orthogonal *q, double *v, double *scratch) {
    for (uint32_t i = 0; i < q->n; i++) v[i] *= q->sign[i];
    base(q, false, v, scratch);
    sylvester(q, v);
}

void lq_orthogonal_undo(const lq_orthogonal *q, double *v, double *scratch) {
    sylvester(q, v);
    base(q, true, v, scratch);
    for (uint32_t i = 0; i < q->n; i++) v[i] *= q->sign[i];
}

void lq_orthogonal_free(lq_orthogonal *q) {
    lq_free(q->base);
    lq_free(q->sign);
    *q = (lq_orthogonal){0};
}
