/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/packed.h"

#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"
#include "kernels/spans.h"

#include <stdlib.h>
#include <string.h>

enum { LOW = LQ_UNIT / 2, WIDEST_INT = 1 << 16 }; /* the shortest segment; columns whose int8 products an int32 surely holds */

typedef struct plan { /* of the params of a scheme */
    uint32_t seg, segs;
    lq_dtype scale, zero;
    uint8_t fields[2];
    uint32_t span;
    bool up_scale, up_zero;
} plan;

static bool fields_of(uint8_t bits, uint8_t f[2]) {
    static const uint8_t cut[9][2] = {{0}, {1}, {2}, {2, 1}, {4}, {4, 1}, {4, 2}, {8}, {8}};
    memcpy(f, cut[bits < 9 ? bits : 0], 2);
    return f[0] != 0;
}

/* Columns a plane is constant over in every row; 0: it does not begin alike in every row. */
static uint32_t run_of(const lq_plane_desc *d, uint32_t cols) {
    if (d->dtype == LQ_NONE) return cols;
    if (d->tile_r == LQ_FLAT) return !d->tile_c ? cols : cols % d->tile_c == 0 ? d->tile_c : d->tile_c % cols == 0 ? cols : 0;
    return d->tile_c ? d->tile_c : cols;
}

static uint32_t narrowest(uint32_t a, uint32_t b) { return !a || !b ? 0 : a < b ? a : b; }

static lq_dtype scale_type(const lq_plane_desc *d) {
    bool final = d->parent == LQ_NONE;
    if (d->dtype == LQ_NONE) return LQ_NONE;
    if (final && (d->dtype == LQ_F16 || d->dtype == LQ_E8M0)) return d->dtype;
    return d->dtype == LQ_E4M3 && (final || (d->parent == LQ_F32 && !d->span && !d->divides)) ? LQ_E4M3 : LQ_F32;
}

static lq_dtype zero_type(const lq_scheme *s) {
    if (s->zero_kind == LQ_ZERO_NONE) return LQ_NONE;
    return s->zero.parent == LQ_NONE && (s->zero.dtype == LQ_F16 || s->zero.dtype == LQ_U8) ? s->zero.dtype : LQ_F32;
}

/* A table whose values are whole numbers in every file. */
static bool whole_table(const lq_grid *g) { return g->kind == LQ_GRID_LUT && (g->bias == LQ_LUT_SIGN || g->bias == LQ_LUT_QUAD || g->bias == LQ_LUT_IQ4); }

float lq_packed_whole(const lq_packed *p) {
    const lq_grid *g = &p->q.sch.grid;
    int32_t most = (1 << g->bits) - 1;
    if (g->kind == LQ_GRID_INT) return g->bias >= most - 255 && g->bias <= 255 ? 1 : 0;
    return g->kind == LQ_GRID_E2M1 ? 2 : whole_table(g) ? 1 : 0;
}

static bool grid_fits(const lq_grid *g) {
    if (g->vec > 1 || !g->bits || g->bits > 8) return false;
    if (g->kind == LQ_GRID_INT) return abs(g->bias) <= 256;
    return g->kind == LQ_GRID_E4M3 || (g->bits <= 4 && (g->kind == LQ_GRID_LUT || g->kind == LQ_GRID_E2M1));
}

static bool acts_fit(const lq_scheme *s, uint32_t cols) {
    if (s->act.kind == LQ_ACT_NONE) return true;
    if (s->act.dtype != LQ_I8 && s->act.dtype != LQ_BOOL) return false;
    return (s->grid.kind == LQ_GRID_INT || whole_table(&s->grid)) && cols <= WIDEST_INT && !(s->extra & LQ_X_PERM && s->act.tile);
}

/* Segments to a parent where a plane is of whole bytes, an F16 to every `span` of them, and rows begin a span; 0: it is not. */
static uint32_t span_of(const lq_plane_desc *d, uint32_t cols, uint32_t seg) {
    bool bytes = (d->dtype == LQ_U8 || d->dtype == LQ_I8) && d->parent == LQ_F16 && !d->divides && d->tile_r == 1 && d->tile_c == seg;
    return bytes && d->span && cols % seg == 0 && cols / seg % d->span == 0 ? d->span : 0;
}

static void plan_ups(const lq_scheme *s, uint32_t cols, plan *p) {
    uint32_t scale = span_of(&s->scale, cols, p->seg), zero = s->zero_kind == LQ_ZERO_MIN ? span_of(&s->zero, cols, p->seg) : 0;
    if (scale && zero && scale != zero) zero = 0;
    p->span = scale ? scale : zero;
    p->up_scale = scale;
    p->up_zero = zero;
    if (scale) p->scale = s->scale.dtype;
    if (zero) p->zero = s->zero.dtype;
}

static bool make_plan(const lq_scheme *s, uint32_t cols, plan *p) {
    uint32_t run[3] = {run_of(&s->scale, cols), s->zero_kind ? run_of(&s->zero, cols) : cols, s->act.kind && s->act.tile ? s->act.tile : cols};
    uint32_t seg = narrowest(narrowest(run[0], run[1]), run[2]);
    if (!seg || !fields_of(s->grid.bits, p->fields)) return false;
    for (int i = 0; i < 3; i++)
        if (run[i] < cols && run[i] % seg) return false;
    if (seg < cols && seg % LOW) return false;
    *p = (plan){.seg = seg, .segs = (cols + seg - 1) / seg, .scale = scale_type(&s->scale), .zero = zero_type(s), .fields = {p->fields[0], p->fields[1]}};
    plan_ups(s, cols, p);
    return true;
}

/* Tables of a row's own are all there is to a code. */
static bool tables_fit(const lq_scheme *s) {
    return !(s->extra & LQ_X_LUT_PER_ROW) || (s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_DATA && s->scale.dtype == LQ_NONE && s->zero_kind == LQ_ZERO_NONE);
}

bool lq_packed_holds(const lq_scheme *s, uint32_t rows, uint32_t cols) {
    plan p;
    return rows && cols && cols <= UINT32_MAX - LQ_UNIT && grid_fits(&s->grid) && tables_fit(s) && !(s->extra & (LQ_X_PRESCALE | LQ_X_HADAMARD)) && acts_fit(s, cols) &&
           make_plan(s, cols, &p);
}

bool lq_packed_fits(const lq_scheme *s, uint32_t rows, uint32_t cols) { return !(s->extra & LQ_X_LUT_PER_ROW) && lq_packed_holds(s, rows, cols); }

static size_t size_of(lq_dtype t) { return t == LQ_NONE ? 0 : lq_dtypes[t].bytes; }

static void lay_out(lq_packed *p, const plan *l, uint32_t rows, uint32_t cols) {
    p->tiles = (rows + LQ_TILE - 1) / LQ_TILE;
    p->units = (cols + LQ_UNIT - 1) / LQ_UNIT;
    p->seg = l->seg;
    p->segs = l->segs;
    p->scale = l->scale;
    p->zero = l->zero;
    memcpy(p->fields, l->fields, 2);
    p->tile_bytes = (size_t)p->units * 64 * (l->fields[0] + l->fields[1]);
    p->seg_bytes = LQ_TILE * (size_of(l->scale) + size_of(l->zero));
    p->span = l->span;
    p->spans = l->span ? l->segs / l->span : 0;
    p->up_scale = l->up_scale;
    p->up_zero = l->up_zero;
    p->up_bytes = (size_t)LQ_TILE * 2 * ((unsigned)l->up_scale + l->up_zero);
}

uint64_t lq_packed_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols) {
    plan l;
    lq_packed p = {0};
    if (!make_plan(s, cols, &l)) return 0;
    lay_out(&p, &l, rows, cols);
    return lq_packed_all_bytes(&p) + LQ_PACKED_PAD;
}

/* ---- codes ---- */

typedef struct place { size_t at; uint32_t shift; } place; /* byte of a tile and the field's bits in it */

static place place_of(const lq_packed *p, int field, uint32_t row, uint32_t c) {
    uint32_t f = p->fields[field], in = c % LQ_UNIT, wide = 32 / f, k = in % wide;
    size_t unit = (size_t)(c / LQ_UNIT) * 64 * (p->fields[0] + p->fields[1]);
    return (place){unit + (field ? 64u * p->fields[0] : 0) + 64 * (in / wide) + 4 * row + k % 4, f * (k / 4)};
}

uint32_t lq_packed_code(const lq_packed *p, uint32_t r, uint32_t c) {
    const uint8_t *tile = p->codes + (size_t)(r / LQ_TILE) * p->tile_bytes;
    uint32_t code = 0;
    for (int i = 0, done = 0; i < 2 && p->fields[i]; done += p->fields[i++]) {
        place a = place_of(p, i, r % LQ_TILE, c);
        code |= (tile[a.at] >> a.shift & ((1u << p->fields[i]) - 1)) << done;
    }
    return code;
}

static void put_code(const lq_packed *p, uint8_t *tile, uint32_t row, uint32_t c, uint32_t code) {
    for (int i = 0; i < 2 && p->fields[i]; code >>= p->fields[i++]) {
        place a = place_of(p, i, row, c);
        tile[a.at] |= (uint8_t)((code & ((1u << p->fields[i]) - 1)) << a.shift);
    }
}

void lq_packed_set_code(const lq_packed *p, uint32_t r, uint32_t c, uint32_t code) {
    put_code(p, p->codes + (size_t)(r / LQ_TILE) * p->tile_bytes, r % LQ_TILE, c, code);
}

typedef struct job { const lq_qtensor *q; lq_packed *p; lq_qtensor *out; } job;

static uint32_t rows_of(const lq_qtensor *q, size_t tile) {
    return q->rows - (uint32_t)tile * LQ_TILE < LQ_TILE ? q->rows - (uint32_t)tile * LQ_TILE : LQ_TILE;
}

enum { PIECE = 256 }; /* codes unpacked at once: whole bytes at any width */

static void pack_codes(const job *j, size_t tile) {
    const lq_qtensor *q = j->q;
    uint8_t *dst = j->p->codes + tile * j->p->tile_bytes;
    uint16_t code[PIECE];
    for (uint32_t i = 0; i < rows_of(q, tile); i++) {
        const uint8_t *row = q->codes + (tile * LQ_TILE + i) * q->row_bytes;
        for (uint32_t c = 0; c < q->cols; c++) {
            if (c % PIECE == 0) lq_codes_unpack(row + (size_t)c * q->sch.grid.bits / 8, q->sch.grid.bits, q->cols - c < PIECE ? q->cols - c : PIECE, code);
            put_code(j->p, dst, i, c, code[c % PIECE]);
        }
    }
}

static void put_param(lq_dtype t, float v, uint8_t *dst, uint32_t row) {
    if (t == LQ_U8) dst[row] = (uint8_t)v;
    else if (t != LQ_NONE) lq_dtype_encode(t, &v, dst + row * size_of(t), 1);
}

/* Of row r at column c, to place `row` of dst. */
static void put_plane(const lq_packed *p, bool zero, uint32_t r, uint32_t c, uint8_t *dst, uint32_t row) {
    const lq_plane_desc *d = zero ? &p->q.sch.zero : &p->q.sch.scale;
    const lq_plane *v = zero ? &p->q.zero : &p->q.scale;
    lq_dtype t = zero ? p->zero : p->scale;
    if (t == LQ_NONE || d->dtype == LQ_NONE) return;
    size_t at = lq_plane_index(d, p->q.cols, r, c);
    if (size_of(t) == 1 && (!zero || p->up_zero)) dst[row] = ((const uint8_t *)v->v)[at]; /* as it is stored */
    else put_param(t, lq_plane_get(d, v, at), dst, row);
}

static void put_up(const lq_plane_desc *d, const lq_plane *v, uint32_t cols, uint32_t r, uint32_t c, uint8_t *dst, uint32_t row) {
    memcpy(dst + 2 * (size_t)row, (const uint8_t *)v->parent + lq_plane_index(d, cols, r, c) / d->span * 2, 2);
}

static void pack_params(const lq_packed *p, size_t tile) {
    const lq_scheme *s = &p->q.sch;
    for (uint32_t g = 0; g < p->segs; g++) {
        uint8_t *dst = p->params + (tile * p->segs + g) * p->seg_bytes;
        uint8_t *up = p->span && g % p->span == 0 ? p->ups + (tile * p->spans + g / p->span) * p->up_bytes : NULL;
        for (uint32_t i = 0; i < rows_of(&p->q, tile); i++) {
            uint32_t r = (uint32_t)tile * LQ_TILE + i, c = g * p->seg;
            put_plane(p, false, r, c, dst, i);
            put_plane(p, true, r, c, dst + LQ_TILE * size_of(p->scale), i);
            if (up && p->up_scale) put_up(&s->scale, &p->q.scale, p->q.cols, r, c, up, i);
            if (up && p->up_zero) put_up(&s->zero, &p->q.zero, p->q.cols, r, c, up + (p->up_scale ? 2 * LQ_TILE : 0), i);
        }
    }
}

static void pack_tile(void *arg, size_t tile) {
    const job *j = arg;
    pack_codes(j, tile);
    pack_params(j->p, tile);
}

static void unpack_tile(void *arg, size_t tile) {
    const job *j = arg;
    lq_qtensor *q = j->out;
    for (uint32_t i = 0; i < rows_of(q, tile); i++) {
        uint32_t r = (uint32_t)tile * LQ_TILE + i;
        for (uint32_t c = 0; c < q->cols; c++) lq_code_put(q->codes + r * q->row_bytes, q->sch.grid.bits, c, lq_packed_code(j->p, r, c));
    }
}

static int32_t byte_of(lq_dtype t, uint8_t v) { return t == LQ_I8 ? (int8_t)v : v; }
static float whole_byte(lq_dtype t, uint8_t v) { return (float)byte_of(t, v); }

/* The up of row r, of its zero where the scale has one too. */
static float up_of(const lq_packed *p, uint32_t r, uint32_t g, bool second) {
    uint16_t h;
    memcpy(&h, lq_packed_ups(p, r / LQ_TILE, g) + (second ? 2 * LQ_TILE : 0) + 2 * (r % LQ_TILE), 2);
    return lq_f16_f32(h);
}

float lq_packed_scale(const lq_packed *p, uint32_t r, uint32_t g) {
    const uint8_t *at = lq_packed_params(p, r / LQ_TILE, g) + r % LQ_TILE * size_of(p->scale);
    float v = 1;
    if (p->up_scale) return whole_byte(p->scale, *at) * up_of(p, r, g, false) + p->shift;
    if (p->scale == LQ_E4M3) return lq_e4m3_f32(*at) * p->up + p->shift;
    if (p->scale == LQ_E8M0) return lq_e8m0_f32(*at);
    if (p->scale != LQ_NONE) lq_dtype_decode(p->scale, at, &v, 1);
    return v;
}

float lq_packed_zero(const lq_packed *p, uint32_t r, uint32_t g) {
    const uint8_t *at = lq_packed_params(p, r / LQ_TILE, g) + LQ_TILE * size_of(p->scale);
    float v = 0;
    if (p->up_zero) return whole_byte(p->zero, at[r % LQ_TILE]) * up_of(p, r, g, p->up_scale) + p->zero_shift;
    if (p->zero == LQ_U8) return (float)at[r % LQ_TILE];
    if (p->zero != LQ_NONE) lq_dtype_decode(p->zero, at + r % LQ_TILE * size_of(p->zero), &v, 1);
    return v;
}

/* The largest |A(code)| where sums of a span have kernels; 0: they have none. */
static uint32_t most_of(const lq_grid *g) {
    uint32_t codes = 1u << g->bits;
    if (g->kind == LQ_GRID_LUT) return g->bits == 4 && g->bias == LQ_LUT_IQ4 ? 127 : 0;
    if (g->kind != LQ_GRID_INT || g->bits < 2 || g->bits > 6 || g->bias < 0 || (uint32_t)g->bias > codes) return 0;
    return (uint32_t)g->bias > codes - 1 - (uint32_t)g->bias ? (uint32_t)g->bias : codes - 1 - (uint32_t)g->bias;
}

bool lq_spans_whole(const lq_packed *p) {
    const lq_scheme *s = &p->q.sch;
    uint64_t cols = (uint64_t)p->span * p->seg, most = (uint64_t)most_of(&s->grid) * 127 * 255 * cols;
    if (!p->up_scale || p->up_zero != (p->zero != LQ_NONE) || p->shift != 0 || (p->up_zero && p->zero_shift != 0)) return false;
    if (s->act.kind == LQ_ACT_NONE || (s->act.tile && s->act.tile % cols) || p->span % 2 || p->span > LQ_SPAN_SEGS) return false;
    return p->seg <= 256 && cols <= LQ_SPAN_COLS && most && most <= INT32_MAX;
}

int32_t lq_scale_byte(const lq_packed *p, uint32_t r, uint32_t g) { return byte_of(p->scale, lq_packed_params(p, r / LQ_TILE, g)[r % LQ_TILE]); }
int32_t lq_zero_byte(const lq_packed *p, uint32_t r, uint32_t g) { return byte_of(p->zero, lq_packed_params(p, r / LQ_TILE, g)[LQ_TILE + r % LQ_TILE]); }
float lq_scale_up(const lq_packed *p, uint32_t r, uint32_t g) { return up_of(p, r, g, false); }
float lq_zero_up(const lq_packed *p, uint32_t r, uint32_t g) { return up_of(p, r, g, true); }

/* ---- making and taking apart ---- */

static bool copy(lq_arena *a, void *dst, const void *src, size_t n) {
    void **to = dst;
    if (!src) return true;
    *to = lq_arena_alloc(a, n);
    if (*to) memcpy(*to, src, n);
    return *to != NULL;
}

static bool copy_plane(lq_arena *a, const lq_plane_desc *d, const lq_qtensor *q, const lq_plane *from, lq_plane *to) {
    size_t n = lq_plane_count(d, q->rows, q->cols), up = !n || d->parent == LQ_NONE ? 0 : d->span ? (n + d->span - 1) / d->span : 1;
    to->offset = from->offset;
    return copy(a, &to->v, n ? from->v : NULL, n * size_of(d->dtype)) && copy(a, &to->parent, up ? from->parent : NULL, up * size_of(d->parent)) &&
           copy(a, &to->lut, from->lut, 256 * sizeof *from->lut);
}

static bool copy_extras(lq_arena *a, const lq_qtensor *q, lq_qtensor *to) {
    const lq_csr *o = &q->outliers;
    const lq_cols *k = &q->outlier_cols;
    return copy(a, &to->outliers.row, o->row, ((size_t)q->rows + 1) * 4) && copy(a, &to->outliers.col, o->col, (size_t)o->n * 4) &&
           copy(a, &to->outliers.v, o->v, (size_t)o->n * 2) && copy(a, &to->outlier_cols.idx, k->idx, (size_t)k->n * 4) &&
           copy(a, &to->outlier_cols.v, k->v, (size_t)k->n * q->rows * 2) && copy(a, &to->lr.a, q->lr.a, (size_t)q->rows * q->sch.rank * 2) &&
           copy(a, &to->lr.b, q->lr.b, (size_t)q->cols * q->sch.rank * 2) && copy(a, &to->bias, q->bias, (size_t)q->rows * 4) &&
           copy(a, &to->perm, q->perm, (size_t)q->cols * 4) && copy(a, &to->lut, q->lut, ((size_t)q->n_lut << q->sch.grid.bits) * 4);
}

/* Everything but the codes, in an arena of its own. */
static lq_status copy_shell(lq_ctx *ctx, const lq_qtensor *q, lq_qtensor *to) {
    *to = *q;
    to->codes = NULL;
    to->mem = lq_arena_new();
    if (to->mem && copy_plane(to->mem, &q->sch.scale, q, &q->scale, &to->scale) && copy_plane(to->mem, &q->sch.zero, q, &q->zero, &to->zero) &&
        copy_extras(to->mem, q, to))
        return LQ_OK;
    lq_arena_free(&to->mem);
    *to = (lq_qtensor){0};
    return lq_oom(ctx, lq_qtensor_bytes(q));
}

static void set_up(lq_packed *p) {
    bool two = p->q.sch.scale.parent != LQ_NONE && p->scale == LQ_E4M3;
    p->up = two ? *(const float *)p->q.scale.parent : 1;
    p->shift = two || p->up_scale ? p->q.scale.offset : -0.0f; /* which changes nothing, not even a sign */
    p->zero_shift = p->q.zero.offset;
}

lq_status lq_pack(lq_ctx *ctx, const lq_qtensor *q, lq_packed *p) {
    plan l;
    *p = (lq_packed){0};
    if (!lq_packed_holds(&q->sch, q->rows, q->cols) || !make_plan(&q->sch, q->cols, &l)) return lq_fail(ctx, LQ_ERR_INTERNAL, "a matrix the packed layout does not hold");
    LQ_TRY(copy_shell(ctx, q, &p->q));
    lay_out(p, &l, q->rows, q->cols);
    set_up(p);
    p->codes = lq_arena_alloc(p->q.mem, p->tiles * p->tile_bytes + LQ_PACKED_PAD);
    p->params = lq_arena_alloc(p->q.mem, (size_t)p->tiles * p->segs * p->seg_bytes + 64);
    p->ups = lq_arena_alloc(p->q.mem, (size_t)p->tiles * p->spans * p->up_bytes);
    if (!p->codes || !p->params || !p->ups) {
        lq_packed_free(p);
        return lq_oom(ctx, (size_t)p->tiles * p->tile_bytes);
    }
    lq_parallel_for(p->tiles, pack_tile, &(job){q, p, NULL});
    return LQ_OK;
}

lq_status lq_unpack(lq_ctx *ctx, const lq_packed *p, lq_qtensor *q) {
    LQ_TRY(copy_shell(ctx, &p->q, q));
    q->codes = lq_arena_alloc(q->mem, q->rows * q->row_bytes + 16);
    if (!q->codes) {
        lq_qtensor_free(q);
        return lq_oom(ctx, q->rows * q->row_bytes);
    }
    lq_parallel_for(p->tiles, unpack_tile, &(job){NULL, (lq_packed *)p, q});
    return LQ_OK;
}

void lq_packed_free(lq_packed *p) {
    lq_qtensor_free(&p->q);
    *p = (lq_packed){0};
}
