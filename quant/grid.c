/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Uniform grids: value = s (q - bias - z), q in [0, 2^b - 1]. A tile is a run of columns of one row that shares (s, z).
 *
 * The search minimises E(s, z) = sum_i h_i (s a_i - w_i)^2 over a grid of scales, a_i = q_i - bias - z. For fixed codes E is
 * a parabola in s with its bottom at s* = sum h w a / sum h a^2: every candidate proposes its s*, and the best proposals are
 * judged after rounding to the stored type. algorithms.md 0.1, 0.2, 26 D; min-max: formats.md 2.3.
 *
 * LANES rows are judged at once: the loop over lanes is what the compiler vectorises, and the order of every sum stays the
 * order of the columns whatever the vector width. */
#include "quant/grid.h"

#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"

enum { LANES = 16, CHUNK = 64, GRID_POINTS = 40, REFITS = 3 };

static float range_max(const lq_scheme *s) { return (float)((1u << s->grid.bits) - 1); }

static float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; } /* half to even, |x| < 2^22 */

lq_status lq_grid_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t cols) {
    char name[64];
    lq_scheme_name(s, name, sizeof name);
    if (s->grid.kind != LQ_GRID_INT || s->grid.vec > 1 || s->grid.bits < 2 || s->grid.bits > 8)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected an integer grid of 2 to 8 bits", name);
    if (s->zero_kind == LQ_ZERO_MIN || (s->zero_kind == LQ_ZERO_CODE && s->zero.dtype != LQ_U8))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected no zero point or an integer one", name);
    if (s->scale.dtype != LQ_F16 && s->scale.dtype != LQ_BF16 && s->scale.dtype != LQ_F32)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected scales of type F16, BF16 or F32, not %s", name, lq_dtypes[s->scale.dtype].name);
    bool two_level = s->scale.parent != LQ_NONE || s->zero.parent != LQ_NONE;
    bool tiles_differ = s->zero_kind == LQ_ZERO_CODE && (s->zero.tile_r != s->scale.tile_r || s->zero.tile_c != s->scale.tile_c);
    if (two_level || tiles_differ || s->scale.tile_r != 1 || s->extra)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected one scale per row and group of columns", name);
    if (s->scale.tile_c && cols % s->scale.tile_c)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "group size %u does not divide the %u columns", s->scale.tile_c, cols);
    return LQ_OK;
}

uint32_t lq_grid_code(const lq_scheme *s, float w, float scale, float zero) {
    float whole = rintf(zero), lo = -(float)s->grid.bias - whole, hi = lo + range_max(s);
    float x = w / scale;
    if (s->zero_kind == LQ_ZERO_MIN) x = (w + zero) / scale, whole = 0, lo = -(float)s->grid.bias, hi = lo + range_max(s);
    else x += zero - whole;
    x = x > lo ? x : lo; /* NaN goes to lo */
    x = x < hi ? x : hi;
    return (uint32_t)(nearest(x) - lo);
}

float lq_grid_weight(const lq_scheme *s, uint32_t code, float scale, float zero) {
    float a = (float)((int32_t)code - s->grid.bias);
    return s->zero_kind == LQ_ZERO_MIN ? scale * a - zero : scale * (a - zero);
}

/* ---- one tile column of LANES rows ---- */

typedef struct tile {
    const float *w, *h;   /* w[cols][LANES], h[cols] */
    uint32_t cols;
    const lq_scheme *s;
    double hsum, hw[LANES];
} tile;

typedef struct guess { float scale[LANES], zero[LANES]; } guess;
typedef struct sums { double e[LANES], wa[LANES], aa[LANES], a[LANES]; } sums; /* weighted: error, w a, a^2, a */

static void judge(const tile *t, const guess *g, sums *out) {
    float lo[LANES], hi[LANES];
    for (int l = 0; l < LANES; l++) {
        lo[l] = -(float)t->s->grid.bias - g->zero[l];
        hi[l] = lo[l] + range_max(t->s);
    }
    *out = (sums){0};
    for (uint32_t c0 = 0; c0 < t->cols; c0 += CHUNK) {
        uint32_t c1 = c0 + CHUNK < t->cols ? c0 + CHUNK : t->cols;
        float e[LANES] = {0}, wa[LANES] = {0}, aa[LANES] = {0}, sa[LANES] = {0};
        for (uint32_t c = c0; c < c1; c++) {
            const float *w = t->w + (size_t)c * LANES, h = t->h[c];
            for (int l = 0; l < LANES; l++) {
                float x = w[l] / g->scale[l];
                x = x > lo[l] ? x : lo[l];
                x = x < hi[l] ? x : hi[l];
                float a = nearest(x), d = w[l] - g->scale[l] * a, ha = h * a;
                e[l] += h * d * d;
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

/* A usable scale of the plane's type: finite, not zero, not subnormal (kernels flush those), sign kept. */
static float stored_scale(const lq_plane_desc *d, float s) {
    float least = d->dtype == LQ_F16 ? 0x1p-14f : 0x1p-126f, most = d->dtype == LQ_F16 ? 0x1.FEp15f : 0x1p127f;
    float m = fabsf(s);
    if (!(m > least)) m = least;
    if (m > most) m = most;
    return lq_plane_round(d, s < 0 ? -m : m);
}

static void tile_range(const tile *t, float *lo, float *hi) {
    for (int l = 0; l < LANES; l++) lo[l] = hi[l] = 0;
    for (uint32_t c = 0; c < t->cols; c++)
        for (int l = 0; l < LANES; l++) {
            float w = t->w[(size_t)c * LANES + l];
            lo[l] = w < lo[l] ? w : lo[l];
            hi[l] = w > hi[l] ? w : hi[l];
        }
}

static float clamp_zero(const lq_scheme *s, float z) { return z < 0 ? 0 : z > range_max(s) ? range_max(s) : rintf(z); }

static void minmax(const tile *t, const float *lo, const float *hi, guess *g) {
    const lq_scheme *s = t->s;
    bool asym = s->zero_kind == LQ_ZERO_CODE;
    for (int l = 0; l < LANES; l++) {
        float span = asym ? hi[l] - lo[l] : 2 * fmaxf(hi[l], -lo[l]);
        if (span == 0) span = range_max(s); /* all zero: scale 1 */
        g->scale[l] = stored_scale(&s->scale, span / range_max(s));
        g->zero[l] = asym ? lo[l] == hi[l] ? (float)(1u << (s->grid.bits - 1)) : clamp_zero(s, -lo[l] / g->scale[l]) : 0;
    }
}

/* ---- the search ---- */

typedef struct best { guess g, refit; double e[LANES], promise[LANES]; } best;

/* The bottom of the parabola of the guess's codes, and how low it lies: what a refit promises. */
static void consider(const tile *t, const guess *g, best *b) {
    sums s;
    judge(t, g, &s);
    for (int l = 0; l < LANES; l++) {
        if (s.e[l] < b->e[l]) {
            b->e[l] = s.e[l];
            b->g.scale[l] = g->scale[l];
            b->g.zero[l] = g->zero[l];
        }
        if (!(s.aa[l] > 0)) continue;
        double bottom = s.wa[l] / s.aa[l], off = bottom - (double)g->scale[l], promise = s.e[l] - off * off * s.aa[l];
        if (promise < b->promise[l]) {
            b->promise[l] = promise;
            b->refit.scale[l] = (float)bottom;
            b->refit.zero[l] = g->zero[l];
        }
    }
}

/* Scales from the one that clips nothing down to a third of it. */
static float shrink(const lq_scheme *s, int i, bool asym) {
    float half = (float)(1u << (s->grid.bits - 1)), top = asym ? 1.05f : 1.02f * half / (half - 1), bottom = 0.33f;
    return top - (top - bottom) * (float)i / (GRID_POINTS - 1);
}

static void try_scales(const tile *t, const float *base, const float *zero, float dz, float sign, best *b) {
    bool asym = t->s->zero_kind == LQ_ZERO_CODE;
    for (int i = 0; i < GRID_POINTS; i++) {
        guess g;
        float f = sign * shrink(t->s, i, asym);
        for (int l = 0; l < LANES; l++) {
            g.scale[l] = stored_scale(&t->s->scale, base[l] * f);
            g.zero[l] = asym ? clamp_zero(t->s, zero[l] + dz) : 0;
        }
        consider(t, &g, b);
    }
}

static void refit(const tile *t, best *b) {
    for (int k = 0; k < REFITS; k++) {
        guess g = b->refit;
        for (int l = 0; l < LANES; l++) g.scale[l] = stored_scale(&t->s->scale, g.scale[l]);
        consider(t, &g, b);
    }
}

static void search(const tile *t, const float *lo, const float *hi, bool negative, guess *g) {
    bool asym = t->s->zero_kind == LQ_ZERO_CODE;
    float base[LANES], zero[LANES];
    best b;
    for (int l = 0; l < LANES; l++) b.e[l] = b.promise[l] = HUGE_VAL;
    b.g = b.refit = *g;
    consider(t, g, &b);
    for (int l = 0; l < LANES; l++) {
        float span = asym ? hi[l] - lo[l] : 2 * fmaxf(hi[l], -lo[l]);
        base[l] = span == 0 ? 1 : span / (range_max(t->s) + (asym ? 0 : 1));
        zero[l] = g->zero[l];
    }
    for (int dz = -asym; dz <= asym; dz++) try_scales(t, base, zero, (float)dz, 1, &b);
    if (negative && !asym) try_scales(t, base, zero, 0, -1, &b);
    refit(t, &b);
    *g = b.g;
}

/* ---- the whole matrix ---- */

typedef struct fit_job {
    lq_qtensor *q;
    const float *w, *h;
    float *scratch; /* [workers][width][LANES] */
    uint32_t width, tiles;
    lq_fit how;
} fit_job;

static void fit_rows(void *arg, size_t job) {
    fit_job *f = arg;
    lq_qtensor *q = f->q;
    uint32_t r0 = (uint32_t)job * LANES, nr = q->rows - r0 < LANES ? q->rows - r0 : LANES;
    float *wt = f->scratch + (size_t)lq_worker() * f->width * LANES;
    for (uint32_t k = 0; k < f->tiles; k++) {
        uint32_t c0 = k * f->width;
        for (uint32_t l = 0; l < LANES; l++)
            for (uint32_t c = 0; c < f->width; c++) wt[(size_t)c * LANES + l] = l < nr ? f->w[(size_t)(r0 + l) * q->cols + c0 + c] : 0;
        tile t = {.w = wt, .h = f->h + c0, .cols = f->width, .s = &q->sch};
        float lo[LANES], hi[LANES];
        guess g;
        tile_range(&t, lo, hi);
        minmax(&t, lo, hi, &g);
        if (f->how != LQ_FIT_MINMAX) search(&t, lo, hi, f->how == LQ_FIT_SEARCH_SIGNED, &g);
        for (uint32_t l = 0; l < nr; l++) {
            lq_plane_set(&q->sch.scale, &q->scale, (size_t)(r0 + l) * f->tiles + k, g.scale[l]);
            if (q->sch.zero_kind == LQ_ZERO_CODE) lq_plane_set(&q->sch.zero, &q->zero, (size_t)(r0 + l) * f->tiles + k, g.zero[l]);
        }
    }
}

lq_status lq_grid_fit(lq_ctx *ctx, lq_qtensor *q, const float *w, const float *h, lq_fit how) {
    LQ_TRY(lq_grid_accept(ctx, &q->sch, q->cols));
    fit_job f = {.q = q, .w = w, .h = h, .how = how};
    f.width = q->sch.scale.tile_c ? q->sch.scale.tile_c : q->cols;
    f.tiles = q->cols / f.width;
    size_t n = (size_t)lq_threads() * f.width * LANES;
    f.scratch = lq_calloc(n, sizeof(float));
    float *ones = h ? NULL : lq_calloc(q->cols, sizeof(float));
    lq_status st = f.scratch && (h || ones) ? LQ_OK : lq_oom(ctx, n * sizeof(float));
    if (!st) {
        for (uint32_t c = 0; ones && c < q->cols; c++) ones[c] = 1;
        if (ones) f.h = ones;
        lq_parallel_for((q->rows + LANES - 1) / LANES, fit_rows, &f);
    }
    lq_free(ones);
    lq_free(f.scratch);
    return st;
}

typedef struct round_job { lq_qtensor *q; const float *w; } round_job;

static void round_row(void *arg, size_t r) {
    round_job *j = arg;
    lq_qtensor *q = j->q;
    const lq_scheme *s = &q->sch;
    uint8_t *row = q->codes + r * q->row_bytes;
    float scale = 1, zero = 0;
    for (uint32_t c = 0; c < q->cols; c++) {
        if (!c || (s->scale.tile_c && c % s->scale.tile_c == 0)) {
            size_t i = lq_plane_index(&s->scale, q->cols, (uint32_t)r, c);
            scale = lq_plane_get(&s->scale, &q->scale, i);
            if (s->zero_kind != LQ_ZERO_NONE) zero = lq_plane_get(&s->zero, &q->zero, i);
        }
        lq_code_put(row, s->grid.bits, c, lq_grid_code(s, j->w[r * q->cols + c], scale, zero));
    }
}

void lq_grid_round(lq_qtensor *q, const float *w) {
    round_job j = {q, w};
    lq_parallel_for(q->rows, round_row, &j);
}
