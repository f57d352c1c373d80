/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* SqueezeLLM tensors in a safetensors folder, as formats/write_squeezellm.c draws them or converted from SqueezeLLM's pickles (lookup_table and
 * vals may be F32 then, if every value is one of F16). Bits follow from the table's width; how many sparse values were allowed is said by
 * the config ("sparse_per_10000", by module under "modules"), else taken from how many there are. Rows of values that SqueezeLLM kept
 * dense (full_rows) are refused. */
#include "core/num.h"
#include "core/pack.h"
#include "formats/modules.h"
#include "formats/qcodec.h"

#include <string.h>

enum { QWEIGHT, TABLE, ROWS, COLS, VALS, FULL };

static const json_t *quant_of(const lq_source *s) { return json_object_get(s->config, "quantization_config"); }

static bool squeeze_probe(const char *path, const json_t *config) {
    const char *method = json_string_value(json_object_get(json_object_get(config, "quantization_config"), "quant_method"));
    (void)path;
    return method && !strcmp(method, "squeezellm");
}

static bool float_type(lq_dtype t) { return t == LQ_F16 || t == LQ_F32; }

/* A module's own entry replaces both keys. */
static lq_status said(lq_ctx *ctx, const lq_source *s, const char *name, int64_t *bits, int64_t *sparse) {
    const json_t *own = json_object_get(json_object_get(quant_of(s), "modules"), name), *o = own ? own : quant_of(s);
    LQ_TRY(lq_json_int(ctx, o, "wbits", false, 0, 2, 4, bits));
    return lq_json_int(ctx, o, "sparse_per_10000", false, -1, 0, 10000, sparse);
}

static lq_status describe_table(lq_ctx *ctx, const lq_source *s, const lq_module *m, int64_t bits, lq_entry *e) {
    const lq_entry *w = lq_modules_entry(s, m, QWEIGHT), *t = lq_modules_entry(s, m, TABLE);
    uint64_t words = w->shape[0], rows = w->shape[1], b = 0;
    if (w->ndim != 2 || w->dtype != LQ_I32 || !words || !rows || words > INT32_MAX / 32 || rows > INT32_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is no matrix of I32 words", w->name);
    for (uint64_t i = 2; t->ndim == 2 && i <= 4; i++)
        if (t->shape[1] == (uint64_t)1 << i) b = i;
    if (!b || (bits && b != (uint64_t)bits))
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has tables of %llu values, expected 2^wbits (%d)", t->name, (unsigned long long)(t->ndim == 2 ? t->shape[1] : 0), bits ? 1 << bits : 16);
    LQ_TRY(lq_entry_expect(ctx, t, float_type(t->dtype), 2, rows, (uint64_t)1 << b));
    if (words % b) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has %llu rows of words, expected a multiple of %llu", w->name, (unsigned long long)words, (unsigned long long)b);
    *e = (lq_entry){.dtype = LQ_NONE, .ndim = 2, .shape = {rows, words / b * 32},
                    .scheme = {.grid = {.kind = LQ_GRID_LUT, .bits = (uint8_t)b, .vec = 1, .bias = LQ_LUT_DATA}, .extra = LQ_X_LUT_PER_ROW}};
    return LQ_OK;
}

static lq_status describe_sparse(lq_ctx *ctx, const lq_source *s, const lq_module *m, int64_t sparse, lq_entry *e) {
    const lq_entry *rows = lq_modules_entry(s, m, ROWS), *cols = lq_modules_entry(s, m, COLS), *vals = lq_modules_entry(s, m, VALS);
    uint64_t n = e->shape[0] * e->shape[1];
    if (!rows && !cols && !vals && sparse <= 0) return LQ_OK;
    if (!rows || !cols || !vals) return lq_fail(ctx, LQ_ERR_FORMAT, "it has no %s", !rows ? "rows" : !cols ? "cols" : "vals");
    LQ_TRY(lq_entry_expect(ctx, rows, rows->dtype == LQ_I32, 1, e->shape[0] + 1, 0));
    LQ_TRY(lq_entry_expect(ctx, cols, cols->dtype == LQ_I32, 1, cols->shape[0], 0));
    LQ_TRY(lq_entry_expect(ctx, vals, float_type(vals->dtype), 1, cols->shape[0], 0));
    if (cols->shape[0] > n) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has %llu values for %llu weights", cols->name, (unsigned long long)cols->shape[0], (unsigned long long)n);
    if (sparse >= 0 && (!sparse || n * (uint64_t)sparse / 10000 != cols->shape[0]))
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has room for %llu values, expected %llu (sparse_per_10000 is %d)", cols->name, (unsigned long long)cols->shape[0],
                       (unsigned long long)(n * (uint64_t)sparse / 10000), (int)sparse);
    if (sparse < 0) /* the smallest that allows them */
        for (sparse = 1; n * (uint64_t)sparse / 10000 < cols->shape[0];) sparse++;
    e->scheme.extra |= LQ_X_OUTLIERS;
    e->scheme.sparse = (uint16_t)sparse;
    return LQ_OK;
}

static lq_status squeeze_describe(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m, lq_entry *e, bool *plain) {
    int64_t bits, sparse;
    (void)plain;
    if (m->part[FULL] >= 0) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'%s': rows kept dense are not read", lq_modules_entry(s, m, FULL)->name);
    LQ_TRY(said(ctx, s, name, &bits, &sparse));
    LQ_TRY(describe_table(ctx, s, m, bits, e));
    return describe_sparse(ctx, s, m, sparse, e);
}

static lq_dtype type_of(const lq_source *s, size_t i, size_t part) { return lq_modules_entry(s, &((lq_modules *)s->priv)->modules[i], part)->dtype; }

static lq_status read_codes(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, QWEIGHT, &data);
    const uint32_t *word = data;
    uint32_t b = q->sch.grid.bits;
    for (uint32_t k = 0; !st && k < q->cols; k++) {
        size_t bit = (size_t)k * b, at = bit / 32 * q->rows;
        uint32_t shift = bit % 32, rest = 32 - shift;
        for (uint32_t n = 0; n < q->rows; n++) {
            uint32_t v = word[at + n] >> shift;
            if (rest < b) v |= word[at + q->rows + n] << rest;
            lq_code_put(q->codes + n * q->row_bytes, b, k, v & ((1u << b) - 1));
        }
    }
    lq_free(data);
    return st;
}

static lq_status read_table(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, TABLE, &data);
    if (!st) lq_dtype_decode(type_of(s, i, TABLE), data, q->lut, (size_t)q->rows << q->sch.grid.bits);
    lq_free(data);
    return st;
}

static lq_status as_halves(lq_ctx *ctx, lq_dtype t, const void *data, lq_csr *o) {
    for (uint32_t k = 0; k < o->n; k++) {
        float v;
        lq_dtype_decode(t, (const char *)data + (size_t)k * lq_dtypes[t].bytes, &v, 1);
        o->v[k] = lq_f32_f16(v);
        if (isfinite(v) && lq_f16_f32(o->v[k]) != v) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "sparse value %u (%.9g) is no F16 number", k, (double)v);
    }
    return LQ_OK;
}

static lq_status read_sparse(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *rows = NULL, *cols = NULL, *vals = NULL;
    lq_status st;
    uint64_t room = lq_modules_entry(s, &((lq_modules *)s->priv)->modules[i], COLS)->shape[0];
    LQ_GO(lq_modules_part(ctx, s, i, ROWS, &rows));
    LQ_GO(lq_modules_part(ctx, s, i, COLS, &cols));
    LQ_GO(lq_modules_part(ctx, s, i, VALS, &vals));
    uint32_t n = ((const uint32_t *)rows)[q->rows];
    if (n > room) LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "rows end at value %u of %llu", n, (unsigned long long)room));
    LQ_GO(lq_qtensor_outliers(ctx, q, n));
    memcpy(q->outliers.row, rows, ((size_t)q->rows + 1) * 4);
    memcpy(q->outliers.col, cols, (size_t)n * 4);
    LQ_GO(as_halves(ctx, type_of(s, i, VALS), vals, &q->outliers));
done:
    lq_free(rows);
    lq_free(cols);
    lq_free(vals);
    return st;
}

static lq_status squeeze_fill(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    const lq_entry *e = &s->entries[i];
    lq_status st = read_codes(ctx, s, i, out);
    if (!st) st = read_table(ctx, s, i, out);
    if (!st && e->scheme.extra & LQ_X_OUTLIERS) st = read_sparse(ctx, s, i, out);
    return st;
}

static const lq_module_format parts = {
    .suffix = {".qweight", ".lookup_table", ".rows", ".cols", ".vals", ".full_rows"}, .required = 1u << TABLE, .common = 1u << ROWS | 1u << COLS | 1u << VALS | 1u << FULL,
    .describe = squeeze_describe, .fill = squeeze_fill,
};

static lq_status squeeze_open(lq_ctx *ctx, lq_source *s) { return lq_modules_open(ctx, s, &parts); }

const lq_reader lq_reader_squeezellm = {
    .name = "squeezellm", .what = "SqueezeLLM folder", .probe = squeeze_probe, .open = squeeze_open, LQ_MODULES_CALLS,
};
