/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Nearest code on every grid of core/qtensor.h and the search for scales and zero points: one fitter and one rounder for all
 * methods; pure. lq_grid_accept says which schemes.
 *
 * Schemes: integers of 1 to 8 bits (symmetric, integer zero, real zero), ternary, E2M1 E3M2 E4M3 E5M2, tables of at most 16 values,
 * tables of a row's own without scales, and the float grids, which only round. Scale planes: F32 F16 BF16 of any tile (groups, rows, the tensor, blocks of rows and
 * columns, runs of the flattened matrix), E8M0, E4M3 under one F32, 8-bit tables under F32 (double quantization), and bytes
 * under F16 with or without minima (ggml's blocks of 256). */
#ifndef LQ_GRID_H
#define LQ_GRID_H
#include "core/cpu.h"
#include "core/qtensor.h"

typedef enum lq_fit {
    LQ_FIT_MINMAX,        /* the field's: INT sym 2 max|w| / (2^b - 1), asym the range widened to hold 0; ternary and sign mean|w| (BitNet
                           * b1.58, XNOR-Net); floats and tables max|w| on the largest value; E8M0 2^(floor(log2 max|w|) - 2) (OCP MX 1.0) */
    LQ_FIT_SEARCH,        /* scales (and zeros) that minimise the weighted squared error; scales positive */
    LQ_FIT_SEARCH_SIGNED, /* the same, and a scale may be negative where the grid is longer on one side and the plane has a sign */
} lq_fit;

/* LQ_OK, or LQ_ERR_UNSUPPORTED saying what this fitter cannot do with the scheme on a matrix of this width. Sparse values, kept
 * columns and low rank are not its business: it fits the codes to the weights it is given. */
lq_status lq_grid_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t cols);
/* Before the fit, for a scale plane under one parent (NVFP4): max|w| of all matrices that share the parent; 0: only this one. The parent
 * is the power of two above max|w| / (6 * 448): exact whether a checkpoint stores it or its reciprocal. */
void lq_grid_fuse(lq_qtensor *q, float absmax);
/* Scale (and zero) planes of q from w[rows][cols]: min-max, or a search that minimises the h-weighted squared error (h[cols],
 * NULL: all one) with a closed-form refit. Scales are rounded to the plane's type before they are judged, are never zero (but for a
 * tile of zeros on a grid without zero) or subnormal, and the result is never worse than min-max in that measure. A plane under 8-bit tables gets its table (in q's
 * arena), its offset and its parents; tables of a row's own are fitted by exact k-means (kmeans.h). algorithms.md 0.1, 0.2, 9, 11, 26 D. Parallel over tiles, same bits at any thread count.
 * Errors: UNSUPPORTED as accept, FORMAT when a weight is not finite, RESOURCE. */
lq_status lq_grid_fit(lq_ctx *ctx, lq_qtensor *q, const float *w, const float *h, lq_fit how);
/* All codes of q by rounding w to its planes. Parallel over rows. */
void lq_grid_round(lq_qtensor *q, const float *w);

LQ_LANE static inline float lq_nearest_whole(float x) { return (x + 12582912.0f) - 12582912.0f; } /* half to even, |x| < 2^22 */

/* ---- one weight; not for tables of a method's own values ---- */

/* Code of w under the scale and zero of its tile. INT: w/scale + zero to nearest even, clamped; E2M1 ... E5M2: w/scale to nearest even,
 * saturating; tables: nearest to w * (1/scale), a tie goes down, as bitsandbytes does. A zero always has the code of +0. */
uint32_t lq_grid_code(const lq_scheme *s, float w, float scale, float zero);
/* Weight of a code under the scale and zero of its tile. */
float lq_grid_weight(const lq_scheme *s, uint32_t code, float scale, float zero);

/* ---- LQ_LANES weights at once: what loops round with ---- */

enum { LQ_LANES = 16, LQ_GRID_TABLE = 16 };
typedef struct lq_rounder {
    lq_grid grid;
    lq_zero_kind zero_kind;
    bool real_zero;
    float top;                                   /* INT: largest code */
    uint32_t n;                                  /* table: values, ascending, no value twice */
    float edge[LQ_GRID_TABLE][LQ_LANES];         /* table: above edge[i] value i is nearer than value i - 1 */
    float value[LQ_GRID_TABLE][LQ_LANES];
    uint32_t code[LQ_GRID_TABLE][LQ_LANES];
    uint8_t half[512];                           /* LQ_LUT_IQ4: code of x with ceil(2 x) = i - 256; its edges are halves */
} lq_rounder;
/* Lane l rounds weights of row `row` + l * step (tables per row; rows beyond the last repeat it). */
void lq_rounder_init(lq_rounder *r, const lq_qtensor *q, uint32_t row, uint32_t step);
/* code[LQ_LANES], value[LQ_LANES] (the decoded weight) of x[LQ_LANES]; zero is read only when the scheme has one. */
void lq_round_lanes(const lq_rounder *r, const float *x, const float *scale, const float *zero, uint32_t *code, float *value);
/* For float and table grids: a[LQ_LANES] = A(nearest code) of weights already divided by their scale; code may be NULL. */
void lq_round_unit(const lq_rounder *r, const float *x, uint32_t *code, float *a);
/* Largest |A| of the scheme's grid and fixed table: 448, 6, 1 ...; 0 for tables of a method's own. */
float lq_grid_top(const lq_scheme *s);
#endif
