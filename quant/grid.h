/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Nearest code on a grid and the search for scales and zero points: one fitter for all methods; pure. Uniform integer grids
 * with one final (parentless) scale per row and run of columns; lq_grid_accept says which. */
#ifndef LQ_GRID_H
#define LQ_GRID_H
#include "core/qtensor.h"

typedef enum lq_fit {
    LQ_FIT_MINMAX,        /* the field's: sym 2 max|w| / (2^b - 1); asym the range widened to hold 0 */
    LQ_FIT_SEARCH,        /* scales (and zeros) that minimise the weighted squared error; scales positive */
    LQ_FIT_SEARCH_SIGNED, /* the same, and a symmetric scale may be negative so that the longer side gets the extra code */
} lq_fit;

/* LQ_OK, or LQ_ERR_UNSUPPORTED saying what this fitter cannot do with the scheme on a matrix of this width. */
lq_status lq_grid_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t cols);
/* Scale (and zero) planes of q from w[rows][cols]: min-max, or a search that minimises the h-weighted squared error (h[cols],
 * NULL: all one) with a closed-form refit. Scales are rounded to the plane's type before they are judged, are never zero or
 * subnormal, and the result is never worse than min-max in that measure. algorithms.md 0.1, 0.2, 26 D. Parallel over rows,
 * same bits at any thread count. LQ_ERR_RESOURCE: out of memory. */
lq_status lq_grid_fit(lq_ctx *ctx, lq_qtensor *q, const float *w, const float *h, lq_fit how);
/* Code of w under the scale and zero of its tile: w/scale rounded to nearest even, clamped to the grid. */
uint32_t lq_grid_code(const lq_scheme *s, float w, float scale, float zero);
/* Weight of a code under the scale and zero of its tile. */
float lq_grid_weight(const lq_scheme *s, uint32_t code, float scale, float zero);
/* All codes of q by rounding w to its planes. Parallel over rows. */
void lq_grid_round(lq_qtensor *q, const float *w);
#endif
