/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Fits the planes of a matrix: cuts it into tiles as the scale plane says, gives LANES of them at a time to the search, and takes
 * two-level planes in two passes: scales as floats, then their parents, then scales as they will be stored.
 *
 * Double quantization (Dettmers et al. 2023, arXiv 2305.14314): absmax - mean(absmax) is coded by the dynamic 8-bit map (Dettmers
 * 2015, arXiv 1511.04561) in spans of 256 with an F32 absmax. Blocks of ggml: grid_super.c. NVFP4: the one F32 is max|W| / (6 * 448), over all matrices that
 * runtimes fuse. */
#include "quant/grid_tile.h"

#include "core/blocks.h"
#include "core/num.h"
#include "core/thread.h"
#include "quant/kmeans.h"

#include <stdatomic.h>
#include <string.h>

enum { WIDE = 1 << 16, PART = 1 << 14 }; /* weights of a tile that is walked in parts; weights of a part */

/* ---- which schemes ---- */

static bool plain_float(lq_dtype t) { return t == LQ_F32 || t == LQ_F16 || t == LQ_BF16; }

/* Bytes under F16, a whole number of superblocks in LANES tiles. */
static bool is_super(const lq_plane_desc *d) {
    return d->parent == LQ_F16 && (d->dtype == LQ_U8 || d->dtype == LQ_I8) && d->tile_r == 1 && d->tile_c && d->span && LANES % d->span == 0;
}

static bool scale_known(const lq_scheme *s) {
    const lq_plane_desc *d = &s->scale;
    if (s->grid.kind > LQ_GRID_LUT) return d->dtype == LQ_NONE;
    bool own = s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_DATA;
    if (d->dtype == LQ_NONE || own) return own && d->dtype == LQ_NONE && s->extra & LQ_X_LUT_PER_ROW;
    if (is_super(d)) return s->grid.kind == LQ_GRID_INT || s->grid.kind == LQ_GRID_LUT;
    if (d->parent != LQ_NONE) return d->parent == LQ_F32 && !d->divides && ((d->dtype == LQ_E4M3 && !d->span) || (d->dtype == LQ_U8 && d->span));
    return plain_float(d->dtype) || d->dtype == LQ_E8M0 || d->dtype == LQ_E4M3;
}

static bool zero_known(const lq_scheme *s) {
    if (s->zero_kind == LQ_ZERO_NONE) return true;
    bool alike = s->zero.tile_r == s->scale.tile_r && s->zero.tile_c == s->scale.tile_c && s->zero.parent == s->scale.parent;
    if (s->zero_kind == LQ_ZERO_MIN && is_super(&s->scale))
        return alike && s->grid.kind == LQ_GRID_INT && !s->grid.bias && s->scale.dtype == LQ_U8 && s->zero.dtype == LQ_U8 && s->zero.span == s->scale.span;
    if (is_super(&s->scale) || s->zero.parent != LQ_NONE) return false;
    if (s->zero_kind == LQ_ZERO_MIN) return alike && s->grid.kind == LQ_GRID_INT && plain_float(s->zero.dtype);
    return s->zero_kind == LQ_ZERO_CODE && s->grid.kind == LQ_GRID_INT && alike && (s->zero.dtype == LQ_U8 || plain_float(s->zero.dtype));
}

lq_status lq_grid_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t cols) {
    char name[64];
    lq_scheme_name(s, name, sizeof name);
    if (s->grid.vec > 1 || (s->grid.kind == LQ_GRID_INT && (s->grid.bits < 1 || s->grid.bits > 8)))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected codes for one weight each, integers of 1 to 8 bits", name);
    if (s->grid.kind == LQ_GRID_LUT && s->grid.bits > 4)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected tables of at most %d values", name, LQ_GRID_TABLE);
    if (!zero_known(s)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected no zero point, or one per scale that is subtracted from integer codes or their values", name);
    if (!scale_known(s))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected scales of type F32, F16, BF16, E8M0, E4M3 or 8-bit tables under F32, bytes under F16, not %s", name,
                       lq_dtypes[s->scale.dtype].name);
    if (s->extra & (LQ_X_PERM | LQ_X_PRESCALE | LQ_X_HADAMARD)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected columns in their order", name);
    if (s->scale.dtype != LQ_NONE && s->scale.tile_r == LQ_FLAT && !s->scale.tile_c)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: expected a block size", name);
    if (is_super(&s->scale) && cols % (s->scale.tile_c * s->scale.span))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s stores blocks of %u columns, which do not divide the %u", name, s->scale.tile_c * s->scale.span, cols);
    if (s->scale.tile_r == 1 && s->scale.tile_c && cols % s->scale.tile_c)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "group size %u does not divide the %u columns", s->scale.tile_c, cols);
    return LQ_OK;
}

/* ---- tiles ---- */

typedef struct fit_job {
    lq_qtensor *q;
    const float *w, *h;
    float *scratch;       /* [workers][2][most][LANES] */
    float *loose;         /* [tiles] scales before their parents are known; NULL: the plane is final */
    size_t tiles;
    uint32_t most;        /* weights of the largest tile, or of a part of it */
    bool wide, rounded;
    float least;          /* lq_tile */
    atomic_bool *bad;     /* a weight was not finite */
    lq_fit how;
    lq_rounder r;
} fit_job;

/* Weights of tile i: `height` runs of `width`, cols apart, from `first`. */
typedef struct box { size_t first; uint32_t width, height; } box;

static box box_of(const lq_qtensor *q, size_t i) {
    const lq_plane_desc *d = &q->sch.scale;
    size_t all = (size_t)q->rows * q->cols;
    if (d->tile_r == LQ_FLAT) {
        size_t first = i * d->tile_c;
        return (box){first, (uint32_t)(all - first < d->tile_c ? all - first : d->tile_c), 1};
    }
    uint32_t tr = d->tile_r && d->tile_r < q->rows ? d->tile_r : q->rows, tc = d->tile_c && d->tile_c < q->cols ? d->tile_c : q->cols;
    uint32_t n = lq_plane_cols(d, q->cols), r0 = (uint32_t)(i / n) * tr, c0 = (uint32_t)(i % n) * tc;
    return (box){(size_t)r0 * q->cols + c0, q->cols - c0 < tc ? q->cols - c0 : tc, q->rows - r0 < tr ? q->rows - r0 : tr};
}

static uint64_t largest_tile(const lq_qtensor *q) {
    box b = box_of(q, 0);
    return (uint64_t)b.width * b.height;
}

/* Weights [k0, k0 + n) of a box, every `step` floats of w and h. */
static void gather(const fit_job *f, const box *b, uint64_t k0, uint32_t n, float *w, float *h, uint32_t step) {
    uint32_t cols = f->q->cols, y = (uint32_t)(k0 / b->width), x = (uint32_t)(k0 % b->width);
    float check = 0;
    for (uint32_t done = 0; done < n; y++, x = 0) {
        size_t at = b->first + (size_t)y * cols + x;
        uint32_t run = b->width - x < n - done ? b->width - x : n - done, c = (uint32_t)(at % cols);
        for (uint32_t i = 0; i < run; i++, c = c + 1 == cols ? 0 : c + 1) {
            w[(size_t)(done + i) * step] = f->w[at + i];
            h[(size_t)(done + i) * step] = f->h[c];
            check += f->w[at + i] * 0;
        }
        done += run;
    }
    if (check != 0) *f->bad = true; /* NaN: a weight was not finite */
}

static void put(const fit_job *f, size_t i, float scale, float zero) {
    lq_qtensor *q = f->q;
    if (f->loose && !f->rounded) f->loose[i] = scale;
    else lq_plane_set(&q->sch.scale, &q->scale, i, scale);
    if (q->sch.zero_kind == LQ_ZERO_CODE) lq_plane_set(&q->sch.zero, &q->zero, i, zero);
    if (q->sch.zero_kind == LQ_ZERO_MIN) lq_plane_set(&q->sch.zero, &q->zero, i, zero * scale);
}

static lq_tile tile_at(const fit_job *f, size_t first) {
    return (lq_tile){.s = &f->q->sch, .r = &f->r, .plane = &f->q->scale, .first = first, .rounded = f->rounded, .least = f->least, .how = f->how};
}

static void fit_lanes(void *arg, size_t job) {
    const fit_job *f = arg;
    float *w = f->scratch + (size_t)lq_worker() * 2 * f->most * LANES, *h = w + (size_t)f->most * LANES;
    lq_tile t = tile_at(f, job * LANES);
    lq_tile_guess g;
    t.w = w;
    t.h = h;
    uint32_t lanes = f->tiles - t.first < LANES ? (uint32_t)(f->tiles - t.first) : LANES;
    for (uint32_t l = 0; l < lanes; l++) {
        box b = box_of(f->q, t.first + l);
        t.count[l] = b.width * b.height;
        t.n = t.count[l] > t.n ? t.count[l] : t.n;
        gather(f, &b, 0, t.count[l], w + l, h + l, LANES);
    }
    for (uint32_t l = 0; l < LANES; l++)
        for (uint32_t c = t.count[l]; c < t.n; c++) w[(size_t)c * LANES + l] = h[(size_t)c * LANES + l] = 0;
    if (is_super(&f->q->sch.scale)) {
        lq_super_fit(&t, f->q, lanes);
        return;
    }
    lq_tile_fit(&t, &g);
    for (uint32_t l = 0; l < lanes; l++) put(f, t.first + l, g.scale[l], g.zero[l]);
}

/* ---- a tile that is walked in parts ---- */

typedef struct wide_job {
    const fit_job *f;
    box b;
    uint64_t n;
    size_t parts;
    const lq_tile *t;
    const lq_tile_guess *g;
    lq_tile_sums *sums;     /* [parts] */
    lq_tile_stats *stats;   /* [parts] */
} wide_job;

static void wide_part(void *arg, size_t i) {
    wide_job *j = arg;
    const fit_job *f = j->f;
    float *w = f->scratch + (size_t)lq_worker() * 2 * f->most * LANES, *h = w + (size_t)f->most * LANES;
    uint64_t k0 = (uint64_t)i * PART;
    uint32_t n = j->n - k0 < PART ? (uint32_t)(j->n - k0) : PART;
    lq_tile t = *j->t;
    t.w = w;
    t.h = h;
    t.n = (n + LANES - 1) / LANES;
    for (uint32_t l = 0; l < LANES; l++) t.count[l] = (n + LANES - 1 - l) / LANES;
    gather(f, &j->b, k0, n, w, h, 1);
    for (uint32_t k = n; k < t.n * LANES; k++) w[k] = h[k] = 0;
    if (j->g) lq_tile_judge(&t, j->g, &j->sums[i]);
    else lq_tile_measure(&t, &j->stats[i]);
}

static double total(const double *v, size_t parts, size_t stride) { /* of [parts][LANES], stride doubles apart */
    double sum = 0;
    for (size_t i = 0; i < parts; i++)
        for (int l = 0; l < LANES; l++) sum += v[i * stride + (size_t)l];
    return sum;
}

static void wide_judge(void *arg, const lq_tile *t, const lq_tile_guess *g, lq_tile_sums *out) {
    wide_job *j = arg;
    size_t stride = sizeof *out / sizeof(double);
    j->t = t;
    j->g = g;
    lq_parallel_for(j->parts, wide_part, j);
    double e = total(j->sums->e, j->parts, stride), wa = total(j->sums->wa, j->parts, stride), aa = total(j->sums->aa, j->parts, stride);
    double a = total(j->sums->a, j->parts, stride);
    for (int l = 0; l < LANES; l++) out->e[l] = e, out->wa[l] = wa, out->aa[l] = aa, out->a[l] = a;
}

static void wide_gather(void *arg, const lq_tile *t, lq_tile_stats *o) {
    wide_job *j = arg;
    j->t = t;
    j->g = NULL;
    lq_parallel_for(j->parts, wide_part, j);
    *o = j->stats[0];
    for (size_t i = 0; i < j->parts; i++)
        for (int l = 0; l < LANES; l++) {
            const lq_tile_stats *p = &j->stats[i];
            if (!i && !l) continue;
            o->lo[0] = fminf(o->lo[0], p->lo[l]);
            o->hi[0] = fmaxf(o->hi[0], p->hi[l]);
            o->least[0] = fminf(o->least[0], p->least[l]);
            o->most[0] = fmaxf(o->most[0], p->most[l]);
            o->mass[0] += p->mass[l];
            o->hw[0] += p->hw[l];
            o->h[0] += p->h[l];
        }
    o->n[0] = (double)j->n;
    for (int l = 1; l < LANES; l++) {
        o->lo[l] = o->lo[0], o->hi[l] = o->hi[0], o->least[l] = o->least[0], o->most[l] = o->most[0];
        o->mass[l] = o->mass[0], o->hw[l] = o->hw[0], o->h[l] = o->h[0], o->n[l] = o->n[0];
    }
}

static lq_status fit_wide(lq_ctx *ctx, const fit_job *f) {
    size_t parts = (size_t)((largest_tile(f->q) + PART - 1) / PART);
    wide_job j = {.f = f, .sums = lq_calloc(parts, sizeof *j.sums), .stats = lq_calloc(parts, sizeof *j.stats)};
    lq_status st = j.sums && j.stats ? LQ_OK : lq_oom(ctx, parts * sizeof *j.sums);
    for (size_t i = 0; i < f->tiles && !st; i++) {
        lq_tile t = tile_at(f, i);
        lq_tile_guess g;
        j.b = box_of(f->q, i);
        j.n = (uint64_t)j.b.width * j.b.height;
        j.parts = (size_t)((j.n + PART - 1) / PART);
        t.wide = &j;
        t.judge = wide_judge;
        t.gather = wide_gather;
        lq_tile_fit(&t, &g);
        put(f, i, g.scale[0], g.zero[0]);
    }
    lq_free(j.sums);
    lq_free(j.stats);
    return st;
}

/* ---- two-level planes ---- */

/* bitsandbytes' dynamic map: for each of seven decades the middles of a linear division of [0.1, 1], of both signs; 0 and 1. */
static void dynamic_map(float map[256]) {
    uint32_t n = 0;
    for (int i = 0; i < 7; i++) {
        uint32_t items = 1u << i;
        float step = (1 - 0.1f) / (float)items, decade = (float)pow(10, i - 6), edge = 0.1f;
        for (uint32_t k = 1; k <= items; k++) { /* from the nearer end, rounded once: as torch.linspace */
            float next = (float)(k < (items + 1) / 2 ? (double)0.1f + (double)step * k : 1 - (double)step * (items - k));
            float v = decade * ((edge + next) / 2);
            map[n++] = v;
            map[n++] = -v;
            edge = next;
        }
    }
    map[n++] = 0;
    map[n++] = 1;
    for (uint32_t i = 1; i < n; i++) /* ascending */
        for (uint32_t k = i; k && map[k - 1] > map[k]; k--) {
            float v = map[k];
            map[k] = map[k - 1];
            map[k - 1] = v;
        }
}

static float normal(float v) { return v >= 0x1p-126f ? v : 1; }

static void parents_of_tables(lq_qtensor *q, const float *loose, size_t n) {
    const lq_plane_desc *d = &q->sch.scale;
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += loose[i];
    q->scale.offset = (float)(sum / (double)n);
    for (size_t i = 0; i < n; i += d->span) {
        float most = 0;
        for (size_t k = i; k < n && k < i + d->span; k++) most = fmaxf(most, fabsf(loose[k] - q->scale.offset));
        ((float *)q->scale.parent)[i / d->span] = normal(most);
    }
}

/* A power of two is exact as a factor and as a divisor: some checkpoints store the one, some the other. The scales below it do not care,
 * E4M3 has the same relative steps wherever they lie. */
static float power_above(float v) {
    uint32_t u = lq_f32_bits(v), down = u & 0xff800000u;
    return lq_bits_f32(u == down ? u : down + 0x800000);
}

void lq_grid_fuse(lq_qtensor *q, float absmax) {
    if (q->sch.scale.dtype == LQ_E4M3 && q->sch.scale.parent == LQ_F32 && absmax > 0)
        *(float *)q->scale.parent = power_above(normal(absmax / (lq_grid_top(&q->sch) * 448)));
}

static lq_status set_parents(lq_ctx *ctx, fit_job *f) {
    lq_qtensor *q = f->q;
    if (q->sch.scale.dtype == LQ_E4M3) {
        float most = 0;
        for (size_t i = 0; i < (size_t)q->rows * q->cols; i++) most = fmaxf(most, fabsf(f->w[i]));
        if (*(float *)q->scale.parent == 0) lq_grid_fuse(q, most);
        if (*(float *)q->scale.parent == 0) *(float *)q->scale.parent = 1;
        return LQ_OK;
    }
    float *map = lq_arena_alloc(q->mem, 256 * sizeof *map);
    if (!map) return lq_oom(ctx, 256 * sizeof *map);
    dynamic_map(map);
    parents_of_tables(q, f->loose, f->tiles);
    q->scale.lut = map;
    return LQ_OK;
}

/* ---- the whole matrix ---- */

static lq_status pass(lq_ctx *ctx, fit_job *f, bool rounded, lq_fit how) {
    f->rounded = rounded;
    f->how = how;
    if (f->wide) return fit_wide(ctx, f);
    lq_parallel_for((f->tiles + LANES - 1) / LANES, fit_lanes, f);
    return LQ_OK;
}

static lq_status fit_planes(lq_ctx *ctx, fit_job *f, lq_fit how) {
    const lq_plane_desc *d = &f->q->sch.scale;
    if (d->parent == LQ_NONE) return pass(ctx, f, true, how);
    if (is_super(d)) return pass(ctx, f, false, how);
    if (d->dtype == LQ_U8) LQ_TRY(pass(ctx, f, false, how));
    LQ_TRY(set_parents(ctx, f));
    if (d->dtype == LQ_E4M3 || how != LQ_FIT_MINMAX) return pass(ctx, f, true, how);
    for (size_t i = 0; i < f->tiles; i++) lq_plane_set(d, &f->q->scale, i, f->loose[i]);
    return LQ_OK;
}

lq_status lq_grid_fit(lq_ctx *ctx, lq_qtensor *q, const float *w, const float *h, lq_fit how) {
    LQ_TRY(lq_grid_accept(ctx, &q->sch, q->cols));
    if (q->sch.scale.dtype == LQ_NONE && q->n_lut && q->sch.grid.bias == LQ_LUT_DATA) return lq_lut_fit(ctx, q, w, h, 0, NULL);
    if (q->sch.scale.dtype == LQ_NONE) return LQ_OK;
    atomic_bool bad = false;
    fit_job f = {.q = q, .w = w, .h = h, .tiles = lq_plane_count(&q->sch.scale, q->rows, q->cols), .bad = &bad};
    f.wide = largest_tile(q) > WIDE;
    f.most = f.wide ? PART / LANES : (uint32_t)largest_tile(q);
    size_t n = (size_t)lq_threads() * 2 * f.most * LANES;
    lq_rounder_init(&f.r, q, 0, 0);
    f.scratch = lq_calloc(n, sizeof(float));
    float *ones = h ? NULL : lq_calloc(q->cols, sizeof(float));
    bool tables = q->sch.scale.dtype == LQ_U8 && !is_super(&q->sch.scale);
    f.loose = tables ? lq_calloc(f.tiles, sizeof(float)) : NULL;
    f.least = lq_gguf_block_type(&q->sch) == LQ_NONE ? 0x1p-14f : 0x1p-24f;
    lq_status st = f.scratch && (h || ones) && (f.loose || !tables) ? LQ_OK : lq_oom(ctx, n * sizeof(float));
    if (!st) {
        for (uint32_t c = 0; ones && c < q->cols; c++) ones[c] = 1;
        if (ones) f.h = ones;
        st = fit_planes(ctx, &f, how);
    }
    if (!st && bad) st = lq_fail(ctx, LQ_ERR_FORMAT, "expected finite weights, found infinity or NaN");
    lq_free(f.loose);
    lq_free(ones);
    lq_free(f.scratch);
    return st;
}
