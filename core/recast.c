/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Planes first, from the source's planes alone; then each weight takes the code that is nearest under them. Where the planes could be carried
 * over that is the code it had; decoding both sides tells. With s, z of the source, k = values of its grid in steps of the new grid:
 *
 *     s' = s / k      CODE: z' = k z + shift      MIN: m' = s z + s' shift      shift = old bias - new bias: codes keep their bits */
#include "core/recast.h"

#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"

#include <string.h>

enum { SLICE = 16 };
static const uint32_t carried = LQ_X_OUTLIERS | LQ_X_LOWRANK | LQ_X_OUTLIER_COLS | LQ_X_PRESCALE; /* added to what codes say, or multiplied */

typedef struct recast {
    const lq_qtensor *q;
    lq_qtensor *out;
    const uint32_t *inverse; /* [cols] stored column of the source for a weight column; NULL: identity */
    float k, shift;
    float *low, *high;       /* grid values that occur per new zero, where fewer bits leave no room for the old range; NULL */
    bool same_grid;
    bool fold;               /* what the source adds to its codes becomes codes */
    float *table;            /* [1 << bits] values of a small new grid that is no INT and has no formula; NULL */
    float *scratch;          /* [slices in flight] */
    lq_loss *part;           /* [slices] */
} recast;

/* ---- loss ---- */

void lq_loss_add(lq_loss *sum, const lq_loss *l) {
    sum->weights += l->weights;
    sum->changed += l->changed;
    sum->square += l->square;
    sum->energy += l->energy;
    if (l->max_abs > sum->max_abs) sum->max_abs = l->max_abs;
}

void lq_loss_measure(lq_loss *sum, const float *was, const float *is, size_t n) {
    sum->weights += n;
    for (size_t i = 0; i < n; i++) {
        sum->energy += (double)was[i] * was[i];
        if (was[i] == is[i]) continue;
        double e = fabs((double)was[i] - is[i]);
        sum->changed++;
        sum->square += e * e;
        if (!(e <= sum->max_abs)) sum->max_abs = e;
    }
}

double lq_loss_rms(const lq_loss *l) { return l->energy > 0 ? sqrt(l->square / l->energy) : 0; }

/* ---- which grids are related ---- */

static bool is_row_table(const lq_scheme *s) { return s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_DATA && s->extra & LQ_X_LUT_PER_ROW; }

static bool same_grid(const lq_scheme *a, const lq_scheme *b) {
    bool table = a->grid.kind == LQ_GRID_LUT && a->grid.bias == LQ_LUT_DATA;
    return a->grid.kind == b->grid.kind && a->grid.bits == b->grid.bits && a->grid.bias == b->grid.bias && (!table || is_row_table(a) == is_row_table(b));
}

/* One scale (and zero) serves a whole row, or nothing does. */
static bool row_params(const lq_scheme *s) {
    bool scale = s->scale.dtype == LQ_NONE || (s->scale.tile_r != LQ_FLAT && !s->scale.tile_c);
    return scale && (s->zero_kind == LQ_ZERO_NONE || (s->zero.tile_r != LQ_FLAT && !s->zero.tile_c));
}

/* A table of small integers. */
static bool is_whole(const lq_grid *g) { return g->kind == LQ_GRID_LUT && (g->bias == LQ_LUT_SIGN || g->bias == LQ_LUT_QUAD); }

static bool is_small(const lq_grid *g) {
    return g->kind == LQ_GRID_INT || g->kind == LQ_GRID_E2M1 || is_whole(g);
}

/* k of the formula above, or false: no code of b stands for one of a. */
static bool related(const lq_scheme *a, const lq_scheme *b, float *k) {
    lq_grid_kind to = b->grid.kind;
    *k = 1;
    if (lq_grid_dtype(to) != LQ_NONE) return b->scale.dtype == LQ_NONE;
    if (a->scale.dtype == LQ_NONE && !same_grid(a, b)) return is_row_table(a) && is_row_table(b) && a->grid.bits <= b->grid.bits;
    if ((a->scale.dtype == LQ_NONE) != (b->scale.dtype == LQ_NONE) && !is_row_table(b)) return false;
    if (same_grid(a, b) && !is_row_table(b)) return true;
    if (is_row_table(b)) return row_params(a) && a->grid.bits <= b->grid.bits && b->scale.dtype == LQ_NONE;
    if (to == LQ_GRID_INT && a->grid.kind == LQ_GRID_E2M1) *k = 2;
    if (to == LQ_GRID_INT || to == LQ_GRID_E2M1 || is_whole(&b->grid)) return is_small(&a->grid);
    return (to == LQ_GRID_E4M3 || to == LQ_GRID_E5M2 || to == LQ_GRID_E3M2) && is_small(&a->grid);
}

static bool plane_eq(const lq_plane_desc *a, const lq_plane_desc *b) {
    return a->dtype == b->dtype && a->sig == b->sig && a->tile_r == b->tile_r && a->tile_c == b->tile_c && a->parent == b->parent && a->span == b->span && a->divides == b->divides;
}

static lq_status check(lq_ctx *ctx, const lq_qtensor *q, const lq_scheme *want, float *k) {
    const lq_scheme *s = &q->sch;
    char a[64], b[64];
    uint32_t new_extras = want->extra & ~s->extra & carried;
    bool ok = related(s, want, k) && !new_extras && (want->act.kind != LQ_ACT_STATIC || s->act.kind == LQ_ACT_STATIC);
    if (want->extra & LQ_X_LOWRANK && want->rank != s->rank) ok = false;
    if (want->scale.dtype == LQ_U8 && want->scale.parent != LQ_NONE && want->grid.kind == LQ_GRID_LUT && !plane_eq(&s->scale, &want->scale)) ok = false; /* its table is the quantizer's */
    if (ok) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s cannot become %s without choosing its codes anew", lq_scheme_name(s, a, sizeof a), lq_scheme_name(want, b, sizeof b));
}

/* ---- planes ---- */

static size_t n_parents(const lq_plane_desc *d, size_t n) { return d->parent == LQ_NONE || !n ? 0 : d->span ? (n + d->span - 1) / d->span : 1; }

static bool plane_copy(lq_arena *mem, const lq_plane_desc *d, const lq_plane *from, lq_plane *to, size_t n) {
    if (n) memcpy(to->v, from->v, n * lq_dtypes[d->dtype].bytes);
    if (n_parents(d, n)) memcpy(to->parent, from->parent, n_parents(d, n) * lq_dtypes[d->parent].bytes);
    to->offset = from->offset;
    if (!from->lut) return true;
    float *lut = lq_arena_alloc(mem, 256 * sizeof *lut);
    if (lut) memcpy(lut, from->lut, 256 * sizeof *lut);
    return (to->lut = lut) != NULL;
}

static void parent_set(const lq_plane_desc *d, lq_plane *p, size_t i, float v) {
    lq_plane_desc top = {.dtype = d->parent};
    lq_plane up = {.v = p->parent};
    lq_plane_set(&top, &up, i, v);
}

static float child_most(const lq_plane_desc *d) {
    uint32_t bits = d->sig && d->sig < 8 ? d->sig : 8;
    return d->dtype == LQ_E4M3 ? 448 : d->dtype == LQ_U8 ? (float)((1u << bits) - 1) : d->dtype == LQ_I8 ? (float)((1u << (bits - 1)) - 1) : INFINITY;
}

/* The elements [from, to) under one parent that is this factor; did all keep their values? */
static bool set_under(const lq_plane_desc *d, lq_plane *p, const float *v, size_t from, size_t to, float parent) {
    bool exact = true;
    parent_set(d, p, d->span ? from / d->span : 0, d->divides && parent != 0 ? 1 / parent : parent);
    for (size_t i = from; i < to; i++) {
        lq_plane_set(d, p, i, v[i]);
        exact = exact && lq_plane_get(d, p, i) == v[i] && (v[i] == 0 || fabsf(v[i] / parent) <= child_most(d));
    }
    return exact;
}

static float power_below(float v) {
    int e;
    frexpf(v, &e);
    return ldexpf(1, e - 1);
}

/* A second level is not unique: the largest value, the smallest, a power of two; else the largest child takes the largest value. */
static void set_family(const lq_plane_desc *d, lq_plane *p, const float *v, size_t from, size_t to) {
    float most = 0, least = 0;
    for (size_t i = from; i < to; i++) {
        float a = fabsf(v[i]);
        if (a > most) most = a;
        if (a > 0 && (least == 0 || a < least)) least = a;
    }
    if (most == 0 && set_under(d, p, v, from, to, 0)) return;
    const float tries[] = {most, least, power_below(most), power_below(most) / 256, power_below(least)};
    for (size_t i = 0; i < sizeof tries / sizeof *tries; i++)
        if (set_under(d, p, v, from, to, tries[i])) return;
    set_under(d, p, v, from, to, child_most(d) < INFINITY ? most / child_most(d) : most);
}

static void plane_store(const lq_plane_desc *d, lq_plane *p, const float *v, size_t n) {
    size_t span = d->parent == LQ_NONE ? 0 : d->span ? d->span : n;
    for (size_t i = 0; i < n && !span; i++) lq_plane_set(d, p, i, v[i]);
    for (size_t i = 0; i < n && span; i += span) set_family(d, p, v, i, i + span < n ? i + span : n);
}

/* ---- what the source's planes say at a place ---- */

typedef struct params { float s, z, m; } params; /* m = s z */

static params params_at(const lq_qtensor *q, uint32_t r, uint32_t c) {
    const lq_scheme *s = &q->sch;
    params p = {1, 0, 0};
    float zero = 0;
    if (s->scale.dtype != LQ_NONE) p.s = lq_plane_get(&s->scale, &q->scale, lq_plane_index(&s->scale, q->cols, r, c));
    if (s->zero_kind != LQ_ZERO_NONE) zero = lq_plane_get(&s->zero, &q->zero, lq_plane_index(&s->zero, q->cols, r, c));
    bool min = s->zero_kind == LQ_ZERO_MIN;
    p.z = !min ? zero : p.s != 0 ? zero / p.s : 0;
    p.m = min ? zero : p.s * zero;
    return p;
}

static uint32_t gcd(uint32_t a, uint32_t b) {
    while (b) {
        uint32_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static uint32_t plane_step(const lq_plane_desc *d, uint32_t step, uint32_t cols) { return d->dtype == LQ_NONE || !d->tile_c ? step : gcd(step ? step : cols, d->tile_c); }

/* Columns in which no plane changes. */
static uint32_t step_of(const recast *j) {
    const lq_scheme *a = &j->q->sch, *b = &j->out->sch;
    if (j->inverse) return 1;
    uint32_t s = plane_step(&a->scale, j->q->cols, j->q->cols);
    if (a->zero_kind != LQ_ZERO_NONE) s = plane_step(&a->zero, s, j->q->cols);
    s = plane_step(&b->scale, s, j->q->cols);
    return b->zero_kind != LQ_ZERO_NONE ? plane_step(&b->zero, s, j->q->cols) : s;
}

/* Zero of the new scheme: the old one moved so that codes keep their bits. */
static float shift_at(const recast *j, size_t at) {
    const lq_grid *g = &j->out->sch.grid;
    if (!j->low) return j->shift;
    float code0 = j->k * j->low[at] + j->shift + (float)g->bias, code1 = j->k * j->high[at] + j->shift + (float)g->bias;
    return code0 >= 0 && code1 <= (float)((1u << g->bits) - 1) ? j->shift : j->shift - code0;
}

static float zero_of(const recast *j, const params *p, size_t at) {
    float step = p->s / j->k, shift = shift_at(j, at);
    return j->out->sch.zero_kind == LQ_ZERO_MIN ? p->m + step * shift : j->k * p->z + shift;
}

static bool narrows(const lq_scheme *a, const lq_scheme *b) {
    return b->zero_kind != LQ_ZERO_NONE && b->grid.kind == LQ_GRID_INT && is_small(&a->grid) && b->grid.bits < a->grid.bits;
}

static void find_range(const recast *j, size_t n) {
    const lq_qtensor *q = j->q;
    for (size_t i = 0; i < n; i++) j->low[i] = INFINITY, j->high[i] = -INFINITY;
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) {
            float a = lq_grid_value(q, r, lq_code_get(q->codes + (size_t)r * q->row_bytes, q->sch.grid.bits, j->inverse ? j->inverse[c] : c));
            size_t at = lq_plane_index(&j->out->sch.zero, q->cols, r, c);
            if (a < j->low[at]) j->low[at] = a;
            if (a > j->high[at]) j->high[at] = a;
        }
}

static float clamp_zero(const lq_scheme *s, float z) {
    if (s->zero_kind != LQ_ZERO_CODE || s->grid.kind != LQ_GRID_INT || s->zero.dtype != LQ_U8) return z;
    float most = (float)((1u << s->grid.bits) - 1);
    return z < 0 ? 0 : z > most ? most : z;
}

/* Values of the new planes; where several old ones meet in a tile, the largest scale and its zero. */
static lq_status gather(lq_ctx *ctx, const recast *j, float *scale, float *zero, uint8_t *set) {
    const lq_scheme *b = &j->out->sch;
    uint32_t rows = j->q->rows, cols = j->q->cols, step = step_of(j);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < cols; c += step) {
            params p = params_at(j->q, r, j->inverse ? j->inverse[c] : c);
            size_t si = b->scale.dtype != LQ_NONE ? lq_plane_index(&b->scale, cols, r, c) : 0;
            size_t zi = b->zero_kind != LQ_ZERO_NONE ? lq_plane_index(&b->zero, cols, r, c) : 0;
            float s = p.s / j->k;
            bool first = !(set[si] & 1);
            if (first || fabsf(s) > fabsf(scale[si])) {
                scale[si] = s;
                set[si] |= 1;
                set[zi] &= (uint8_t)~2u;
            }
            if (b->zero_kind != LQ_ZERO_NONE && !(set[zi] & 2)) zero[zi] = clamp_zero(b, zero_of(j, &p, zi)), set[zi] |= 2;
        }
    return lq_check_cancel(ctx);
}

/* Do codes keep their bits under every zero, and zeros theirs? */
static bool in_place(const recast *j, size_t n) {
    if (j->low && j->out->sch.zero_kind == LQ_ZERO_CODE) return false;
    for (size_t i = 0; i < n; i++)
        if (shift_at(j, i) != 0) return false;
    return true;
}

static lq_status ranges(lq_ctx *ctx, recast *j, size_t n) {
    if (!narrows(&j->q->sch, &j->out->sch)) return LQ_OK;
    j->low = LQ_NEWN(float, n + 1);
    j->high = LQ_NEWN(float, n + 1);
    if (!j->low || !j->high) return lq_oom(ctx, 8 * n);
    find_range(j, n);
    return LQ_OK;
}

/* whole: the scale plane was copied, what is left is the zero plane. */
static lq_status planes_from_values(lq_ctx *ctx, const recast *j, bool whole, size_t ns, size_t nz) {
    float *scale = LQ_NEWN(float, ns + 1), *zero = LQ_NEWN(float, nz + 1);
    uint8_t *set = lq_alloc((ns > nz ? ns : nz) + 1);
    lq_status st = scale && zero && set ? gather(ctx, j, scale, zero, set) : lq_oom(ctx, 4 * (ns + nz));
    if (!st && ns && !whole) plane_store(&j->out->sch.scale, &j->out->scale, scale, ns);
    if (!st && nz) plane_store(&j->out->sch.zero, &j->out->zero, zero, nz);
    lq_free(scale);
    lq_free(zero);
    lq_free(set);
    return st;
}

static lq_status planes(lq_ctx *ctx, recast *j) {
    const lq_scheme *a = &j->q->sch, *b = &j->out->sch;
    size_t ns = lq_plane_count(&b->scale, j->q->rows, j->q->cols), nz = b->zero_kind != LQ_ZERO_NONE ? lq_plane_count(&b->zero, j->q->rows, j->q->cols) : 0;
    lq_status st;
    LQ_GO(ranges(ctx, j, nz));
    bool whole = j->k == 1 && !j->inverse && plane_eq(&a->scale, &b->scale);
    bool same_zero = whole && nz && a->zero_kind == b->zero_kind && plane_eq(&a->zero, &b->zero) && in_place(j, nz);
    bool copied = !whole || plane_copy(j->out->mem, &b->scale, &j->q->scale, &j->out->scale, ns);
    if (same_zero) copied = copied && plane_copy(j->out->mem, &b->zero, &j->q->zero, &j->out->zero, nz);
    if (!copied) LQ_GO(lq_oom(ctx, 1024));
    if (!whole || (nz && !same_zero)) st = planes_from_values(ctx, j, whole, ns, nz);
done:
    lq_free(j->low);
    lq_free(j->high);
    return st;
}

/* ---- tables, extras, order of columns ---- */

static float round_f16(float v) { return lq_f16_f32(lq_f32_f16(v)); }

static void fill_tables(const recast *j) {
    const lq_qtensor *q = j->q;
    lq_qtensor *out = j->out;
    uint32_t had = 1u << q->sch.grid.bits, n = 1u << out->sch.grid.bits;
    for (uint32_t r = 0; r < out->n_lut; r++) {
        params p = params_at(q, r, 0);
        float *lut = out->lut + (size_t)r * n;
        for (uint32_t i = 0; i < n; i++) {
            float a = lq_grid_value(q, r, i < had ? i : had - 1);
            lut[i] = round_f16(q->sch.zero_kind == LQ_ZERO_MIN ? p.s * a - p.m : p.s * (a - p.z));
        }
    }
}

static lq_status copy_extras(lq_ctx *ctx, const lq_qtensor *q, lq_qtensor *out) {
    uint32_t extra = out->sch.extra;
    if (extra & LQ_X_OUTLIERS) {
        LQ_TRY(lq_qtensor_outliers(ctx, out, q->outliers.n));
        memcpy(out->outliers.row, q->outliers.row, ((size_t)q->rows + 1) * 4);
        memcpy(out->outliers.col, q->outliers.col, (size_t)q->outliers.n * 4);
        memcpy(out->outliers.v, q->outliers.v, (size_t)q->outliers.n * 2);
    }
    if (extra & LQ_X_OUTLIER_COLS) {
        LQ_TRY(lq_qtensor_outlier_cols(ctx, out, q->outlier_cols.n));
        memcpy(out->outlier_cols.idx, q->outlier_cols.idx, (size_t)q->outlier_cols.n * 4);
        memcpy(out->outlier_cols.v, q->outlier_cols.v, (size_t)q->outlier_cols.n * q->rows * 2);
    }
    if (extra & LQ_X_PRESCALE) memcpy(out->prescale, q->prescale, (size_t)4 * q->cols);
    if (extra & LQ_X_LOWRANK) {
        memcpy(out->lr.a, q->lr.a, (size_t)2 * q->rows * out->sch.rank);
        memcpy(out->lr.b, q->lr.b, (size_t)2 * q->cols * out->sch.rank);
    }
    if (q->bias && (out->bias = lq_arena_alloc(out->mem, (size_t)q->rows * 4))) memcpy(out->bias, q->bias, (size_t)q->rows * 4);
    out->err_w = q->err_w;
    out->err_h = q->err_h;
    if (out->sch.act.kind == LQ_ACT_STATIC) out->act_scale = q->act_scale;
    return q->bias && !out->bias ? lq_oom(ctx, (size_t)q->rows * 4) : LQ_OK;
}

static lq_status order(lq_ctx *ctx, recast *j) {
    const lq_qtensor *q = j->q;
    uint32_t *inverse;
    if (j->out->perm)
        for (uint32_t c = 0; c < q->cols; c++) j->out->perm[c] = q->perm ? q->perm[c] : c;
    if (!q->perm || j->out->perm) return LQ_OK;
    if (!(inverse = lq_arena_alloc(j->out->mem, (size_t)q->cols * 4))) return lq_oom(ctx, (size_t)q->cols * 4);
    for (uint32_t c = 0; c < q->cols; c++) inverse[q->perm[c]] = c;
    j->inverse = inverse;
    return LQ_OK;
}

/* ---- codes ---- */

static uint32_t nearest(const float *table, uint32_t n, double x) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (fabs(table[i] - x) < fabs(table[best] - x)) best = i;
    return best;
}

static uint32_t to_int(const lq_grid *g, double x) {
    double v = rint(x + g->bias), most = (double)((1u << g->bits) - 1);
    return v < 0 ? 0 : v > most ? (uint32_t)most : (uint32_t)v;
}

/* What the new scheme makes of code `code` at a place with these planes. */
static float value(const recast *j, uint32_t r, uint32_t code, const params *p) {
    float a = lq_grid_value(j->out, r, code);
    return j->out->sch.zero_kind == LQ_ZERO_MIN ? p->s * a - p->m : p->s * (a - p->z);
}

/* had: the source's code where both grids are the same, else UINT32_MAX. */
static uint32_t choose(const recast *j, uint32_t r, float w, uint32_t had, const params *p) {
    const lq_grid *g = &j->out->sch.grid;
    bool min = j->out->sch.zero_kind == LQ_ZERO_MIN;
    switch (g->kind) {
    case LQ_GRID_F32: return lq_f32_bits(w);
    case LQ_GRID_BF16: return lq_f32_bf16(w);
    case LQ_GRID_F16: return lq_f32_f16(w);
    default: break;
    }
    if (had != UINT32_MAX && (p->s == 0 || value(j, r, had, p) == w)) return had;
    double x = p->s == 0 ? 0 : min ? ((double)w + p->m) / p->s : (double)w / p->s + p->z;
    if (g->kind == LQ_GRID_INT) return to_int(g, x);
    if (g->kind == LQ_GRID_E4M3) return lq_f32_e4m3((float)x);
    return nearest(j->table ? j->table : j->out->lut + ((size_t)(j->out->n_lut > 1 ? r : 0) << g->bits), 1u << g->bits, x);
}

static void source_row(const recast *j, uint32_t r, float *w) {
    const lq_qtensor *q = j->q;
    if (j->fold) {
        lq_qtensor_decode_row(q, r, w);
        return;
    }
    for (uint32_t c = 0; c < q->cols; c++) w[q->perm ? q->perm[c] : c] = lq_qtensor_code_weight(q, r, c);
}

static void one_row(const recast *j, uint32_t r, float *w, float *again, lq_loss *l) {
    const lq_qtensor *q = j->q;
    lq_qtensor *out = j->out;
    uint32_t step = step_of(j), bits = out->sch.grid.bits;
    params p = {1, 0, 0};
    source_row(j, r, w);
    for (uint32_t c = 0; c < q->cols; c++) { /* stored column of out */
        uint32_t from = j->inverse ? j->inverse[c] : c;
        if (c % step == 0) p = params_at(out, r, c);
        uint32_t had = j->same_grid ? lq_code_get(q->codes + (size_t)r * q->row_bytes, bits, from) : UINT32_MAX;
        lq_code_put(out->codes + (size_t)r * out->row_bytes, bits, c, choose(j, r, w[out->perm ? out->perm[c] : c], had, &p));
    }
    if (!j->fold) lq_qtensor_decode_row(q, r, w);
    lq_qtensor_decode_row(out, r, again);
    lq_loss_measure(l, w, again, q->cols);
}

static void slice(void *arg, size_t i) {
    recast *j = arg;
    float *w = j->scratch + (size_t)lq_worker() * 2 * j->q->cols;
    for (uint32_t r = (uint32_t)i * SLICE; r < j->q->rows && r < (i + 1) * SLICE; r++) one_row(j, r, w, w + j->q->cols, &j->part[i]);
}

static lq_status codes(lq_ctx *ctx, recast *j, lq_loss *loss) {
    size_t n = ((size_t)j->q->rows + SLICE - 1) / SLICE;
    const lq_grid *g = &j->out->sch.grid;
    bool tabled = g->kind == LQ_GRID_E2M1 || g->kind == LQ_GRID_E3M2 || g->kind == LQ_GRID_E5M2;
    j->part = LQ_NEWN(lq_loss, n);
    j->scratch = lq_calloc((size_t)lq_threads() * 2, (size_t)j->q->cols * sizeof(float));
    if (tabled) j->table = lq_calloc((size_t)1 << g->bits, sizeof(float));
    lq_status st = j->part && j->scratch && (j->table || !tabled) ? LQ_OK : lq_oom(ctx, n * sizeof(lq_loss));
    for (uint32_t i = 0; tabled && !st && i < 1u << g->bits; i++) {
        float a = lq_grid_value(j->out, 0, i);
        j->table[i] = a == a ? a : INFINITY;
    }
    if (!st) lq_parallel_for(n, slice, j);
    for (size_t i = 0; i < n && !st; i++) lq_loss_add(loss, &j->part[i]);
    lq_free(j->part);
    lq_free(j->scratch);
    lq_free(j->table);
    return st;
}

static float shift_of(const lq_grid *from, const lq_grid *to) {
    if (to->kind != LQ_GRID_INT) return 0;
    return from->kind == LQ_GRID_INT ? (float)(from->bias - to->bias) : (float)((1 << (to->bits - 1)) - to->bias);
}

static lq_status with_step(lq_ctx *ctx, const lq_qtensor *q, const lq_scheme *want, float k, lq_qtensor *out, lq_loss *loss) {
    recast j = {.q = q, .out = out, .k = k};
    lq_status st;
    *loss = (lq_loss){0};
    LQ_TRY(lq_qtensor_init(ctx, out, want, q->slot, q->rows, q->cols));
    j.shift = shift_of(&q->sch.grid, &want->grid);
    j.same_grid = same_grid(&q->sch, want);
    j.fold = !(want->extra & carried);
    LQ_GO(order(ctx, &j));
    LQ_GO(copy_extras(ctx, q, out));
    LQ_GO(planes(ctx, &j));
    if (want->grid.kind == LQ_GRID_LUT && want->grid.bias == LQ_LUT_DATA) {
        if (out->n_lut == q->n_lut && j.same_grid) memcpy(out->lut, q->lut, ((size_t)4 << want->grid.bits) * q->n_lut);
        else fill_tables(&j);
    }
    st = codes(ctx, &j, loss);
done:
    if (st) lq_qtensor_free(out);
    return st;
}

lq_status lq_recast(lq_ctx *ctx, const lq_qtensor *q, const lq_scheme *want, lq_qtensor *out, lq_loss *loss) {
    float k;
    lq_loss half;
    lq_qtensor other;
    LQ_TRY(check(ctx, q, want, &k));
    LQ_TRY(with_step(ctx, q, want, k, out, loss));
    bool in = q->sch.grid.kind == LQ_GRID_INT && want->grid.kind == LQ_GRID_E2M1, of = q->sch.grid.kind == LQ_GRID_E2M1 && want->grid.kind == LQ_GRID_INT;
    if (!loss->changed || !(in || of)) return LQ_OK;
    lq_status st = with_step(ctx, q, want, in ? 0.5f : 1, &other, &half); /* integers may count E2M1's halves or its wholes */
    if (!st && half.square < loss->square) {
        lq_qtensor worse = *out;
        *out = other;
        *loss = half;
        other = worse;
    }
    if (!st) lq_qtensor_free(&other);
    else lq_qtensor_free(out);
    return st;
}
