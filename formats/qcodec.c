/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A qtensor as bytes, version 2, little-endian, no padding between the parts:
 *
 *     0  "LQQT"            4  u32 version = 2
 *     8  scheme, 60 bytes:
 *          u8 grid kind, u8 bits, u8 vec, u8 zero kind, i32 bias
 *          scale, zero: u8 dtype, u8 sig, u8 parent, u8 divides, u32 tile_r, u32 tile_c, u32 span
 *          act: u8 kind, u8 dtype, u8 scope, u8 0, u32 tile, f32 outlier;  u32 extra, u16 rank, u16 sparse
 *    68  slot: i32 block, u16 role, i16 expert
 *    76  u32 rows, u32 cols   84  f64 err_w, f64 err_h
 *   100  u32 flags (1 bias, 2 scale table, 4 zero table), u32 n_lut   108  f32 scale offset, f32 zero offset
 *   116  f32 act_scale, u32 sparse values, u32 kept columns
 *   128  codes: rows x ceil(cols * bits / 8), the canonical bitstream, unused bits zero
 *        scale elements, scale parents, [f32 x 256 scale table], the same for zero
 *        f16 x (n_lut << bits) code table (a fixed table is named, not stored), u32 x cols perm (LQ_X_PERM), f32 x cols (LQ_X_PRESCALE)
 *        LQ_X_OUTLIERS: u32 x (rows + 1) row, u32 x n col, f16 x n;  LQ_X_OUTLIER_COLS: u32 x n index, f16 x rows x n
 *        LQ_X_LOWRANK: f16 x rows x rank, f16 x rank x cols;  [f32 x rows bias]
 *
 * The length follows from the first 128 bytes, so it is checked before anything is allocated. dtype ids are their own
 * (disk_dtypes), kinds are the enums. */
#include "formats/qcodec.h"

#include "core/num.h"
#include "core/pack.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "planes are copied as they lie in memory");
_Static_assert(LQ_GRID_E2M1 == 1 && LQ_GRID_LUT == 5 && LQ_GRID_F32 == 8 && LQ_ZERO_MIN == 2 && LQ_ACT_STATIC == 2, "ids on disk");
_Static_assert(LQ_LUT_DATA == 0 && LQ_LUT_NF4 == 1 && LQ_LUT_FP4 == 2 && LQ_LUT_SIGN == 3 && LQ_LUT_IQ4 == 4 && LQ_LUT_QUAD == 5, "ids on disk");

enum { HEAD = 128, VERSION = 2, TABLE = 256, RANK_MAX = 1024, F_BIAS = 1, F_SCALE_TABLE = 2, F_ZERO_TABLE = 4 };
enum { EXTRAS = LQ_X_PERM | LQ_X_PRESCALE | LQ_X_LUT_PER_ROW | LQ_X_OUTLIERS | LQ_X_OUTLIER_COLS | LQ_X_LOWRANK };
static const lq_dtype disk_dtypes[] = {LQ_NONE, LQ_F32, LQ_F16, LQ_BF16, LQ_E4M3, LQ_E8M0, LQ_U8, LQ_I8, LQ_E5M2, LQ_BOOL};
enum { DISK_DTYPES = sizeof disk_dtypes / sizeof *disk_dtypes };

static uint8_t dtype_id(lq_dtype t) {
    for (uint8_t i = 0; i < DISK_DTYPES; i++)
        if (disk_dtypes[i] == t) return i;
    return DISK_DTYPES;
}

/* -- scheme ---------------------------------------------------------------------------------------------------------- */

static bool is_plane_dtype(lq_dtype t) { return dtype_id(t) < DISK_DTYPES && t != LQ_E5M2 && t != LQ_BOOL; }

static lq_status plane_check(lq_ctx *ctx, const char *what, const lq_plane_desc *d, uint32_t rows, uint32_t cols) {
    if (!is_plane_dtype(d->dtype)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%ss of type %s", what, lq_dtypes[d->dtype].name);
    if (d->divides && d->parent == LQ_NONE) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%ss divided by nothing", what);
    if (d->parent != LQ_NONE && d->parent != LQ_F32 && d->parent != LQ_F16 && d->parent != LQ_BF16)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "second-level %ss of type %s; F32, F16 and BF16 are known", what, lq_dtypes[d->parent].name);
    bool whole = d->dtype == LQ_U8 || d->dtype == LQ_I8, computed = d->dtype == LQ_F32 && d->parent == LQ_NONE && (d->sig == LQ_SIG_127TH || d->sig == LQ_SIG_INVERSE);
    if (d->sig > (whole ? 8 : 24) && !computed) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%ss of %u significant bits; at most %d", what, d->sig, whole ? 8 : 24);
    if (d->dtype == LQ_NONE) return LQ_OK;
    bool block = d->tile_r > 1 && d->tile_c; /* may be larger than the matrix */
    if (d->tile_r == LQ_FLAT ? !d->tile_c : !block && (d->tile_r > rows || d->tile_c > cols))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%ss for tiles of %u x %u in a matrix of %u x %u", what, d->tile_r, d->tile_c, rows, cols);
    return LQ_OK;
}

static bool is_float(lq_grid_kind k) { return k == LQ_GRID_F16 || k == LQ_GRID_BF16 || k == LQ_GRID_F32; }

static bool bias_ok(const lq_grid *g) {
    if (g->kind == LQ_GRID_INT) return g->bias >= -65536 && g->bias <= 65536;
    if (g->kind != LQ_GRID_LUT) return g->bias == 0;
    static const uint8_t bits[LQ_LUT_N] = {0, 4, 4, 1, 4, 2};
    return g->bias == LQ_LUT_DATA || (g->bias > 0 && g->bias < LQ_LUT_N && g->bits == bits[g->bias]);
}

static lq_status grid_check(lq_ctx *ctx, const lq_grid *g) {
    static const struct { uint8_t lo, hi; } bits[] = {{1, 16}, {4, 4}, {6, 6}, {8, 8}, {8, 8}, {1, 16}, {16, 16}, {16, 16}, {32, 32}};
    if (g->kind > LQ_GRID_F32) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "unknown grid kind %d", (int)g->kind);
    if (g->bits < bits[g->kind].lo || g->bits > bits[g->kind].hi)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u-bit codes; this grid takes %u to %u", g->bits, bits[g->kind].lo, bits[g->kind].hi);
    if (g->vec != 1) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "codes for %u weights each; only 1 is known", g->vec);
    if (!bias_ok(g)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "code bias %d of a grid of kind %d with %u bits", (int)g->bias, (int)g->kind, g->bits);
    return LQ_OK;
}

static lq_status act_check(lq_ctx *ctx, const lq_act *a) {
    if (a->kind > LQ_ACT_STATIC) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "unknown kind of activations %d", (int)a->kind);
    if (dtype_id(a->dtype) == DISK_DTYPES || !isfinite(a->outlier))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "activations of type %s, threshold %g", lq_dtypes[a->dtype].name, (double)a->outlier);
    return LQ_OK;
}

static lq_status extra_check(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    bool sparse = s->extra & LQ_X_OUTLIERS, kept = s->extra & LQ_X_OUTLIER_COLS, low = s->extra & LQ_X_LOWRANK;
    if (s->extra & ~(uint32_t)EXTRAS) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "extras 0x%x; those of 0x%x are known", (unsigned)s->extra, (unsigned)EXTRAS);
    if (s->extra & LQ_X_LUT_PER_ROW && (s->grid.kind != LQ_GRID_LUT || s->grid.bias != LQ_LUT_DATA))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a table per row on a grid that has no tables of its own");
    if (s->extra & LQ_X_PRESCALE && (s->extra != LQ_X_PRESCALE || s->act.kind != LQ_ACT_NONE))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a factor per column beside other extras (0x%x) or rounded activations", (unsigned)s->extra);
    if (low != (s->rank > 0) || s->rank > RANK_MAX || s->rank > rows || s->rank > cols)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "low rank %u of a matrix of %u x %u; at most %d", s->rank, rows, cols, RANK_MAX);
    if ((sparse || kept) != (s->sparse > 0) || (sparse && s->sparse > 10000) || (sparse && kept))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a limit of %u for %s", s->sparse, sparse && kept ? "both sparse values and kept columns" : sparse ? "sparse values in 10000" : "kept columns");
    return LQ_OK;
}

lq_status lq_scheme_check(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    if (!rows || !cols) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a matrix of %u x %u", rows, cols);
    LQ_TRY(grid_check(ctx, &s->grid));
    LQ_TRY(plane_check(ctx, "scale", &s->scale, rows, cols));
    LQ_TRY(plane_check(ctx, "zero", &s->zero, rows, cols));
    if (s->zero_kind > LQ_ZERO_MIN) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "unknown zero kind %d", (int)s->zero_kind);
    if ((s->zero_kind != LQ_ZERO_NONE) != (s->zero.dtype != LQ_NONE))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "the zero kind and the zero plane (%s) disagree", lq_dtypes[s->zero.dtype].name);
    if (is_float(s->grid.kind) && (s->scale.dtype != LQ_NONE || s->zero.dtype != LQ_NONE))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scales or zeros on a grid of floats");
    LQ_TRY(act_check(ctx, &s->act));
    return extra_check(ctx, s, rows, cols);
}

static uint8_t *put(uint8_t *p, const void *v, size_t n) { return (uint8_t *)memcpy(p, v, n) + n; }
static const uint8_t *get(const uint8_t *p, void *v, size_t n) {
    memcpy(v, p, n);
    return p + n;
}

static uint8_t *put_plane(uint8_t *p, const lq_plane_desc *d) {
    uint8_t head[4] = {dtype_id(d->dtype), d->sig, dtype_id(d->parent), d->divides};
    uint32_t tail[3] = {d->tile_r, d->tile_c, d->span};
    return put(put(p, head, 4), tail, 12);
}

void lq_scheme_encode(const lq_scheme *s, uint8_t out[LQ_SCHEME_BYTES]) {
    uint8_t grid[4] = {(uint8_t)s->grid.kind, s->grid.bits, s->grid.vec, (uint8_t)s->zero_kind};
    uint8_t act[4] = {(uint8_t)s->act.kind, dtype_id(s->act.dtype), s->act.scope, 0};
    uint8_t *p = put(put(out, grid, 4), &s->grid.bias, 4);
    p = put_plane(put_plane(p, &s->scale), &s->zero);
    p = put(put(put(p, act, 4), &s->act.tile, 4), &s->act.outlier, 4);
    put(put(put(p, &s->extra, 4), &s->rank, 2), &s->sparse, 2);
}

static bool dtype_from(uint8_t id, lq_dtype *out) {
    *out = id < DISK_DTYPES ? disk_dtypes[id] : LQ_NONE;
    return id < DISK_DTYPES;
}

static const uint8_t *get_plane(const uint8_t *p, lq_plane_desc *d, bool *ok) {
    *ok &= dtype_from(p[0], &d->dtype) && dtype_from(p[2], &d->parent) && p[3] <= 1;
    d->sig = p[1];
    d->divides = p[3];
    p = get(p + 4, &d->tile_r, 4);
    return get(get(p, &d->tile_c, 4), &d->span, 4);
}

lq_status lq_scheme_decode(lq_ctx *ctx, const uint8_t in[LQ_SCHEME_BYTES], lq_scheme *s) {
    *s = (lq_scheme){.grid = {.bits = in[1], .vec = in[2]}};
    bool ok = in[0] <= LQ_GRID_F32 && in[3] <= LQ_ZERO_MIN;
    s->grid.kind = ok ? (lq_grid_kind)in[0] : LQ_GRID_INT;
    s->zero_kind = ok ? (lq_zero_kind)in[3] : LQ_ZERO_NONE;
    const uint8_t *p = get(in + 4, &s->grid.bias, 4);
    p = get_plane(get_plane(p, &s->scale, &ok), &s->zero, &ok);
    ok &= p[0] <= LQ_ACT_STATIC && dtype_from(p[1], &s->act.dtype) && !p[3];
    s->act.kind = ok ? (lq_act_kind)p[0] : LQ_ACT_NONE;
    s->act.scope = p[2];
    p = get(get(p + 4, &s->act.tile, 4), &s->act.outlier, 4);
    get(get(get(p, &s->extra, 4), &s->rank, 2), &s->sparse, 2);
    return ok ? LQ_OK : lq_fail(ctx, LQ_ERR_FORMAT, "a scheme of kinds this version does not know");
}

/* -- lengths --------------------------------------------------------------------------------------------------------- */

static size_t code_bytes(const lq_scheme *s, uint32_t cols) { return ((size_t)cols * s->grid.bits + 7) / 8; }

static size_t parent_count(const lq_plane_desc *d, size_t n) {
    if (d->parent == LQ_NONE || !n) return 0;
    return d->span ? (n + d->span - 1) / d->span : 1;
}

/* total += count * size; false when it leaves 63 bits */
static bool add(uint64_t *total, uint64_t count, uint64_t size) {
    uint64_t n;
    return lq_mul_ok(count, size, &n) && lq_add_ok(*total, n, total) && *total < (uint64_t)1 << 63;
}

static bool add_plane(uint64_t *total, const lq_plane_desc *d, uint32_t rows, uint32_t cols, bool table) {
    size_t n = lq_plane_count(d, rows, cols);
    return add(total, n, lq_dtypes[d->dtype].bytes) && add(total, parent_count(d, n), lq_dtypes[d->parent].bytes) &&
           add(total, table ? TABLE : 0, sizeof(float));
}

static size_t table_entries(const lq_scheme *s, uint32_t rows) { /* of the code table that is stored */
    if (s->grid.kind != LQ_GRID_LUT || s->grid.bias != LQ_LUT_DATA) return 0;
    return (size_t)(s->extra & LQ_X_LUT_PER_ROW ? rows : 1) << s->grid.bits;
}

typedef struct parts { uint32_t flags, sparse, kept; } parts; /* what the length depends on besides scheme and shape */

static bool add_extras(uint64_t *n, const lq_scheme *s, uint32_t rows, uint32_t cols, const parts *p) {
    bool ok = add(n, s->extra & LQ_X_PERM ? cols : 0, 4);
    if (s->extra & LQ_X_PRESCALE) ok = ok && add(n, cols, 4);
    if (s->extra & LQ_X_OUTLIERS) ok = ok && add(n, (uint64_t)rows + 1, 4) && add(n, p->sparse, 6);
    if (s->extra & LQ_X_OUTLIER_COLS) ok = ok && add(n, p->kept, 4) && add(n, (uint64_t)p->kept * rows, 2);
    return ok && add(n, s->extra & LQ_X_LOWRANK ? ((uint64_t)rows + cols) * s->rank : 0, 2);
}

static uint64_t encoded_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols, const parts *p) {
    uint64_t n = HEAD;
    bool ok = add(&n, rows, code_bytes(s, cols)) && add_plane(&n, &s->scale, rows, cols, p->flags & F_SCALE_TABLE) &&
              add_plane(&n, &s->zero, rows, cols, p->flags & F_ZERO_TABLE) && add(&n, table_entries(s, rows), 2) &&
              add_extras(&n, s, rows, cols, p) && add(&n, p->flags & F_BIAS ? rows : 0, sizeof(float));
    return ok ? n : 0;
}

uint64_t lq_qtensor_encoded_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols) { return encoded_bytes(s, rows, cols, &(parts){0}); }

/* -- values ---------------------------------------------------------------------------------------------------------- */

/* Elements of U8 and I8 planes keep to the bits their scheme says they use. */
static lq_status whole_check(lq_ctx *ctx, const char *what, const lq_plane_desc *d, const lq_plane *p, size_t n, lq_status bad) {
    if ((d->dtype != LQ_U8 && d->dtype != LQ_I8) || !d->sig || d->sig == 8) return LQ_OK;
    int low = d->dtype == LQ_I8 ? -(1 << (d->sig - 1)) : 0, top = low + (1 << d->sig) - 1;
    for (size_t i = 0; i < n; i++) {
        int v = d->dtype == LQ_I8 ? ((const int8_t *)p->v)[i] : ((const uint8_t *)p->v)[i];
        if (v < low || v > top) return lq_fail(ctx, bad, "%s %zu is stored as %d, expected %d to %d", what, i, v, low, top);
    }
    return LQ_OK;
}

static lq_status unrounded(lq_ctx *ctx, const lq_plane_desc *d, size_t i, float v, lq_status bad) {
    if (d->sig <= 24) return lq_fail(ctx, bad, "scale %zu (%g) has more than %u significant bits", i, (double)v, d->sig);
    return lq_fail(ctx, bad, "scale %zu (%.9g) is no %s", i, (double)v, d->sig == LQ_SIG_127TH ? "F32 number divided by 127" : "reciprocal of a positive F32 number");
}

static lq_status scale_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    const lq_plane_desc *d = &q->sch.scale;
    size_t n = lq_plane_count(d, q->rows, q->cols);
    bool rounded = d->sig && d->parent == LQ_NONE && d->dtype != LQ_U8 && d->dtype != LQ_I8;
    LQ_TRY(whole_check(ctx, "scale", d, &q->scale, n, bad));
    for (size_t i = 0; i < n; i++) {
        float v = lq_plane_get(d, &q->scale, i);
        if (!isfinite(v)) return lq_fail(ctx, bad, "scale %zu is not finite", i);
        if (rounded && lq_plane_round(d, v) != v) return unrounded(ctx, d, i, v, bad);
    }
    return LQ_OK;
}

static lq_status zero_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    const lq_plane_desc *d = &q->sch.zero;
    size_t n = lq_plane_count(d, q->rows, q->cols);
    bool code = q->sch.zero_kind == LQ_ZERO_CODE && d->dtype == LQ_U8 && d->parent == LQ_NONE && !q->zero.lut && q->sch.grid.kind == LQ_GRID_INT;
    float top = code ? (float)((1u << q->sch.grid.bits) - 1) : INFINITY;
    LQ_TRY(whole_check(ctx, "zero", d, &q->zero, n, bad));
    for (size_t i = 0; i < n; i++) {
        float v = lq_plane_get(d, &q->zero, i);
        if (!isfinite(v)) return lq_fail(ctx, bad, "zero %zu is not finite", i);
        if (v > top) return lq_fail(ctx, bad, "zero %zu is %g, expected at most %g", i, (double)v, (double)top);
    }
    return LQ_OK;
}

static lq_status floats_check(lq_ctx *ctx, const char *what, const float *v, size_t n, lq_status bad) {
    for (size_t i = 0; v && i < n; i++)
        if (!isfinite(v[i])) return lq_fail(ctx, bad, "%s %zu is not finite", what, i);
    return LQ_OK;
}

static lq_status perm_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    if (!q->perm) return LQ_OK;
    uint8_t *seen = lq_alloc(q->cols);
    if (!seen) return lq_oom(ctx, q->cols);
    lq_status st = LQ_OK;
    for (uint32_t c = 0; c < q->cols && !st; c++)
        if (q->perm[c] >= q->cols || seen[q->perm[c]]++)
            st = lq_fail(ctx, bad, "the column order is no permutation: entry %u is %u of %u columns", c, q->perm[c], q->cols);
    lq_free(seen);
    return st;
}

/* What a code alone can get wrong: floats that are no numbers. */
static lq_status codes_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    const lq_grid *g = &q->sch.grid;
    if (!is_float(g->kind) && g->kind != LQ_GRID_E4M3 && g->kind != LQ_GRID_E5M2) return LQ_OK;
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++)
            if (!isfinite(lq_grid_value(q, r, lq_code_get(q->codes + r * q->row_bytes, g->bits, c))))
                return lq_fail(ctx, bad, "the code of weight (%u, %u) is no finite number", r, c);
    return LQ_OK;
}

static lq_status table_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    size_t n = table_entries(&q->sch, q->rows);
    LQ_TRY(floats_check(ctx, "code table entry", q->lut, n, bad));
    for (size_t i = 0; i < n; i++)
        if (lq_f16_f32(lq_f32_f16(q->lut[i])) != q->lut[i]) return lq_fail(ctx, bad, "code table entry %zu (%.9g) is no F16 value", i, (double)q->lut[i]);
    return LQ_OK;
}

static lq_status halves_check(lq_ctx *ctx, const char *what, const uint16_t *v, size_t n, lq_status bad) {
    for (size_t i = 0; i < n; i++)
        if ((v[i] & 0x7c00) == 0x7c00) return lq_fail(ctx, bad, "%s %zu is not finite", what, i);
    return LQ_OK;
}

static lq_status indices_check(lq_ctx *ctx, const char *what, const uint32_t *v, size_t n, uint32_t cols, lq_status bad) {
    for (size_t i = 0; i < n; i++)
        if (v[i] >= cols || (i && v[i] <= v[i - 1])) return lq_fail(ctx, bad, "%s %zu is column %u: not ascending below %u", what, i, v[i], cols);
    return LQ_OK;
}

static lq_status sparse_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    const lq_csr *o = &q->outliers;
    uint64_t most = (uint64_t)q->rows * q->cols * q->sch.sparse / 10000;
    if (!(q->sch.extra & LQ_X_OUTLIERS) || (!o->n && !o->row)) return LQ_OK;
    if (o->n > most) return lq_fail(ctx, bad, "%u sparse values, the scheme allows %llu", o->n, (unsigned long long)most);
    if (o->row[0] || o->row[q->rows] != o->n) return lq_fail(ctx, bad, "sparse rows begin at %u and end at %u of %u values", o->row[0], o->row[q->rows], o->n);
    for (uint32_t r = 0; r < q->rows; r++) {
        if (o->row[r + 1] < o->row[r] || o->row[r + 1] > o->n) return lq_fail(ctx, bad, "sparse row %u begins at %u and ends at %u", r, o->row[r], o->row[r + 1]);
        LQ_TRY(indices_check(ctx, "sparse value", o->col + o->row[r], o->row[r + 1] - o->row[r], q->cols, bad));
    }
    return halves_check(ctx, "sparse value", o->v, o->n, bad);
}

static bool is_kept(const lq_cols *k, uint32_t col) {
    uint32_t lo = 0, hi = k->n;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (k->idx[mid] < col) lo = mid + 1;
        else hi = mid;
    }
    return lo < k->n && k->idx[lo] == col;
}

/* The codes under a kept column mean 0: gemv adds the column to what the codes give. */
static lq_status kept_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    const lq_cols *k = &q->outlier_cols;
    if (!(q->sch.extra & LQ_X_OUTLIER_COLS) || !k->n) return LQ_OK;
    if (k->n > q->sch.sparse) return lq_fail(ctx, bad, "%u kept columns, the scheme allows %u", k->n, q->sch.sparse);
    LQ_TRY(indices_check(ctx, "kept column", k->idx, k->n, q->cols, bad));
    LQ_TRY(halves_check(ctx, "value of kept columns", k->v, (size_t)k->n * q->rows, bad));
    for (uint32_t c = 0; c < q->cols; c++) {
        if (!is_kept(k, q->perm ? q->perm[c] : c)) continue;
        for (uint32_t r = 0; r < q->rows; r++)
            if (lq_qtensor_code_weight(q, r, c) != 0) return lq_fail(ctx, bad, "the code of weight (%u, %u) lies under a kept column and is not 0", r, c);
    }
    return LQ_OK;
}

static lq_status act_scale_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    bool fixed = q->sch.act.kind == LQ_ACT_STATIC;
    if (fixed ? isfinite(q->act_scale) && q->act_scale > 0 : q->act_scale == 0) return LQ_OK;
    return lq_fail(ctx, bad, "a step of %g for %s activations", (double)q->act_scale, fixed ? "static" : "no static");
}

lq_status lq_qtensor_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    bool low = q->sch.extra & LQ_X_LOWRANK;
    if (!isfinite(q->scale.offset) || !isfinite(q->zero.offset)) return lq_fail(ctx, bad, "a plane offset is not finite");
    LQ_TRY(floats_check(ctx, "scale table entry", q->scale.lut, TABLE, bad));
    LQ_TRY(floats_check(ctx, "zero table entry", q->zero.lut, TABLE, bad));
    LQ_TRY(scale_check(ctx, q, bad));
    LQ_TRY(zero_check(ctx, q, bad));
    LQ_TRY(table_check(ctx, q, bad));
    LQ_TRY(codes_check(ctx, q, bad));
    LQ_TRY(floats_check(ctx, "bias", q->bias, q->rows, bad));
    LQ_TRY(act_scale_check(ctx, q, bad));
    LQ_TRY(perm_check(ctx, q, bad));
    LQ_TRY(floats_check(ctx, "column factor", q->prescale, q->cols, bad));
    LQ_TRY(sparse_check(ctx, q, bad));
    LQ_TRY(kept_check(ctx, q, bad));
    LQ_TRY(halves_check(ctx, "low rank value", q->lr.a, low ? (size_t)q->rows * q->sch.rank : 0, bad));
    return halves_check(ctx, "low rank value", q->lr.b, low ? (size_t)q->cols * q->sch.rank : 0, bad);
}

/* -- encode ---------------------------------------------------------------------------------------------------------- */

static bool add_data(lq_buf *out, const void *p, size_t n) { return !n || lq_buf_add(out, p, n); }

static bool encode_plane(lq_buf *out, const lq_qtensor *q, const lq_plane_desc *d, const lq_plane *p) {
    size_t n = lq_plane_count(d, q->rows, q->cols);
    return add_data(out, p->v, n * lq_dtypes[d->dtype].bytes) && add_data(out, p->parent, parent_count(d, n) * lq_dtypes[d->parent].bytes) &&
           add_data(out, p->lut, p->lut ? TABLE * sizeof(float) : 0);
}

static bool encode_codes(lq_buf *out, const lq_qtensor *q) {
    size_t n = code_bytes(&q->sch, q->cols), spare = n * 8 - (size_t)q->cols * q->sch.grid.bits;
    for (uint32_t r = 0; r < q->rows; r++) {
        const uint8_t *row = q->codes + (size_t)r * q->row_bytes;
        uint8_t last = (uint8_t)(row[n - 1] & (0xff >> spare)); /* whatever lies behind the last code stays home */
        if (!add_data(out, row, n - 1) || !add_data(out, &last, 1)) return false;
    }
    return true;
}

static void encode_head(const lq_qtensor *q, const parts *ps, uint8_t head[HEAD]) {
    uint32_t version = VERSION, shape[2] = {q->rows, q->cols}, tail[2] = {ps->flags, q->n_lut}, counts[2] = {ps->sparse, ps->kept};
    double errs[2] = {q->err_w, q->err_h};
    float steps[3] = {q->scale.offset, q->zero.offset, q->act_scale};
    uint8_t *p = put(put(head, "LQQT", 4), &version, 4);
    lq_scheme_encode(&q->sch, p);
    p = put(put(put(p + LQ_SCHEME_BYTES, &q->slot.block, 4), &q->slot.role, 2), &q->slot.expert, 2);
    p = put(put(p, shape, sizeof shape), errs, sizeof errs);
    put(put(put(p, tail, sizeof tail), steps, sizeof steps), counts, sizeof counts);
}

static bool encode_table(lq_buf *out, const lq_qtensor *q) {
    for (size_t i = 0, n = table_entries(&q->sch, q->rows); i < n; i++) {
        uint16_t v = lq_f32_f16(q->lut[i]);
        if (!add_data(out, &v, sizeof v)) return false;
    }
    return true;
}

static bool encode_extras(lq_buf *out, const lq_qtensor *q) {
    static const uint32_t none = 0;
    const lq_scheme *s = &q->sch;
    const lq_csr *o = &q->outliers;
    const lq_cols *k = &q->outlier_cols;
    size_t rank = s->extra & LQ_X_LOWRANK ? s->rank : 0, n = s->extra & LQ_X_OUTLIERS ? (size_t)q->rows + 1 : 0;
    bool ok = add_data(out, q->perm, q->perm ? (size_t)q->cols * 4 : 0) && add_data(out, q->prescale, q->prescale ? (size_t)q->cols * 4 : 0);
    for (size_t r = 0; r < n && ok; r++) ok = add_data(out, o->row ? o->row + r : &none, 4);
    if (n) ok = ok && add_data(out, o->col, (size_t)o->n * 4) && add_data(out, o->v, (size_t)o->n * 2);
    if (s->extra & LQ_X_OUTLIER_COLS) ok = ok && add_data(out, k->idx, (size_t)k->n * 4) && add_data(out, k->v, (size_t)k->n * q->rows * 2);
    return ok && add_data(out, q->lr.a, rank * q->rows * 2) && add_data(out, q->lr.b, rank * q->cols * 2);
}

static lq_status grow(lq_ctx *ctx, lq_buf *b, size_t need) { /* one allocation instead of a chain of doublings */
    if (b->cap - b->n > need) return LQ_OK;
    char *v = lq_realloc(b->v, b->cap, b->n + need + 1);
    if (!v) return lq_oom(ctx, need);
    b->v = v;
    b->cap = b->n + need + 1;
    return LQ_OK;
}

static lq_status encodable(lq_ctx *ctx, const lq_qtensor *q) {
    LQ_TRY(lq_scheme_check(ctx, &q->sch, q->rows, q->cols));
    return table_check(ctx, q, LQ_ERR_QUALITY);
}

lq_status lq_qtensor_encode(lq_ctx *ctx, const lq_qtensor *q, lq_buf *out) {
    LQ_TRY(encodable(ctx, q));
    parts ps = {.flags = (q->bias ? F_BIAS : 0) | (q->scale.lut ? F_SCALE_TABLE : 0) | (q->zero.lut ? F_ZERO_TABLE : 0),
                .sparse = q->sch.extra & LQ_X_OUTLIERS ? q->outliers.n : 0, .kept = q->sch.extra & LQ_X_OUTLIER_COLS ? q->outlier_cols.n : 0};
    uint64_t need = encoded_bytes(&q->sch, q->rows, q->cols, &ps);
    if (!need) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a matrix of %u x %u is too large", q->rows, q->cols);
    LQ_TRY(grow(ctx, out, (size_t)need));
    uint8_t head[HEAD];
    encode_head(q, &ps, head);
    bool ok = lq_buf_add(out, head, HEAD) && encode_codes(out, q) && encode_plane(out, q, &q->sch.scale, &q->scale) &&
              encode_plane(out, q, &q->sch.zero, &q->zero) && encode_table(out, q) && encode_extras(out, q) &&
              add_data(out, q->bias, q->bias ? (size_t)q->rows * sizeof(float) : 0);
    return ok ? LQ_OK : lq_oom(ctx, (size_t)need);
}

/* -- decode ---------------------------------------------------------------------------------------------------------- */

static lq_status decode_plane(lq_ctx *ctx, lq_qtensor *q, const uint8_t **p, const lq_plane_desc *d, lq_plane *plane, bool table) {
    size_t n = lq_plane_count(d, q->rows, q->cols), up = parent_count(d, n);
    if (n) *p = get(*p, plane->v, n * lq_dtypes[d->dtype].bytes);
    if (up) *p = get(*p, plane->parent, up * lq_dtypes[d->parent].bytes);
    if (!table) return LQ_OK;
    float *lut = lq_arena_alloc(q->mem, TABLE * sizeof *lut);
    if (!lut) return lq_oom(ctx, TABLE * sizeof *lut);
    *p = get(*p, lut, TABLE * sizeof *lut);
    plane->lut = lut;
    return LQ_OK;
}

static lq_status decode_codes(lq_ctx *ctx, lq_qtensor *q, const uint8_t **p) {
    size_t n = code_bytes(&q->sch, q->cols), spare = n * 8 - (size_t)q->cols * q->sch.grid.bits;
    for (uint32_t r = 0; r < q->rows; r++) {
        *p = get(*p, q->codes + (size_t)r * q->row_bytes, n);
        if (spare && (*p)[-1] >> (8 - spare)) return lq_fail(ctx, LQ_ERR_FORMAT, "row %u has bits set behind its last code", r);
    }
    return LQ_OK;
}

static void decode_table(lq_qtensor *q, const uint8_t **p) {
    for (size_t i = 0, n = table_entries(&q->sch, q->rows); i < n; i++) {
        uint16_t v;
        *p = get(*p, &v, sizeof v);
        q->lut[i] = lq_f16_f32(v);
    }
}

static lq_status decode_extras(lq_ctx *ctx, lq_qtensor *q, const uint8_t **p, const parts *ps) {
    size_t rank = q->sch.extra & LQ_X_LOWRANK ? q->sch.rank : 0;
    if (q->perm) *p = get(*p, q->perm, (size_t)q->cols * 4);
    if (q->prescale) *p = get(*p, q->prescale, (size_t)q->cols * 4);
    if (q->sch.extra & LQ_X_OUTLIERS) {
        lq_csr *o = &q->outliers;
        LQ_TRY(lq_qtensor_outliers(ctx, q, ps->sparse));
        *p = get(get(get(*p, o->row, ((size_t)q->rows + 1) * 4), o->col, (size_t)o->n * 4), o->v, (size_t)o->n * 2);
    }
    if (q->sch.extra & LQ_X_OUTLIER_COLS) {
        lq_cols *k = &q->outlier_cols;
        LQ_TRY(lq_qtensor_outlier_cols(ctx, q, ps->kept));
        *p = get(get(*p, k->idx, (size_t)k->n * 4), k->v, (size_t)k->n * q->rows * 2);
    }
    if (rank) *p = get(get(*p, q->lr.a, rank * q->rows * 2), q->lr.b, rank * q->cols * 2);
    return LQ_OK;
}

static lq_status decode_body(lq_ctx *ctx, lq_qtensor *q, const uint8_t *p, const parts *ps) {
    LQ_TRY(decode_codes(ctx, q, &p));
    LQ_TRY(decode_plane(ctx, q, &p, &q->sch.scale, &q->scale, ps->flags & F_SCALE_TABLE));
    LQ_TRY(decode_plane(ctx, q, &p, &q->sch.zero, &q->zero, ps->flags & F_ZERO_TABLE));
    decode_table(q, &p);
    LQ_TRY(decode_extras(ctx, q, &p, ps));
    if (ps->flags & F_BIAS) {
        if (!(q->bias = lq_arena_alloc(q->mem, (size_t)q->rows * sizeof(float)))) return lq_oom(ctx, (size_t)q->rows * sizeof(float));
        get(p, q->bias, (size_t)q->rows * sizeof(float));
    }
    return lq_qtensor_check(ctx, q, LQ_ERR_FORMAT);
}

typedef struct head { lq_scheme s; lq_slot slot; uint32_t shape[2], tail[2], counts[2]; double errs[2]; float steps[3]; } head;

static lq_status decode_head(lq_ctx *ctx, const uint8_t *p, size_t n, head *h) {
    uint32_t version;
    if (n < HEAD || memcmp(p, "LQQT", 4)) return lq_fail(ctx, LQ_ERR_FORMAT, "these %zu bytes are no quantized matrix", n);
    p = get(p + 4, &version, 4);
    if (version != VERSION) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "quantized matrix of version %u; this program reads %d", version, VERSION);
    LQ_TRY(lq_scheme_decode(ctx, p, &h->s));
    p = get(get(get(p + LQ_SCHEME_BYTES, &h->slot.block, 4), &h->slot.role, 2), &h->slot.expert, 2);
    p = get(get(p, h->shape, sizeof h->shape), h->errs, sizeof h->errs);
    get(get(get(p, h->tail, sizeof h->tail), h->steps, sizeof h->steps), h->counts, sizeof h->counts);
    if (lq_scheme_check(ctx, &h->s, h->shape[0], h->shape[1])) return ctx ? ctx->status = LQ_ERR_FORMAT : LQ_ERR_FORMAT;
    uint32_t luts = h->s.grid.kind != LQ_GRID_LUT ? 0 : h->s.extra & LQ_X_LUT_PER_ROW ? h->shape[0] : 1;
    if (h->tail[0] > 7 || h->tail[1] != luts) return lq_fail(ctx, LQ_ERR_FORMAT, "flags 0x%x with %u tables, expected %u tables", h->tail[0], h->tail[1], luts);
    bool stray = (h->counts[0] && !(h->s.extra & LQ_X_OUTLIERS)) || (h->counts[1] && !(h->s.extra & LQ_X_OUTLIER_COLS));
    return stray ? lq_fail(ctx, LQ_ERR_FORMAT, "%u sparse values and %u kept columns in a scheme without them", h->counts[0], h->counts[1]) : LQ_OK;
}

lq_status lq_qtensor_decode(lq_ctx *ctx, const void *bytes, size_t n, lq_qtensor *out) {
    head h;
    *out = (lq_qtensor){0};
    LQ_TRY(decode_head(ctx, bytes, n, &h));
    parts ps = {h.tail[0], h.counts[0], h.counts[1]};
    uint64_t need = encoded_bytes(&h.s, h.shape[0], h.shape[1], &ps);
    if (need != n) return lq_fail(ctx, LQ_ERR_FORMAT, "%zu bytes for a matrix of %u x %u, expected %llu", n, h.shape[0], h.shape[1], (unsigned long long)need);
    LQ_TRY(lq_qtensor_init(ctx, out, &h.s, h.slot, h.shape[0], h.shape[1]));
    out->err_w = h.errs[0];
    out->err_h = h.errs[1];
    out->scale.offset = h.steps[0];
    out->zero.offset = h.steps[1];
    out->act_scale = h.steps[2];
    lq_status st = decode_body(ctx, out, (const uint8_t *)bytes + HEAD, &ps);
    if (st) lq_qtensor_free(out);
    return st;
}
