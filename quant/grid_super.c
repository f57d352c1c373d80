/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Tiles whose scales (and minima) are small integers under F16 superscales, as in ggml's blocks of 256:
 *
 *   w = (d S_j) a - (dmin M_j)     S_j, M_j: what tile j stores; d, dmin: one for `span` tiles
 *
 * First every tile gets the scale and minimum it would have with real numbers (grid_search.c). Then, by the error of the weights
 * themselves: d among those that put the largest scale at the end of its range or a few steps below, dmin likewise; each S_j and M_j moved by
 * one while that helps; d and dmin by least squares for the codes so found; and again. Every number is judged as it will be stored, and
 * min-max is the first candidate, so nothing worse comes out. ggml's make_qkx3_quants and make_qp_quants solve the same problem in the same
 * stages with errors of scales in place of errors of weights.
 *
 * LANES tiles are judged at once; a superblock is 8 or 16 of them. */
#include "quant/grid_tile.h"

#include "core/num.h"

#include <string.h>

enum { STEPS = 8, ROUNDS = 3, MOVES = 4 };

typedef struct state {       /* of LANES tiles, superblock by superblock */
    int s[LANES], m[LANES];
    uint16_t d[LANES], dmin[LANES]; /* F16, [superblock] */
    double e[LANES];         /* [superblock] */
} state;

typedef struct super {
    const lq_tile *t;
    uint32_t span, count;    /* tiles of a superblock, superblocks */
    int low, top, min_top;   /* what an S and an M may be */
    bool mins, zero_ok;      /* a scale of 0 is needed for zeros: no value of the grid is 0 */
    float loose[LANES], loose_min[LANES]; /* a tile of zeros: 0 */
    double h[LANES], hw[LANES];
    double lane[LANES];      /* error of each tile as judged last */
    lq_tile_sums sums;
} super;

static uint16_t half_of(float v) {
    float a = fabsf(v);
    a = a < 0x1p-24f ? 0x1p-24f : a > 65504 ? 65504 : a;
    return lq_f32_f16(v < 0 ? -a : a);
}

static int clampi(int v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : v; }

static int nearest_step(float v, float step, int lo, int hi) {
    float x = v / step;
    return !(x > (float)lo) ? lo : x >= (float)hi ? hi : (int)rintf(x); /* 0/0 goes to lo */
}

static lq_tile_guess guess_of(const super *z, const state *s) {
    lq_tile_guess g;
    for (uint32_t l = 0; l < LANES; l++) {
        uint32_t b = l / z->span < z->count ? l / z->span : 0;
        g.scale[l] = (float)s->s[l] * lq_f16_f32(s->d[b]);
        g.zero[l] = z->mins && s->s[l] ? (float)s->m[l] * lq_f16_f32(s->dmin[b]) / g.scale[l] : 0;
        if (!s->s[l]) g.scale[l] = 1; /* judged apart */
    }
    return g;
}

/* Errors of the tiles and of their superblocks. A scale of 0 is only ever that of a tile of zeros. */
static void judge(super *z, state *s) {
    lq_tile_guess g = guess_of(z, s);
    lq_tile_judge(z->t, &g, &z->sums);
    for (uint32_t b = 0; b < z->count; b++) {
        s->e[b] = 0;
        for (uint32_t l = b * z->span; l < (b + 1) * z->span; l++) {
            z->lane[l] = s->s[l] ? z->sums.e[l] : 0;
            s->e[b] += z->lane[l];
        }
    }
}

/* Superblocks of `from` that are better replace those of `best`. */
static void keep(const super *z, const state *from, state *best) {
    for (uint32_t b = 0; b < z->count; b++) {
        if (!(from->e[b] < best->e[b])) continue;
        memcpy(best->s + b * z->span, from->s + b * z->span, z->span * sizeof *best->s);
        memcpy(best->m + b * z->span, from->m + b * z->span, z->span * sizeof *best->m);
        best->d[b] = from->d[b];
        best->dmin[b] = from->dmin[b];
        best->e[b] = from->e[b];
    }
}

/* The S of a real scale under d: never 0 for a tile that is not, and of the sign of the scale. */
static int step_of(const super *z, float scale, float d) {
    if (scale == 0) return z->zero_ok ? 0 : 1;
    int v = nearest_step(scale, d, z->low, z->top);
    return v ? v : (scale < 0) != (d < 0) && z->low < 0 ? -1 : 1;
}

/* Scale of largest magnitude of a superblock; 0: all tiles are zeros. */
static float extreme(const super *z, const float *v, uint32_t b) {
    float most = 0;
    for (uint32_t l = b * z->span; l < (b + 1) * z->span; l++)
        if (fabsf(v[l]) > fabsf(most)) most = v[l];
    return most;
}

static void set_scales(const super *z, state *s, uint32_t b, float d) {
    s->d[b] = half_of(d);
    for (uint32_t l = b * z->span; l < (b + 1) * z->span; l++) s->s[l] = step_of(z, z->loose[l], lq_f16_f32(s->d[b]));
}

static void set_mins(const super *z, state *s, uint32_t b, float dmin) {
    s->dmin[b] = dmin > 0 ? half_of(dmin) : 0;
    for (uint32_t l = b * z->span; l < (b + 1) * z->span; l++) s->m[l] = dmin > 0 ? nearest_step(z->loose_min[l], lq_f16_f32(s->dmin[b]), 0, z->min_top) : 0;
}

/* Superblock b by the plain rule: the largest at the end of its range. Signed scales found with either sign use the longer side. */
static void plain(const super *z, state *s, uint32_t b, int below) {
    float most = extreme(z, z->loose, b), end = (float)(z->top - below);
    if (z->low < 0 && z->t->how == LQ_FIT_SEARCH_SIGNED) end = (float)(z->low + below);
    set_scales(z, s, b, most == 0 ? 1 : most / end);
    if (z->mins) set_mins(z, s, b, extreme(z, z->loose_min, b) / (float)z->min_top);
}

static void try_supers(super *z, state *best) {
    state s = *best;
    for (int k = 0; k < STEPS; k++) {
        for (uint32_t b = 0; b < z->count; b++) plain(z, &s, b, k < z->top / 2 ? k : 0);
        judge(z, &s);
        keep(z, &s, best);
    }
    for (int k = 1; k < STEPS && z->mins; k++) {
        s = *best;
        for (uint32_t b = 0; b < z->count; b++) set_mins(z, &s, b, extreme(z, z->loose_min, b) / (float)(z->min_top - (k < z->min_top / 2 ? k : 0)));
        judge(z, &s);
        keep(z, &s, best);
    }
}

static int moved_scale(const super *z, int s, int by) {
    int v = clampi(s + by, z->low, z->top);
    return !s || !v || (z->t->how != LQ_FIT_SEARCH_SIGNED && v < 1) ? s : v;
}

/* Every S and M one step on, where the tile's own error falls; `far`: fine scales alone (8 bits) more steps, the error has many bottoms. */
static bool move(super *z, state *best, bool far) {
    static const int near_s[] = {1, -1, 0, 0, 1, -1, 1, -1}, near_m[] = {0, 0, 1, -1, 1, -1, -1, 1};
    static const int far_s[] = {1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8, -8};
    bool any = false;
    state from = *best;
    double e[LANES];
    judge(z, best);
    memcpy(e, z->lane, sizeof e);
    for (int k = 0; k < (far ? 16 : z->mins ? 8 : 2); k++) {
        state s = far ? from : *best;
        for (uint32_t l = 0; l < z->count * z->span; l++) {
            s.s[l] = moved_scale(z, s.s[l], far ? far_s[k] : near_s[k]);
            s.m[l] = s.dmin[l / z->span] ? clampi(s.m[l] + (far ? 0 : near_m[k]), 0, z->min_top) : 0;
        }
        judge(z, &s);
        for (uint32_t l = 0; l < z->count * z->span; l++) {
            if (!(z->lane[l] < e[l])) continue;
            best->s[l] = s.s[l];
            best->m[l] = s.m[l];
            best->e[l / z->span] -= e[l] - z->lane[l];
            e[l] = z->lane[l];
            any = true;
        }
    }
    return any;
}

/* d and dmin at the bottom of the error of the codes judged last. */
static void solve(const super *z, state *s, const lq_tile_guess *g, uint32_t b) {
    double dd = 0, dm = 0, mm = 0, dw = 0, mw = 0;
    for (uint32_t l = b * z->span; l < (b + 1) * z->span; l++) {
        if (!s->s[l]) continue;
        double zero = g->zero[l], S = s->s[l], M = s->m[l], q = z->sums.a[l] + zero * z->h[l]; /* sums over codes without their zero */
        dd += S * S * (z->sums.aa[l] + 2 * zero * z->sums.a[l] + zero * zero * z->h[l]);
        dw += S * (z->sums.wa[l] + zero * z->hw[l]);
        dm += S * M * q;
        mm += M * M * z->h[l];
        mw += M * z->hw[l];
    }
    double det = dd * mm - dm * dm;
    if (!(dd > 0)) return;
    if (z->mins && det > 1e-9 * dd * mm) { /* w = d (S q) - dmin M */
        double d = (dw * mm - dm * mw) / det, m = (dm * dw - dd * mw) / det;
        if (d > 0 && m > 0) {
            s->d[b] = half_of((float)d);
            s->dmin[b] = half_of((float)m);
            return;
        }
    }
    double d = (dw + (z->mins ? (double)lq_f16_f32(s->dmin[b]) * dm : 0)) / dd;
    if (z->t->how == LQ_FIT_SEARCH_SIGNED && z->low < 0 ? d != 0 : d > 0) s->d[b] = half_of((float)d);
}

static void refit(super *z, state *best) {
    state s = *best;
    judge(z, &s);
    lq_tile_guess g = guess_of(z, &s);
    for (uint32_t b = 0; b < z->count; b++) solve(z, &s, &g, b);
    judge(z, &s);
    keep(z, &s, best);
}

static void loosen(super *z) {
    lq_tile_guess g;
    lq_tile_stats v;
    lq_tile_measure(z->t, &v);
    lq_tile_fit(z->t, &g);
    for (int l = 0; l < LANES; l++) {
        bool zeros = v.lo[l] == 0 && v.hi[l] == 0;
        z->loose[l] = zeros ? 0 : g.scale[l];
        z->loose_min[l] = zeros || !z->mins ? 0 : g.scale[l] * g.zero[l];
        z->h[l] = v.h[l];
        z->hw[l] = v.hw[l];
    }
}

static void store(const super *z, lq_qtensor *q, const state *s) {
    size_t first = z->t->first;
    for (uint32_t l = 0; l < z->count * z->span; l++) {
        ((uint8_t *)q->scale.v)[first + l] = (uint8_t)s->s[l];
        if (z->mins) ((uint8_t *)q->zero.v)[first + l] = (uint8_t)s->m[l];
    }
    for (uint32_t b = 0; b < z->count; b++) {
        ((uint16_t *)q->scale.parent)[first / z->span + b] = s->d[b];
        if (z->mins) ((uint16_t *)q->zero.parent)[first / z->span + b] = s->dmin[b];
    }
}

void lq_super_fit(const lq_tile *t, lq_qtensor *q, uint32_t lanes) {
    const lq_plane_desc *d = &t->s->scale;
    int range = 1 << (d->sig ? d->sig : 8);
    lq_tile plain_tile = *t;
    super z = {.t = t, .span = d->span, .count = lanes / d->span, .mins = t->s->zero_kind == LQ_ZERO_MIN, .zero_ok = t->s->grid.kind == LQ_GRID_LUT};
    state best = {.e = {0}};
    z.low = d->dtype == LQ_I8 ? -range / 2 : 0;
    z.top = z.low + range - 1;
    z.min_top = z.mins ? (1 << (t->s->zero.sig ? t->s->zero.sig : 8)) - 1 : 0;
    plain_tile.how = LQ_FIT_MINMAX;
    z.t = &plain_tile;
    loosen(&z);
    for (uint32_t b = 0; b < z.count; b++) plain(&z, &best, b, 0);
    judge(&z, &best);
    z.t = t;
    if (t->how != LQ_FIT_MINMAX) {
        loosen(&z);
        try_supers(&z, &best);
        for (int k = 0; k < ROUNDS; k++) {
            if (!z.mins && range > 128) move(&z, &best, true);
            for (int i = 0; i < MOVES && move(&z, &best, false); i++) {}
            refit(&z, &best);
        }
    }
    store(&z, q, &best);
}
