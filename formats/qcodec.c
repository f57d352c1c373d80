/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A qtensor as bytes, version 1, little-endian, no padding between the parts:
 *
 *     0  "LQQT"            4  u32 version = 1
 *     8  scheme, 56 bytes:
 *          u8 grid kind, u8 bits, u8 vec, u8 zero kind, i32 bias
 *          scale, zero: u8 dtype, u8 sig, u8 parent, u8 0, u32 tile_r, u32 tile_c, u32 span
 *          act: u8 kind, u8 dtype, u8 scope, u8 0, u32 tile, f32 outlier;  u32 extra
 *    64  slot: i32 block, u16 role, i16 expert
 *    72  u32 rows, u32 cols   80  f64 err_w, f64 err_h
 *    96  u32 flags (1 bias, 2 scale table, 4 zero table), u32 n_lut   104  f32 scale offset, f32 zero offset
 *   112  codes: rows x ceil(cols * bits / 8), the canonical bitstream, unused bits zero
 *        scale elements, scale parents, [f32 x 256 scale table], the same for zero
 *        f32 x (n_lut << bits) code table, u32 x cols perm (LQ_X_PERM), [f32 x rows bias]
 *
 * The length follows from the first 112 bytes, so it is checked before anything is allocated. dtype ids are their own
 * (disk_dtypes), kinds are the enums. */
#include "formats/qcodec.h"

#include "core/num.h"
#include "core/pack.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "planes are copied as they lie in memory");
_Static_assert(LQ_GRID_E2M1 == 1 && LQ_GRID_LUT == 5 && LQ_ZERO_MIN == 2 && LQ_ACT_STATIC == 2, "ids on disk");

enum { HEAD = 112, VERSION = 1, TABLE = 256, F_BIAS = 1, F_SCALE_TABLE = 2, F_ZERO_TABLE = 4 };
enum { EXTRAS = LQ_X_PERM | LQ_X_LUT_PER_ROW };
static const lq_dtype disk_dtypes[] = {LQ_NONE, LQ_F32, LQ_F16, LQ_BF16, LQ_E4M3, LQ_E8M0, LQ_U8, LQ_I8, LQ_E5M2};
enum { DISK_DTYPES = sizeof disk_dtypes / sizeof *disk_dtypes };

static uint8_t dtype_id(lq_dtype t) {
    for (uint8_t i = 0; i < DISK_DTYPES; i++)
        if (disk_dtypes[i] == t) return i;
    return DISK_DTYPES;
}

/* -- scheme ---------------------------------------------------------------------------------------------------------- */

static bool is_plane_dtype(lq_dtype t) { return dtype_id(t) < DISK_DTYPES && t != LQ_E5M2; }

static lq_status plane_check(lq_ctx *ctx, const char *what, const lq_plane_desc *d, uint32_t rows, uint32_t cols) {
    if (!is_plane_dtype(d->dtype)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%ss of type %s", what, lq_dtypes[d->dtype].name);
    if (d->parent != LQ_NONE && d->parent != LQ_F32 && d->parent != LQ_F16 && d->parent != LQ_BF16)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "second-level %ss of type %s; F32, F16 and BF16 are known", what, lq_dtypes[d->parent].name);
    if (d->sig > 24) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%ss of %u significant bits; at most 24", what, d->sig);
    if (d->dtype == LQ_NONE) return LQ_OK;
    if (d->tile_r == LQ_FLAT ? !d->tile_c : d->tile_r > rows || d->tile_c > cols)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%ss for tiles of %u x %u in a matrix of %u x %u", what, d->tile_r, d->tile_c, rows, cols);
    return LQ_OK;
}

static lq_status grid_check(lq_ctx *ctx, const lq_grid *g) {
    static const struct { uint8_t lo, hi; } bits[] = {{1, 16}, {4, 4}, {6, 6}, {8, 8}, {8, 8}, {1, 16}};
    if (g->kind > LQ_GRID_LUT) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "unknown grid kind %d", (int)g->kind);
    if (g->bits < bits[g->kind].lo || g->bits > bits[g->kind].hi)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u-bit codes; this grid takes %u to %u", g->bits, bits[g->kind].lo, bits[g->kind].hi);
    if (g->vec != 1) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "codes for %u weights each; only 1 is known", g->vec);
    if (g->kind == LQ_GRID_INT ? g->bias < -65536 || g->bias > 65536 : g->bias != 0)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "code bias %d", (int)g->bias);
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
    if (s->act.kind > LQ_ACT_DYNAMIC) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "static activation scales; dynamic ones are known");
    if (dtype_id(s->act.dtype) == DISK_DTYPES || !isfinite(s->act.outlier))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "activations of type %s, threshold %g", lq_dtypes[s->act.dtype].name, (double)s->act.outlier);
    if (s->extra & ~(uint32_t)EXTRAS) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "extras 0x%x; only a permutation and tables per row are known", (unsigned)s->extra);
    return LQ_OK;
}

static uint8_t *put(uint8_t *p, const void *v, size_t n) { return (uint8_t *)memcpy(p, v, n) + n; }
static const uint8_t *get(const uint8_t *p, void *v, size_t n) {
    memcpy(v, p, n);
    return p + n;
}

static uint8_t *put_plane(uint8_t *p, const lq_plane_desc *d) {
    uint8_t head[4] = {dtype_id(d->dtype), d->sig, dtype_id(d->parent), 0};
    uint32_t tail[3] = {d->tile_r, d->tile_c, d->span};
    return put(put(p, head, 4), tail, 12);
}

void lq_scheme_encode(const lq_scheme *s, uint8_t out[LQ_SCHEME_BYTES]) {
    uint8_t grid[4] = {(uint8_t)s->grid.kind, s->grid.bits, s->grid.vec, (uint8_t)s->zero_kind};
    uint8_t act[4] = {(uint8_t)s->act.kind, dtype_id(s->act.dtype), s->act.scope, 0};
    uint8_t *p = put(put(out, grid, 4), &s->grid.bias, 4);
    p = put_plane(put_plane(p, &s->scale), &s->zero);
    p = put(put(put(p, act, 4), &s->act.tile, 4), &s->act.outlier, 4);
    put(p, &s->extra, 4);
}

static bool dtype_from(uint8_t id, lq_dtype *out) {
    *out = id < DISK_DTYPES ? disk_dtypes[id] : LQ_NONE;
    return id < DISK_DTYPES;
}

static const uint8_t *get_plane(const uint8_t *p, lq_plane_desc *d, bool *ok) {
    *ok &= dtype_from(p[0], &d->dtype) && dtype_from(p[2], &d->parent) && !p[3];
    d->sig = p[1];
    p = get(p + 4, &d->tile_r, 4);
    return get(get(p, &d->tile_c, 4), &d->span, 4);
}

lq_status lq_scheme_decode(lq_ctx *ctx, const uint8_t in[LQ_SCHEME_BYTES], lq_scheme *s) {
    *s = (lq_scheme){.grid = {.bits = in[1], .vec = in[2]}};
    bool ok = in[0] <= LQ_GRID_LUT && in[3] <= LQ_ZERO_MIN;
    s->grid.kind = ok ? (lq_grid_kind)in[0] : LQ_GRID_INT;
    s->zero_kind = ok ? (lq_zero_kind)in[3] : LQ_ZERO_NONE;
    const uint8_t *p = get(in + 4, &s->grid.bias, 4);
    p = get_plane(get_plane(p, &s->scale, &ok), &s->zero, &ok);
    ok &= p[0] <= LQ_ACT_STATIC && dtype_from(p[1], &s->act.dtype) && !p[3];
    s->act.kind = ok ? (lq_act_kind)p[0] : LQ_ACT_NONE;
    s->act.scope = p[2];
    p = get(get(p + 4, &s->act.tile, 4), &s->act.outlier, 4);
    get(p, &s->extra, 4);
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

static uint64_t encoded_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols, uint32_t flags) {
    uint64_t n = HEAD, luts = s->grid.kind != LQ_GRID_LUT ? 0 : s->extra & LQ_X_LUT_PER_ROW ? rows : 1;
    bool ok = add(&n, rows, code_bytes(s, cols)) && add_plane(&n, &s->scale, rows, cols, flags & F_SCALE_TABLE) &&
              add_plane(&n, &s->zero, rows, cols, flags & F_ZERO_TABLE) && add(&n, luts, (uint64_t)4 << s->grid.bits) &&
              add(&n, s->extra & LQ_X_PERM ? cols : 0, 4) && add(&n, flags & F_BIAS ? rows : 0, sizeof(float));
    return ok ? n : 0;
}

uint64_t lq_qtensor_encoded_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols) { return encoded_bytes(s, rows, cols, 0); }

/* -- values ---------------------------------------------------------------------------------------------------------- */

static lq_status scale_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    const lq_plane_desc *d = &q->sch.scale;
    size_t n = lq_plane_count(d, q->rows, q->cols);
    bool rounded = d->sig && d->parent == LQ_NONE;
    for (size_t i = 0; i < n; i++) {
        float v = lq_plane_get(d, &q->scale, i);
        if (!isfinite(v)) return lq_fail(ctx, bad, "scale %zu is not finite", i);
        if (rounded && lq_round_sig(v, d->sig) != v) return lq_fail(ctx, bad, "scale %zu (%g) has more than %u significant bits", i, (double)v, d->sig);
    }
    return LQ_OK;
}

static lq_status zero_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    const lq_plane_desc *d = &q->sch.zero;
    size_t n = lq_plane_count(d, q->rows, q->cols);
    bool code = q->sch.zero_kind == LQ_ZERO_CODE && d->dtype == LQ_U8 && d->parent == LQ_NONE && !q->zero.lut && q->sch.grid.kind == LQ_GRID_INT;
    float top = code ? (float)((1u << q->sch.grid.bits) - 1) : INFINITY;
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

lq_status lq_qtensor_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad) {
    if (!isfinite(q->scale.offset) || !isfinite(q->zero.offset)) return lq_fail(ctx, bad, "a plane offset is not finite");
    LQ_TRY(floats_check(ctx, "scale table entry", q->scale.lut, TABLE, bad));
    LQ_TRY(floats_check(ctx, "zero table entry", q->zero.lut, TABLE, bad));
    LQ_TRY(scale_check(ctx, q, bad));
    LQ_TRY(zero_check(ctx, q, bad));
    LQ_TRY(floats_check(ctx, "code table entry", q->lut, q->lut ? (size_t)q->n_lut << q->sch.grid.bits : 0, bad));
    LQ_TRY(floats_check(ctx, "bias", q->bias, q->rows, bad));
    return perm_check(ctx, q, bad);
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

static void encode_head(const lq_qtensor *q, uint32_t flags, uint8_t head[HEAD]) {
    uint32_t version = VERSION, shape[2] = {q->rows, q->cols}, tail[2] = {flags, q->n_lut};
    double errs[2] = {q->err_w, q->err_h};
    float offsets[2] = {q->scale.offset, q->zero.offset};
    uint8_t *p = put(put(head, "LQQT", 4), &version, 4);
    lq_scheme_encode(&q->sch, p);
    p = put(put(put(p + LQ_SCHEME_BYTES, &q->slot.block, 4), &q->slot.role, 2), &q->slot.expert, 2);
    p = put(put(p, shape, sizeof shape), errs, sizeof errs);
    put(put(p, tail, sizeof tail), offsets, sizeof offsets);
}

static lq_status grow(lq_ctx *ctx, lq_buf *b, size_t need) { /* one allocation instead of a chain of doublings */
    if (b->cap - b->n > need) return LQ_OK;
    char *v = lq_realloc(b->v, b->cap, b->n + need + 1);
    if (!v) return lq_oom(ctx, need);
    b->v = v;
    b->cap = b->n + need + 1;
    return LQ_OK;
}

lq_status lq_qtensor_encode(lq_ctx *ctx, const lq_qtensor *q, lq_buf *out) {
    LQ_TRY(lq_scheme_check(ctx, &q->sch, q->rows, q->cols));
    uint32_t flags = (q->bias ? F_BIAS : 0) | (q->scale.lut ? F_SCALE_TABLE : 0) | (q->zero.lut ? F_ZERO_TABLE : 0);
    uint64_t need = encoded_bytes(&q->sch, q->rows, q->cols, flags);
    if (!need) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a matrix of %u x %u is too large", q->rows, q->cols);
    LQ_TRY(grow(ctx, out, (size_t)need));
    uint8_t head[HEAD];
    encode_head(q, flags, head);
    bool ok = lq_buf_add(out, head, HEAD) && encode_codes(out, q) && encode_plane(out, q, &q->sch.scale, &q->scale) &&
              encode_plane(out, q, &q->sch.zero, &q->zero) && add_data(out, q->lut, ((size_t)q->n_lut << q->sch.grid.bits) * sizeof(float)) &&
              add_data(out, q->perm, q->perm ? (size_t)q->cols * 4 : 0) && add_data(out, q->bias, q->bias ? (size_t)q->rows * sizeof(float) : 0);
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

static lq_status decode_body(lq_ctx *ctx, lq_qtensor *q, const uint8_t *p, uint32_t flags) {
    LQ_TRY(decode_codes(ctx, q, &p));
    LQ_TRY(decode_plane(ctx, q, &p, &q->sch.scale, &q->scale, flags & F_SCALE_TABLE));
    LQ_TRY(decode_plane(ctx, q, &p, &q->sch.zero, &q->zero, flags & F_ZERO_TABLE));
    if (q->lut) p = get(p, q->lut, ((size_t)q->n_lut << q->sch.grid.bits) * sizeof(float));
    if (q->perm) p = get(p, q->perm, (size_t)q->cols * 4);
    if (flags & F_BIAS) {
        if (!(q->bias = lq_arena_alloc(q->mem, (size_t)q->rows * sizeof(float)))) return lq_oom(ctx, (size_t)q->rows * sizeof(float));
        get(p, q->bias, (size_t)q->rows * sizeof(float));
    }
    return lq_qtensor_check(ctx, q, LQ_ERR_FORMAT);
}

lq_status lq_qtensor_decode(lq_ctx *ctx, const void *bytes, size_t n, lq_qtensor *out) {
    const uint8_t *p = bytes;
    *out = (lq_qtensor){0};
    if (n < HEAD || memcmp(p, "LQQT", 4)) return lq_fail(ctx, LQ_ERR_FORMAT, "these %zu bytes are no quantized matrix", n);
    uint32_t version, shape[2], tail[2];
    double errs[2];
    float offsets[2];
    lq_slot slot;
    lq_scheme s;
    p = get(p + 4, &version, 4);
    if (version != VERSION) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "quantized matrix of version %u; this program reads %d", version, VERSION);
    LQ_TRY(lq_scheme_decode(ctx, p, &s));
    p = get(get(get(p + LQ_SCHEME_BYTES, &slot.block, 4), &slot.role, 2), &slot.expert, 2);
    p = get(get(get(get(p, shape, 8), errs, 16), tail, 8), offsets, 8);
    if (lq_scheme_check(ctx, &s, shape[0], shape[1])) return ctx ? ctx->status = LQ_ERR_FORMAT : LQ_ERR_FORMAT;
    uint32_t luts = s.grid.kind != LQ_GRID_LUT ? 0 : s.extra & LQ_X_LUT_PER_ROW ? shape[0] : 1;
    if (tail[0] > 7 || tail[1] != luts) return lq_fail(ctx, LQ_ERR_FORMAT, "flags 0x%x with %u tables, expected %u tables", tail[0], tail[1], luts);
    uint64_t need = encoded_bytes(&s, shape[0], shape[1], tail[0]);
    if (need != n) return lq_fail(ctx, LQ_ERR_FORMAT, "%zu bytes for a matrix of %u x %u, expected %llu", n, shape[0], shape[1], (unsigned long long)need);
    LQ_TRY(lq_qtensor_init(ctx, out, &s, slot, shape[0], shape[1]));
    out->err_w = errs[0];
    out->err_h = errs[1];
    out->scale.offset = offsets[0];
    out->zero.offset = offsets[1];
    lq_status st = decode_body(ctx, out, p, tail[0]);
    if (st) lq_qtensor_free(out);
    return st;
}
