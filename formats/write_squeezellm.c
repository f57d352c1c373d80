/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* SqueezeLLM as a safetensors folder. SqueezeLLM itself saves a pickle, so the container is lquant's own; names, types and bit order are
 * those of its tensors. A linear [N = out][K = in] of b-bit codes (b = 2, 3, 4) with a codebook per output:
 *
 *     <module>.qweight       I32 [K*b/32][N]  column n = the K codes of output n as one LE bitstream, 32-bit words downwards (as GPTQ)
 *     <module>.lookup_table  F16 [N][2^b]
 *     <module>.rows          I32 [N+1]        sparse matrix on top: values rows[n] .. rows[n+1] belong to output n
 *     <module>.cols          I32 [M]          their inputs, ascending in an output
 *     <module>.vals          F16 [M]
 *
 *     w[n][k] = lookup_table[n][code] + the sparse value at (n, k)
 *
 * M must be known before the data: it is the most the scheme allows, N K sparse / 10000; values from rows[N] on are zeros. The config says
 * {"quant_method": "squeezellm", "wbits": b, "sparse_per_10000": ...}, of most linears; others are listed under "modules". A matrix without
 * sparse values has neither rows, cols nor vals. */
#include "core/num.h"
#include "formats/folder.h"

#include <string.h>

enum { QWEIGHT, TABLE, ROWS, COLS, VALS };

typedef struct squeeze {
    lq_folder folder;
    const lq_row *base;          /* the first quantized row; NULL: none */
} squeeze;

static bool is_sparse(const lq_scheme *s) { return s->extra & LQ_X_OUTLIERS; }

static lq_status accept_scheme(lq_ctx *ctx, const lq_scheme *s) {
    char name[64];
    bool rows_of_tables = s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_DATA && s->extra & LQ_X_LUT_PER_ROW && s->scale.dtype == LQ_NONE && !s->zero_kind;
    if (!rows_of_tables || s->grid.bits < 2 || s->grid.bits > 4)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds codebooks of 4 to 16 values per row, not %s; lquant squeezellm (lut2, lut3, lut4) fits", lq_scheme_name(s, name, sizeof name));
    if (s->extra & ~(uint32_t)(LQ_X_LUT_PER_ROW | LQ_X_OUTLIERS) || s->act.kind)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "beside a codebook it holds sparse values alone, not %s; --format lqt holds every scheme", lq_scheme_name(s, name, sizeof name));
    return LQ_OK;
}

static lq_status accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    LQ_TRY(accept_scheme(ctx, s));
    if (!rows || !cols || cols % 32)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u outputs x %u inputs do not fit: codes of 32 inputs are whole words; --keep-unfit keeps such linears, --format lqt holds them", rows, cols);
    return LQ_OK;
}

static uint64_t most_values(const lq_row *r) { return lq_row_elems(r) * r->scheme.sparse / 10000; }

static size_t parts(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    uint64_t rows = lq_row_rows(r), bits = r->scheme.grid.bits;
    (void)s;
    out[QWEIGHT] = (lq_part_spec){".qweight", LQ_I32, 2, {lq_row_cols(r) / 32 * bits, rows}};
    out[TABLE] = (lq_part_spec){".lookup_table", LQ_F16, 2, {rows, (uint64_t)1 << bits}};
    if (!is_sparse(&r->scheme)) return 2;
    out[ROWS] = (lq_part_spec){".rows", LQ_I32, 1, {rows + 1}};
    out[COLS] = (lq_part_spec){".cols", LQ_I32, 1, {most_values(r)}};
    out[VALS] = (lq_part_spec){".vals", LQ_F16, 1, {most_values(r)}};
    return 5;
}

/* A column of qweight is a row of our bitstream: tiles keep both sides in the cache. */
static void pack_codes(const lq_qtensor *q, uint8_t *out) {
    enum { TILE = 16 };
    uint32_t words = q->cols / 32 * q->sch.grid.bits;
    for (uint32_t n0 = 0; n0 < q->rows; n0 += TILE)
        for (uint32_t w = 0; w < words; w++)
            for (uint32_t n = n0; n < q->rows && n < n0 + TILE; n++) memcpy(out + ((size_t)w * q->rows + n) * 4, q->codes + n * q->row_bytes + (size_t)w * 4, 4);
}

static lq_status pack(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out) {
    const lq_csr *o = &q->outliers;
    (void)s, (void)r;
    switch (i) {
    case QWEIGHT: pack_codes(q, out); break;
    case TABLE:
        for (size_t k = 0; k < (size_t)q->rows << q->sch.grid.bits; k++) ((uint16_t *)out)[k] = lq_f32_f16(q->lut[k]);
        break;
    case ROWS:
        for (size_t n = 0; o->row && n <= q->rows; n++) lq_put_u32((uint8_t *)out + 4 * n, o->row[n]);
        break;
    case COLS:
        for (size_t k = 0; k < o->n; k++) lq_put_u32((uint8_t *)out + 4 * k, o->col[k]);
        break;
    default: memcpy(out, o->v, (size_t)o->n * (o->v ? 2 : 0)); break;
    }
    return LQ_OK;
}

static lq_status squeeze_open(lq_sink *s) {
    static const lq_layout layout = {.parts = parts, .pack = pack};
    squeeze *f = s->priv;
    for (size_t i = 0; i < s->cat->n && !f->base; i++)
        if (s->cat->rows[i].quantize) f->base = &s->cat->rows[i];
    return lq_folder_open(s, &layout);
}

static json_t *settings(const lq_scheme *s) { return json_pack("{s:i, s:i}", "wbits", (int)s->grid.bits, "sparse_per_10000", is_sparse(s) ? (int)s->sparse : 0); }

/* What differs from the first: bits are in the shapes too, the number of sparse values that were allowed is not. */
static json_t *others(const lq_sink *s, const lq_row *base) {
    lq_arena *mem = lq_arena_new();
    json_t *list = mem ? json_object() : NULL;
    bool ok = list;
    for (size_t i = 0; ok && base && i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (!r->quantize || (r->scheme.grid.bits == base->scheme.grid.bits && r->scheme.sparse == base->scheme.sparse && is_sparse(&r->scheme) == is_sparse(&base->scheme))) continue;
        const char *module = lq_folder_module(mem, r);
        ok = module && !json_object_set_new(list, module, settings(&r->scheme));
    }
    lq_arena_free(&mem);
    if (ok) return list;
    json_decref(list);
    return NULL;
}

static json_t *squeeze_config(lq_sink *s) {
    const lq_row *base = ((const squeeze *)s->priv)->base;
    static const lq_scheme none = {.grid = {.bits = 4}};
    json_t *c = json_pack("{s:s}", "quant_method", "squeezellm"), *common = settings(base ? &base->scheme : &none), *list = others(s, base);
    bool ok = c && common && list && !json_object_update(c, common) && (!json_object_size(list) || !json_object_set(c, "modules", list));
    json_decref(common);
    json_decref(list);
    if (ok) return c;
    json_decref(c);
    return NULL;
}

const lq_format lq_format_squeezellm = {
    .name = "squeezellm", .what = "SqueezeLLM folder: a codebook per row and sparse values, named as lquant documents", .priv_size = sizeof(squeeze), .accept = accept,
    .check = lq_folder_check, .open = squeeze_open, .quant_config = squeeze_config, LQ_FOLDER_CALLS,
};
