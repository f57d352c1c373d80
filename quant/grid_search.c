/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Scale (and zero) of a tile: value = s a, a = A(q) - z.
 *
 * The search minimises E(s, z) = sum_i h_i (s a_i - w_i)^2 over a grid of scales. For fixed codes E is a parabola in s with its
 * bottom at s* = sum h w a / sum h a^2: every candidate proposes its s*, and the best proposals are judged after rounding to the
 * stored type. With a real zero the bottom is that of the weighted least squares of w on (q, 1). algorithms.md 0.1, 0.2, 26 D;
 * min-max: formats.md 2.3.
 *
 * LANES tiles are judged at once: the loop over lanes is what the compiler vectorises, and the order of every sum stays the
 * order of the weights whatever the vector width. */
#include "quant/grid_tile.h"

#include "core/num.h"

enum { CHUNK = 64, GRID_POINTS = 40, REFITS = 3 };

static bool is_int(const lq_scheme *s) { return s->grid.kind == LQ_GRID_INT; }
static bool is_ternary(const lq_scheme *s) { return is_int(s) && s->grid.bits == 2 && s->grid.bias == 1; }
static bool is_quad(const lq_scheme *s) { return s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_QUAD; }
static bool is_sign(const lq_scheme *s) { return s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_SIGN; }
static bool has_min(const lq_scheme *s) { return s->zero_kind == LQ_ZERO_MIN; }
static bool real_zero(const lq_scheme *s) { return has_min(s) || (s->zero_kind == LQ_ZERO_CODE && s->zero.dtype != LQ_U8); }
static bool below_zero(const lq_scheme *s) { return !(has_min(s) && s->zero.dtype == LQ_U8); } /* may a zero be negative? */
static bool whole_zero(const lq_scheme *s) { return s->zero_kind == LQ_ZERO_CODE && s->zero.dtype == LQ_U8; }

static float clampf(float v, float lo, float hi) { return v > lo ? v < hi ? v : hi : lo; }

/* ---- what a plane can store ---- */

static float nearest_entry(const float *lut, float up, float offset, float v) { /* ascending table */
    uint32_t lo = 0, hi = 255;
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;
        if (lut[mid] * up + offset <= v) lo = mid;
        else hi = mid;
    }
    float a = lut[lo] * up + offset, b = lut[hi] * up + offset;
    return v - a <= b - v ? a : b;
}

float lq_tile_stored(const lq_tile *t, size_t i, float scale) {
    const lq_plane_desc *d = &t->s->scale;
    bool half = d->dtype == LQ_F16;
    float m = clampf(fabsf(scale), half ? t->least : 0x1p-126f, half ? 0x1.FEp15f : 0x1p127f);
    if (d->parent != LQ_NONE && !t->rounded) return scale < 0 && d->dtype == LQ_I8 ? -m : m;
    float up = d->parent == LQ_NONE ? 1 : ((const float *)t->plane->parent)[d->span ? i / d->span : 0];
    if (d->dtype == LQ_U8) return nearest_entry(t->plane->lut, up, t->plane->offset, m);
    if (d->dtype == LQ_E4M3) return lq_e4m3_f32(lq_f32_e4m3(clampf(m / up, 0x1p-9f, 448))) * up;
    if (d->dtype == LQ_E8M0) return lq_plane_round(d, m);
    return lq_plane_round(d, scale < 0 ? -m : m);
}

/* ---- judging ---- */

/* a, the value of the nearest code before scaling; for integers lo <= a <= lo + top */
LQ_CLONES static void judge_int(const lq_tile *t, const lq_tile_guess *g, lq_tile_sums *out) {
    float lo[LANES], hi[LANES];
    for (int l = 0; l < LANES; l++) {
        lo[l] = -(float)t->s->grid.bias - g->zero[l];
        hi[l] = lo[l] + t->r->top;
    }
    for (uint32_t c0 = 0; c0 < t->n; c0 += CHUNK) {
        uint32_t c1 = c0 + CHUNK < t->n ? c0 + CHUNK : t->n;
        float e[LANES] = {0}, wa[LANES] = {0}, aa[LANES] = {0}, sa[LANES] = {0};
        for (uint32_t c = c0; c < c1; c++) {
            const float *w = t->w + (size_t)c * LANES, *h = t->h + (size_t)c * LANES;
            for (int l = 0; l < LANES; l++) {
                float x = w[l] / g->scale[l];
                x = x > lo[l] ? x : lo[l];
                x = x < hi[l] ? x : hi[l];
                float a = lq_nearest_whole(x), d = w[l] - g->scale[l] * a, ha = h[l] * a;
                e[l] += h[l] * d * d;
                wa[l] += ha * w[l];
                aa[l] += ha * a;
                sa[l] += ha;
            }
        }
        for (int l = 0; l < LANES; l++) {
            out->e[l] += e[l];
            out->wa[l] += wa[l];
            out->aa[l] += aa[l];
            out->a[l] += sa[l];
        }
    }
}

/* Any other grid; a = value / scale is exact enough, but the error is that of the value. */
LQ_CLONES static void judge_any(const lq_tile *t, const lq_tile_guess *g, lq_tile_sums *out) {
    bool table = t->s->grid.kind == LQ_GRID_LUT, rz = real_zero(t->s);
    float inv[LANES];
    for (int l = 0; l < LANES; l++) inv[l] = 1 / g->scale[l];
    for (uint32_t c0 = 0; c0 < t->n; c0 += CHUNK) {
        uint32_t c1 = c0 + CHUNK < t->n ? c0 + CHUNK : t->n;
        float e[LANES] = {0}, wa[LANES] = {0}, aa[LANES] = {0}, sa[LANES] = {0};
        for (uint32_t c = c0; c < c1; c++) {
            const float *w = t->w + (size_t)c * LANES, *h = t->h + (size_t)c * LANES;
            float x[LANES], a[LANES];
            if (rz) {
                float lo = -(float)t->s->grid.bias, hi = lo + t->r->top;
                for (int l = 0; l < LANES; l++) {
                    float v = w[l] / g->scale[l] + g->zero[l];
                    v = v > lo ? v : lo;
                    v = v < hi ? v : hi;
                    a[l] = lq_nearest_whole(v) - g->zero[l];
                }
            } else {
                for (int l = 0; l < LANES; l++) x[l] = table ? w[l] * inv[l] : w[l] / g->scale[l];
                lq_round_unit(t->r, x, NULL, a);
            }
            for (int l = 0; l < LANES; l++) {
                float d = w[l] - g->scale[l] * a[l], ha = h[l] * a[l];
                e[l] += h[l] * d * d;
                wa[l] += ha * w[l];
                aa[l] += ha * a[l];
                sa[l] += ha;
            }
        }
        for (int l = 0; l < LANES; l++) {
            out->e[l] += e[l];
            out->wa[l] += wa[l];
            out->aa[l] += aa[l];
            out->a[l] += sa[l];
        }
    }
}

void lq_tile_judge(const lq_tile *t, const lq_tile_guess *g, lq_tile_sums *out) {
    *out = (lq_tile_sums){0};
    if (is_int(t->s) && !real_zero(t->s)) judge_int(t, g, out);
    else judge_any(t, g, out);
}

LQ_CLONES void lq_tile_measure(const lq_tile *t, lq_tile_stats *o) {
    *o = (lq_tile_stats){0};
    for (int l = 0; l < LANES; l++) {
        o->least[l] = HUGE_VALF;
        o->most[l] = -HUGE_VALF;
        o->n[l] = t->count[l];
    }
    for (uint32_t c = 0; c < t->n; c++)
        for (int l = 0; l < LANES; l++) {
            float w = t->w[(size_t)c * LANES + l], h = t->h[(size_t)c * LANES + l];
            bool in = c < t->count[l];
            o->lo[l] = w < o->lo[l] ? w : o->lo[l];
            o->hi[l] = w > o->hi[l] ? w : o->hi[l];
            o->least[l] = in && w < o->least[l] ? w : o->least[l];
            o->most[l] = in && w > o->most[l] ? w : o->most[l];
            o->mass[l] += fabsf(w);
            o->hw[l] += h * w;
            o->h[l] += h;
        }
}

static void judge(const lq_tile *t, const lq_tile_guess *g, lq_tile_sums *out) {
    if (t->wide) t->judge(t->wide, t, g, out);
    else lq_tile_judge(t, g, out);
}

/* ---- min-max ---- */

static float clamp_zero(const lq_tile *t, float z) { return z < 0 ? 0 : z > t->r->top ? t->r->top : rintf(z); }

/* In codes; a minimum is stored as scale * z. */
static float stored_zero(const lq_tile *t, float z, float scale) {
    if (!has_min(t->s)) return lq_plane_round(&t->s->zero, clampf(z, -60000, 60000));
    if (!below_zero(t->s)) return z > 0 ? z : 0;
    return lq_plane_round(&t->s->zero, clampf(z * scale, -60000, 60000)) / scale;
}

/* Step of an integer grid, exponent of E8M0, absmax on the largest value: the field's rule before it is rounded. */
static float field_scale(const lq_tile *t, const lq_tile_stats *v, int l) {
    const lq_scheme *s = t->s;
    float most = fmaxf(v->hi[l], -v->lo[l]), mean = v->n[l] > 0 ? (float)(v->mass[l] / v->n[l]) : 0;
    if (is_sign(s)) return mean;
    if (most == 0) return s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_IQ4 ? 0 : 1; /* no value of it is 0 */
    if (is_quad(s)) return most; /* ggml: what was -a, 0, a stays so */
    if (is_ternary(s)) return fmaxf(mean, 1e-5f);
    if (is_int(s)) return (s->zero_kind != LQ_ZERO_NONE ? v->hi[l] - v->lo[l] : 2 * most) / t->r->top;
    if (s->scale.dtype == LQ_E8M0 && s->grid.kind != LQ_GRID_LUT) { /* the largest power of two over the largest of the grid */
        int e, g;
        frexpf(most, &e);
        frexpf(lq_grid_top(s), &g);
        return ldexpf(1, e - g);
    }
    return most / lq_grid_top(s);
}

static void minmax(const lq_tile *t, const lq_tile_stats *v, lq_tile_guess *g) {
    const lq_scheme *s = t->s;
    for (int l = 0; l < LANES; l++) {
        bool flat = v->lo[l] == v->hi[l];
        float f = field_scale(t, v, l);
        g->scale[l] = f == 0 ? 0 : lq_tile_stored(t, t->first + (t->wide ? 0 : (size_t)l), f); /* 0: zeros on a grid without zero */
        g->zero[l] = 0;
        if (whole_zero(s)) g->zero[l] = flat ? (float)(1u << (s->grid.bits - 1)) : clamp_zero(t, -v->lo[l] / g->scale[l]);
        if (real_zero(s)) g->zero[l] = flat ? 0 : stored_zero(t, -v->lo[l] / g->scale[l], g->scale[l]);
    }
}

/* ---- the search ---- */

typedef struct best { lq_tile_guess g, refit; double e[LANES], promise[LANES]; } best;

static void propose(best *b, int l, double scale, double zero, double promise) {
    if (!(promise < b->promise[l])) return;
    b->promise[l] = promise;
    b->refit.scale[l] = (float)scale;
    b->refit.zero[l] = (float)zero;
}

/* The bottom of the error of the guess's codes, and how low it lies: what a refit promises. */
static void bottom(const lq_tile *t, const lq_tile_stats *v, const lq_tile_guess *g, const lq_tile_sums *s, best *b) {
    for (int l = 0; l < LANES; l++) {
        if (!(s->aa[l] > 0)) continue;
        double det = v->h[l] * s->aa[l] - s->a[l] * s->a[l];
        if (real_zero(t->s) && det > 1e-9 * v->h[l] * s->aa[l]) { /* w = s' a + m */
            double scale = (v->h[l] * s->wa[l] - s->a[l] * v->hw[l]) / det, m = (v->hw[l] - scale * s->a[l]) / v->h[l];
            double off = (double)g->scale[l] - scale; /* error falls by the norm of (off a - m) */
            if (scale > 0 && (below_zero(t->s) || g->zero[l] * scale >= m))
                propose(b, l, scale, g->zero[l] - m / scale, s->e[l] - (off * off * s->aa[l] - 2 * off * m * s->a[l] + m * m * v->h[l]));
            if (below_zero(t->s) || g->zero[l] * scale >= m) continue;
        }
        double at = s->wa[l] / s->aa[l], off = at - (double)g->scale[l];
        propose(b, l, at, g->zero[l], s->e[l] - off * off * s->aa[l]);
    }
}

static void consider(const lq_tile *t, const lq_tile_stats *v, const lq_tile_guess *g, best *b, lq_tile_sums *s) {
    judge(t, g, s);
    for (int l = 0; l < LANES; l++) {
        if (!(s->e[l] < b->e[l])) continue;
        b->e[l] = s->e[l];
        b->g.scale[l] = g->scale[l];
        b->g.zero[l] = g->zero[l];
    }
    bottom(t, v, g, s, b);
}

/* Where candidates lie: from top to bottom times the scale that clips nothing. */
typedef struct sweep { float top, bottom; int points; bool negative; } sweep;

static sweep sweep_of(const lq_tile *t) {
    const lq_scheme *s = t->s;
    bool two_signs = t->how == LQ_FIT_SEARCH_SIGNED && (s->scale.parent == LQ_NONE || s->scale.dtype == LQ_I8) && s->scale.dtype != LQ_E8M0 && s->scale.dtype != LQ_E4M3 &&
                     s->scale.sig != LQ_SIG_127TH && s->scale.sig != LQ_SIG_INVERSE;
    float half = (float)s->grid.bias;
    if (is_sign(s)) return (sweep){1, 1, 0, false}; /* its codes do not depend on the scale */
    if (is_ternary(s)) return (sweep){1, 0.08f, GRID_POINTS, false};
    if (is_int(s) && s->zero_kind != LQ_ZERO_NONE) return (sweep){1.05f, 0.33f, GRID_POINTS, false};
    if (is_int(s)) return (sweep){half > 1 ? 1.02f * half / (half - 1) : 1, 0.33f, GRID_POINTS, two_signs};
    if (is_quad(s)) return (sweep){1.05f, 0.12f, GRID_POINTS, two_signs};
    if (s->grid.kind == LQ_GRID_LUT) return (sweep){1.05f, 0.35f, GRID_POINTS, two_signs && s->grid.bias != LQ_LUT_FP4};
    if (s->grid.kind == LQ_GRID_E2M1) return (sweep){1.6f, 0.4f, s->scale.dtype == LQ_E4M3 ? GRID_POINTS / 2 : GRID_POINTS, false};
    return (sweep){2, 0.7f, GRID_POINTS, false};
}

/* Largest weight on the largest value. */
static float wide_scale(const lq_tile *t, const lq_tile_stats *v, int l) {
    const lq_scheme *s = t->s;
    float most = fmaxf(v->hi[l], -v->lo[l]);
    if (most == 0) return 1;
    if (is_ternary(s)) return most;
    if (!below_zero(s)) return (fmaxf(v->most[l], 0) - v->lo[l]) / t->r->top;
    if (real_zero(s)) return v->most[l] > v->least[l] ? (v->most[l] - v->least[l]) / t->r->top : most;
    if (is_int(s)) return whole_zero(s) ? (v->hi[l] - v->lo[l]) / t->r->top : 2 * most / (t->r->top + 1);
    return s->scale.dtype == LQ_E8M0 ? field_scale(t, v, l) : most / lq_grid_top(s);
}

static float place(const lq_tile *t, int l, float scale) { return lq_tile_stored(t, t->first + (t->wide ? 0 : (size_t)l), scale); }

static void try_scales(const lq_tile *t, const lq_tile_stats *v, const float *base, const float *zero, float dz, const sweep *w, float sign, best *b) {
    lq_tile_sums sums;
    for (int i = 0; i < w->points; i++) {
        lq_tile_guess g;
        float f = sign * (w->top - (w->top - w->bottom) * (float)i / (float)(w->points - 1));
        for (int l = 0; l < LANES; l++) {
            g.scale[l] = place(t, l, base[l] * f);
            g.zero[l] = whole_zero(t->s) ? clamp_zero(t, zero[l] + dz) : 0;
        }
        consider(t, v, &g, b, &sums);
    }
}

/* The largest weight on the last code of either side: where weights that lie on a grid already have it. */
static void try_ends(const lq_tile *t, const lq_tile_stats *v, const float *base, bool negative, best *b) {
    lq_tile_sums sums;
    float half = (float)t->s->grid.bias;
    for (int k = 0; k < (negative ? 4 : 2); k++) {
        lq_tile_guess g = {{0}, {0}};
        for (int l = 0; l < LANES; l++) g.scale[l] = place(t, l, base[l] * (k & 2 ? -1 : 1) * (k & 1 ? half / (half - 1) : 1));
        consider(t, v, &g, b, &sums);
    }
}

/* A real zero: the range centred on the codes, then moved to where the codes' error has its bottom. */
static void try_real_zeros(const lq_tile *t, const lq_tile_stats *v, const float *base, const sweep *w, best *b) {
    lq_tile_sums sums;
    for (int i = 0; i < w->points; i++) {
        lq_tile_guess g;
        float f = w->top - (w->top - w->bottom) * (float)i / (float)(w->points - 1);
        for (int l = 0; l < LANES; l++) {
            g.scale[l] = place(t, l, base[l] * f);
            g.zero[l] = stored_zero(t, t->r->top / 2 - (v->most[l] + v->least[l]) / 2 / g.scale[l], g.scale[l]);
        }
        consider(t, v, &g, b, &sums);
        for (int l = 0; l < LANES; l++) {
            double m = v->h[l] > 0 ? (v->hw[l] - (double)g.scale[l] * sums.a[l]) / v->h[l] : 0;
            g.zero[l] = stored_zero(t, g.zero[l] - (float)(m / g.scale[l]), g.scale[l]);
        }
        consider(t, v, &g, b, &sums);
    }
}

/* A minimum at the smallest weight: where weights that lie on a grid already have it. */
static void try_edges(const lq_tile *t, const lq_tile_stats *v, const float *base, best *b) {
    lq_tile_sums sums;
    for (int i = -9; i <= 9; i++) {
        lq_tile_guess g;
        for (int l = 0; l < LANES; l++) {
            g.scale[l] = place(t, l, base[l] * t->r->top / (t->r->top + 0.1f * (float)i));
            g.zero[l] = stored_zero(t, -v->least[l] / g.scale[l], g.scale[l]);
        }
        consider(t, v, &g, b, &sums);
    }
}

/* Around the best scale and minimum, closer than the sweep's steps and a part of a code up and down. */
static void try_near(const lq_tile *t, const lq_tile_stats *v, best *b) {
    lq_tile_sums sums;
    lq_tile_guess from = b->g;
    for (int i = -4; i <= 4; i++)
        for (int k = -1; k <= 1; k++) {
            lq_tile_guess g;
            for (int l = 0; l < LANES; l++) {
                g.scale[l] = place(t, l, from.scale[l] * (1 + 0.005f * (float)i));
                g.zero[l] = stored_zero(t, from.zero[l] + (float)k / 3, g.scale[l]);
            }
            consider(t, v, &g, b, &sums);
        }
}

static void try_exponents(const lq_tile *t, const lq_tile_stats *v, const float *base, best *b) {
    lq_tile_sums sums;
    for (float f = 2; f >= 0.25f; f /= 2) {
        lq_tile_guess g = {{0}, {0}};
        for (int l = 0; l < LANES; l++) g.scale[l] = place(t, l, base[l] * f);
        consider(t, v, &g, b, &sums);
    }
}

static void refit(const lq_tile *t, const lq_tile_stats *v, best *b) {
    lq_tile_sums sums;
    for (int k = 0; k < (real_zero(t->s) ? 2 * REFITS : REFITS); k++) {
        lq_tile_guess g = b->refit;
        for (int l = 0; l < LANES; l++) {
            g.scale[l] = place(t, l, g.scale[l]);
            if (real_zero(t->s)) g.zero[l] = stored_zero(t, g.zero[l], g.scale[l]);
        }
        consider(t, v, &g, b, &sums);
    }
}

static void search(const lq_tile *t, const lq_tile_stats *v, lq_tile_guess *g) {
    bool asym = whole_zero(t->s);
    float base[LANES], zero[LANES];
    sweep w = sweep_of(t);
    lq_tile_sums sums;
    best b;
    for (int l = 0; l < LANES; l++) b.e[l] = b.promise[l] = HUGE_VAL;
    b.g = b.refit = *g;
    consider(t, v, g, &b, &sums);
    for (int l = 0; l < LANES; l++) {
        base[l] = wide_scale(t, v, l);
        zero[l] = g->zero[l];
    }
    if (real_zero(t->s)) try_real_zeros(t, v, base, &w, &b);
    else if (t->s->scale.dtype == LQ_E8M0) try_exponents(t, v, base, &b);
    else
        for (int dz = -asym; dz <= asym; dz++) try_scales(t, v, base, zero, (float)dz, &w, 1, &b);
    if (w.negative) try_scales(t, v, base, zero, 0, &w, -1, &b);
    if (is_int(t->s) && t->s->zero_kind == LQ_ZERO_NONE && t->s->grid.bias > 1) try_ends(t, v, base, w.negative, &b);
    if (has_min(t->s)) try_edges(t, v, base, &b);
    refit(t, v, &b);
    if (has_min(t->s)) {
        try_near(t, v, &b);
        refit(t, v, &b);
    }
    *g = b.g;
}

void lq_tile_fit(const lq_tile *t, lq_tile_guess *g) {
    lq_tile_stats v;
    if (t->wide) t->gather(t->wide, t, &v);
    else lq_tile_measure(t, &v);
    minmax(t, &v, g);
    if (t->how != LQ_FIT_MINMAX) search(t, &v, g);
}
