/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Nearest code on a grid and the search for scales and zero points: one fitter for all methods; pure. */
#ifndef LQ_GRID_H
#define LQ_GRID_H
#include "core/qtensor.h"

typedef enum lq_fit { LQ_FIT_MINMAX, LQ_FIT_SEARCH } lq_fit;
/* Scale (and zero) planes of q from w[rows][cols]: min-max as the field does it, or a search that minimises the h-weighted
 * squared error (h[cols], NULL: all one) with a closed-form refit; values are rounded to the planes' types before they are
 * judged. Never worse than min-max in that measure. algorithms.md 0.1, 0.2, 26 D. Parallel over rows. */
void lq_grid_fit(lq_qtensor *q, const float *w, const float *h, lq_fit how);
/* Code of w under the scale and zero of its tile: round to nearest even, clamped to the grid. */
uint32_t lq_grid_code(const lq_scheme *s, float w, float scale, float zero);
float lq_grid_value(const lq_scheme *s, uint32_t code, float scale, float zero);
/* All codes of q by rounding w to its planes. */
void lq_grid_round(lq_qtensor *q, const float *w);
#endif
