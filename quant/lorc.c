/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* With M = E R, H = R R^T (plain: R = 1), the best A B has A B R = the leading singular part of M. The singular vectors come from
 * the smaller of M M^T and M^T M:
 *
 *   rows <= cols   U of M M^T:  A = U,    B = U^T E
 *   else           V of M^T M:  A = M V,  B = V^T R^-1 */
#include "quant/lorc.h"

#include "core/num.h"
#include "core/thread.h"
#include "kernels/kernels.h"

#include <string.h>

enum { SLICE = 32 };

typedef struct work {
    uint32_t rows, cols, side, rank;
    double *e, *m, *t, *r;       /* [rows][cols], [rows][cols], its transpose, [cols][cols] or NULL */
    double *a, *b;               /* [rank][rows], [rank][cols] */
    double *gram, *values, *vectors, *space; /* [side][side], [side], [rank][side], dsyevr's */
    int32_t *ints;
} work;

static void product_slice(void *arg, size_t i) { /* m = e r */
    const work *j = arg;
    uint32_t r0 = (uint32_t)i * SLICE, n = j->rows - r0 < SLICE ? j->rows - r0 : SLICE;
    lq_dgemm_nn(j->e + (size_t)r0 * j->cols, j->r, j->m + (size_t)r0 * j->cols, n, j->cols, j->cols);
}

enum { TILE = 64 };
static void turn_tile(void *arg, size_t i) { /* t = m^T, TILE rows of m */
    const work *j = arg;
    uint32_t r0 = (uint32_t)i * TILE, r1 = j->rows - r0 < TILE ? j->rows : r0 + TILE;
    for (uint32_t c0 = 0; c0 < j->cols; c0 += TILE)
        for (uint32_t r = r0; r < r1; r++)
            for (uint32_t c = c0; c < j->cols && c < c0 + TILE; c++) j->t[(size_t)c * j->rows + r] = j->m[(size_t)r * j->cols + c];
}

static void gram_slice(void *arg, size_t i) { /* m m^T, or m^T m */
    const work *j = arg;
    bool tall = j->rows > j->cols;
    uint32_t r0 = (uint32_t)i * SLICE, n = j->side - r0 < SLICE ? j->side - r0 : SLICE, inner = tall ? j->rows : j->cols;
    lq_dgemm_nn((tall ? j->t : j->m) + (size_t)r0 * inner, tall ? j->m : j->t, j->gram + (size_t)r0 * j->side, n, j->side, inner);
}

static lq_status factor(lq_ctx *ctx, work *j, const lq_weights *w, const lq_gram *gram) {
    double mean = 0;
    uint32_t k = j->cols, bad;
    lq_gram_full(gram, j->r);
    for (uint32_t c = 0; c < k; c++) mean += j->r[(size_t)c * k + c] / k;
    for (uint32_t c = 0; c < k; c++) j->r[(size_t)c * k + c] += 0.01 * mean + 1e-30;
    if (lq_cholesky_upper(j->r, k, &bad)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_QUALITY, "%s: the Gram matrix has no factor", w->name);
}

enum { SOME = 8 };
/* a[rank][rows] and b[rank][cols], a component a row, before they are balanced: one is the vectors themselves. */
static void component_slice(void *arg, size_t i) {
    const work *j = arg;
    uint32_t first = (uint32_t)i * SOME, n = j->rank - first < SOME ? j->rank - first : SOME;
    const double *v = j->vectors + (size_t)first * j->side;
    double *a = j->a + (size_t)first * j->rows, *b = j->b + (size_t)first * j->cols;
    if (j->rows <= j->cols) {
        memcpy(a, v, (size_t)n * j->rows * sizeof *a);
        lq_dgemm_nn(v, j->e, b, n, j->cols, j->rows);
        return;
    }
    lq_dgemm_nn(v, j->t, a, n, j->rows, j->cols);
    memcpy(b, v, (size_t)n * j->cols * sizeof *b);
    if (j->r) lq_cholesky_solve_half(j->r, j->cols, b, n);
}

static double norm(const double *v, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += v[i] * v[i];
    return sqrt(sum);
}

static void store(const work *j, lq_qtensor *q) {
    for (uint32_t i = 0; i < j->rank; i++) {
        const double *a = j->a + (size_t)i * j->rows, *b = j->b + (size_t)i * j->cols;
        double na = norm(a, j->rows), nb = norm(b, j->cols), f = na > 0 && nb > 0 ? sqrt(nb / na) : 0;
        for (uint32_t r = 0; r < j->rows; r++) q->lr.a[(size_t)r * q->sch.rank + i] = lq_f32_f16((float)(f * a[r]));
        for (uint32_t c = 0; c < j->cols; c++) q->lr.b[(size_t)i * j->cols + c] = lq_f32_f16(f > 0 ? (float)(b[c] / f) : 0);
    }
}

/* The error of the codes alone. */
static void take_error(const work *j, const lq_weights *w, const lq_qtensor *q, float *row) {
    lq_qtensor bare = *q;
    bare.sch.extra &= ~(uint32_t)LQ_X_LOWRANK;
    for (uint32_t r = 0; r < j->rows; r++) {
        lq_qtensor_decode_row(&bare, r, row);
        for (uint32_t c = 0; c < j->cols; c++) j->e[(size_t)r * j->cols + c] = (double)w->w[(size_t)r * j->cols + c] - (double)row[c];
    }
}

static lq_status work_init(lq_ctx *ctx, work *j, bool weighted) {
    size_t n = (size_t)j->rows * j->cols, side = j->side;
    bool ok = (j->e = LQ_NEWN(double, n)) && (j->t = LQ_NEWN(double, n)) && (j->a = LQ_NEWN(double, (size_t)j->rank * j->rows)) && (j->b = LQ_NEWN(double, (size_t)j->rank * j->cols)) &&
              (j->gram = LQ_NEWN(double, side * side)) && (j->values = LQ_NEWN(double, side)) &&
              (j->vectors = LQ_NEWN(double, side * j->rank)) && (j->space = LQ_NEWN(double, side * LQ_EIGEN_WORK)) && (j->ints = LQ_NEWN(int32_t, side * 12));
    j->m = j->e;
    if (ok && weighted) ok = (j->r = LQ_NEWN(double, (size_t)j->cols * j->cols)) && (j->m = LQ_NEWN(double, n));
    return ok ? LQ_OK : lq_oom(ctx, n * 16);
}

static void work_free(work *j) {
    if (j->m != j->e) lq_free(j->m);
    lq_free(j->e);
    lq_free(j->t);
    lq_free(j->a);
    lq_free(j->b);
    lq_free(j->r);
    lq_free(j->gram);
    lq_free(j->values);
    lq_free(j->vectors);
    lq_free(j->space);
    lq_free(j->ints);
}

lq_status lq_lorc_fit(lq_ctx *ctx, const lq_weights *w, const lq_gram *gram, lq_qtensor *q) {
    work j = {.rows = w->rows, .cols = w->cols, .side = w->rows <= w->cols ? w->rows : w->cols, .rank = q->sch.rank};
    lq_status st = LQ_OK;
    float *row = LQ_NEWN(float, w->cols);
    bool weighted = gram && gram->n;
    if (j.rank > j.side) j.rank = j.side; /* the rest of A and B stays zero */
    if (!row) LQ_GO(lq_oom(ctx, w->cols * 4));
    LQ_GO(work_init(ctx, &j, weighted));
    take_error(&j, w, q, row);
    if (weighted) {
        LQ_GO(factor(ctx, &j, w, gram));
        lq_parallel_for((w->rows + SLICE - 1) / SLICE, product_slice, &j);
    }
    lq_parallel_for((j.rows + TILE - 1) / TILE, turn_tile, &j);
    lq_parallel_for((j.side + SLICE - 1) / SLICE, gram_slice, &j);
    if (!lq_eigen_top(j.gram, j.side, j.rank, j.values, j.vectors, j.space, j.ints)) LQ_GO(lq_fail(ctx, LQ_ERR_QUALITY, "%s: its error has no singular vectors", w->name));
    lq_parallel_for((j.rank + SOME - 1) / SOME, component_slice, &j);
    store(&j, q);
done:
    work_free(&j);
    lq_free(row);
    return st;
}
