/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* LANES tiles (weights that share one scale) side by side: what the fitter (grid.c) hands to the search (grid_search.c). */
#ifndef LQ_GRID_TILE_H
#define LQ_GRID_TILE_H
#include "quant/grid.h"

enum { LANES = LQ_LANES };

typedef struct lq_tile_guess { float scale[LANES], zero[LANES]; } lq_tile_guess; /* zero in codes: a minimum (LQ_ZERO_MIN) is scale * zero */
typedef struct lq_tile_sums { double e[LANES], wa[LANES], aa[LANES], a[LANES]; } lq_tile_sums; /* weighted: error, w a, a^2, a */
/* of the weights alone: range with 0 in it, largest and smallest value, sums of |w| (unweighted), h w, h; number of weights */
typedef struct lq_tile_stats { float lo[LANES], hi[LANES], least[LANES], most[LANES]; double mass[LANES], hw[LANES], h[LANES], n[LANES]; } lq_tile_stats;

typedef struct lq_tile {
    const float *w, *h;          /* [n][LANES]; lanes that are shorter end in weights 0 of weight 0 */
    uint32_t n;
    uint32_t count[LANES];       /* weights of each lane */
    const lq_scheme *s;
    const lq_rounder *r;
    const lq_plane *plane;       /* scales */
    size_t first;                /* plane element of lane 0; lane l: first + l */
    bool rounded;                /* scales as the plane will store them; false: two-level planes before their parents are known */
    float least;                 /* smallest scale the plane may get: F16 scales of ggml's blocks may be subnormal */
    lq_fit how;
    /* One tile too large to copy: all lanes are parts of it. judge and gather walk it in parallel and every lane gets the total. */
    void *wide;
    void (*judge)(void *wide, const struct lq_tile *, const lq_tile_guess *, lq_tile_sums *);
    void (*gather)(void *wide, const struct lq_tile *, lq_tile_stats *);
} lq_tile;

/* A usable scale as the plane's element i will give it back: finite, not zero, not subnormal, sign kept where the plane has one. */
float lq_tile_stored(const lq_tile *t, size_t i, float scale);
void lq_tile_judge(const lq_tile *t, const lq_tile_guess *g, lq_tile_sums *out);  /* of w[n], h[n] as they lie there */
void lq_tile_measure(const lq_tile *t, lq_tile_stats *out);                       /* the same */
void lq_tile_fit(const lq_tile *t, lq_tile_guess *g);
/* LANES or fewer tiles of whole spans of a plane of bytes under F16 (and of its minima): everything stored. grid_super.c */
void lq_super_fit(const lq_tile *t, lq_qtensor *q, uint32_t lanes);
#endif
