/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Matrix products: Y = X W^T and Y = A B. The split into tiles follows from the shape alone, each tile is one
 * single-threaded call, so the bits do not depend on the thread count. */
#include "kernels/linalg.h"

#include "core/thread.h"
#include "kernels/blas.h"

#include <pthread.h>

static void hold_to_one(void) { openblas_set_num_threads(1); }

void lq_blas_single(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, hold_to_one);
}

void lq_gemm_nt(const float *x, size_t ldx, const float *w, size_t ldw, float *y, size_t ldy, uint32_t n, uint32_t rows,
                uint32_t cols, bool accumulate) {
    if (!n || !rows) return;
    lq_blas_single();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)n, (blasint)rows, (blasint)cols, 1, x, (blasint)ldx, w,
                (blasint)ldw, accumulate ? 1 : 0, y, (blasint)ldy);
}

void lq_gemm_nn(const float *a, size_t lda, const float *b, size_t ldb, float *y, size_t ldy, uint32_t n, uint32_t m,
                uint32_t k, float alpha, bool accumulate) {
    if (!n || !m) return;
    lq_blas_single();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)n, (blasint)m, (blasint)k, alpha, a, (blasint)lda, b,
                (blasint)ldb, accumulate ? 1 : 0, y, (blasint)ldy);
}

typedef struct product {
    const float *x, *w;
    float *y;
    size_t ldx, ldw, ldy;
    uint32_t n, rows, cols, tile_n, tile_rows, across; /* across: tiles along rows */
} product;

static void product_tile(void *arg, size_t i) {
    const product *p = arg;
    uint32_t n0 = (uint32_t)(i / p->across) * p->tile_n, r0 = (uint32_t)(i % p->across) * p->tile_rows;
    uint32_t n = p->n - n0 < p->tile_n ? p->n - n0 : p->tile_n;
    uint32_t rows = p->rows - r0 < p->tile_rows ? p->rows - r0 : p->tile_rows;
    lq_gemm_nt(p->x + n0 * p->ldx, p->ldx, p->w + r0 * p->ldw, p->ldw, p->y + n0 * p->ldy + r0, p->ldy, n, rows, p->cols,
               false);
}

enum { WORTH_WAKING = 1 << 20 }; /* multiply-adds: about 20 us of one core */

static uint32_t parts(uint32_t size, uint32_t tile) { return (size + tile - 1) / tile; }

/* Near `want`, all tiles alike up to a multiple of 16: no thin last one. */
static uint32_t even(uint32_t size, uint32_t want) {
    uint32_t n = parts(size, want);
    return (parts(size, n) + 15) / 16 * 16;
}

/* Large tiles repack least (512 x 512 keeps 93-96 % of the rate of one call), small ones feed more cores: halve the longer
 * side until there are ENOUGH tasks or the sides reach SMALL. */
static void choose_tiles(product *p) {
    enum { LARGE = 512, SMALL = 256, ENOUGH = 8 };
    p->tile_n = even(p->n, LARGE);
    p->tile_rows = even(p->rows, LARGE);
    while ((size_t)parts(p->n, p->tile_n) * parts(p->rows, p->tile_rows) < ENOUGH &&
           (p->tile_n > SMALL || p->tile_rows > SMALL)) {
        if (p->tile_rows >= p->tile_n) p->tile_rows = even(p->tile_rows, parts(p->tile_rows, 2));
        else p->tile_n = even(p->tile_n, parts(p->tile_n, 2));
    }
    p->across = parts(p->rows, p->tile_rows);
}

void lq_matmul(const float *x, size_t ldx, const float *w, size_t ldw, float *y, size_t ldy, uint32_t n,
               uint32_t rows, uint32_t cols) {
    if (!n || !rows) return;
    lq_blas_single();
    product p = {.x = x, .w = w, .y = y, .ldx = ldx, .ldw = ldw, .ldy = ldy, .n = n, .rows = rows, .cols = cols};
    choose_tiles(&p);
    size_t tiles = (size_t)p.across * parts(n, p.tile_n);
    if ((double)n * rows * cols >= WORTH_WAKING) lq_parallel_for(tiles, product_tile, &p);
    else
        for (size_t i = 0; i < tiles; i++) product_tile(&p, i);
}
