/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* bitsandbytes checkpoints (bitsandbytes 0.41.3 and later, transformers, lquant). A module is 4-bit when "<module>.weight.absmax" lies
 * beside its weight, LLM.int8 when "<module>.SCB" does, else a plain tensor. With n = N K weights, element i of the flattened matrix:
 *
 *     weight, any type of bytes: byte i/2, high nibble of even i; absmax of block i / blocksize; w = quant_map[code] absmax
 *     double quantized:          absmax[b] = nested_quant_map[u8[b]] nested_absmax[b / nested_blocksize] + nested_offset
 *     quant_state JSON:          quant_type, blocksize, dtype, shape [N, K], nested_blocksize, nested_dtype, nested_offset
 *     int8:                      w = q SCB / 127; activations of |x| >= llm_int8_threshold are columns apart
 *
 * The codebook is fixed by quant_type (runtimes have it built in), so quant_map must be it. dtype is the type runtimes compute in and
 * no part of the values. */
#include "core/num.h"
#include "core/pack.h"
#include "formats/modules.h"
#include "formats/qcodec.h"

#include <string.h>

enum { WEIGHT, ABSMAX, QUANT_MAP, NESTED_ABSMAX, NESTED_MAP, STATE_NF4, STATE_FP4, SCB, FORMAT, PARTS, STATE_MAX = 4096 };

typedef struct bnb { float threshold; } bnb;

static bool bnb_probe(const char *path, const json_t *config) {
    const char *method = json_string_value(json_object_get(json_object_get(config, "quantization_config"), "quant_method"));
    const json_t *q = json_object_get(config, "quantization_config");
    (void)path;
    if (method) return !strcmp(method, "bitsandbytes");
    return json_is_true(json_object_get(q, "load_in_4bit")) || json_is_true(json_object_get(q, "load_in_8bit")); /* the oldest name no method */
}

static lq_status bnb_config(lq_ctx *ctx, lq_source *s) {
    double threshold;
    bool fp16 = false;
    const json_t *q = json_object_get(s->config, "quantization_config");
    LQ_TRY(lq_json_real(ctx, q, "llm_int8_threshold", false, 6, &threshold));
    LQ_TRY(lq_json_bool(ctx, q, "llm_int8_has_fp16_weight", false, &fp16));
    if (threshold < 0 || threshold > 1e30) return lq_fail(ctx, LQ_ERR_FORMAT, "llm_int8_threshold is %g", threshold);
    if (fp16) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "llm_int8_has_fp16_weight: its weights are not quantized");
    ((bnb *)lq_modules_priv(s))->threshold = (float)threshold;
    return LQ_OK;
}

/* -- quant_state ----------------------------------------------------------------------------------------------------- */

typedef struct state { int64_t block, rows, cols, nested_block; double offset; bool nf4, nested; } state;

static lq_status shape_of(lq_ctx *ctx, const json_t *o, state *st) {
    const json_t *shape = json_object_get(o, "shape");
    if (json_array_size(shape) != 2 || !json_is_integer(json_array_get(shape, 0)) || !json_is_integer(json_array_get(shape, 1)))
        return lq_fail(ctx, LQ_ERR_FORMAT, "'shape' is no pair of integers");
    st->rows = json_integer_value(json_array_get(shape, 0));
    st->cols = json_integer_value(json_array_get(shape, 1));
    if (st->rows < 1 || st->cols < 1 || st->rows > INT32_MAX || st->cols > INT32_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'shape' is [%lld, %lld]", (long long)st->rows, (long long)st->cols);
    return LQ_OK;
}

static lq_status parse_state(lq_ctx *ctx, const json_t *o, state *st) {
    const char *type, *dtype, *nested;
    if (!json_is_object(o)) return lq_fail(ctx, LQ_ERR_FORMAT, "not a JSON object");
    LQ_TRY(lq_json_string(ctx, o, "quant_type", true, &type));
    LQ_TRY(lq_json_string(ctx, o, "dtype", true, &dtype));
    LQ_TRY(lq_json_string(ctx, o, "nested_dtype", false, &nested));
    LQ_TRY(lq_json_int(ctx, o, "blocksize", true, 0, 1, 1 << 16, &st->block));
    LQ_TRY(lq_json_int(ctx, o, "nested_blocksize", st->nested, 0, 1, 1 << 16, &st->nested_block));
    LQ_TRY(lq_json_real(ctx, o, "nested_offset", st->nested, 0, &st->offset));
    if (!type || strcmp(type, st->nf4 ? "nf4" : "fp4")) return lq_fail(ctx, LQ_ERR_FORMAT, "'quant_type' is '%.16s', expected '%s'", type ? type : "null", st->nf4 ? "nf4" : "fp4");
    if (!dtype || (strcmp(dtype, "float32") && strcmp(dtype, "float16") && strcmp(dtype, "bfloat16")))
        return lq_fail(ctx, LQ_ERR_FORMAT, "'dtype' is '%.32s', expected float32, float16 or bfloat16", dtype ? dtype : "null");
    if (nested && strcmp(nested, "float32")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'nested_dtype' is '%.32s'; float32 is read", nested);
    if (nested && !st->nested) return lq_fail(ctx, LQ_ERR_FORMAT, "it speaks of nested scales, but there is no nested_absmax");
    return shape_of(ctx, o, st);
}

static lq_status read_state(lq_ctx *ctx, lq_source *s, size_t i, const lq_module *m, state *out) {
    *out = (state){.nf4 = m->part[STATE_NF4] >= 0, .nested = m->part[NESTED_ABSMAX] >= 0};
    size_t part = out->nf4 ? STATE_NF4 : STATE_FP4;
    const lq_entry *e = lq_modules_entry(s, m, part);
    void *text = NULL;
    json_t *o = NULL;
    LQ_TRY(lq_entry_expect(ctx, e, e->dtype == LQ_U8, 1, e->shape[0], 0));
    if (e->bytes > STATE_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has %llu bytes, expected at most %d", e->name, (unsigned long long)e->bytes, STATE_MAX);
    lq_status st = lq_modules_part(ctx, s, i, part, &text);
    if (!st) st = lq_json_parse(ctx, e->name, text, (size_t)e->bytes, &o);
    if (!st && (st = parse_state(ctx, o, out))) st = lq_note(ctx, st, "'%s'", e->name);
    json_decref(o);
    lq_free(text);
    return st;
}

/* -- modules --------------------------------------------------------------------------------------------------------- */

static lq_status need(lq_ctx *ctx, const char *name, const lq_module *m, size_t part, const char *what, bool want) {
    if ((m->part[part] >= 0) == want) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_FORMAT, want ? "'%s' has no %s" : "'%s' has a %s it should not have", name, what);
}

static lq_status which_parts(lq_ctx *ctx, const char *name, const lq_module *m, bool table) {
    bool nested = m->part[NESTED_ABSMAX] >= 0, nf4 = m->part[STATE_NF4] >= 0;
    LQ_TRY(need(ctx, name, m, QUANT_MAP, "weight.quant_map", table));
    LQ_TRY(need(ctx, name, m, STATE_FP4, nf4 ? "second quant_state" : "weight.quant_state.bitsandbytes__nf4 or __fp4", table && !nf4));
    LQ_TRY(need(ctx, name, m, NESTED_MAP, "weight.nested_quant_map", table && nested));
    if (table) return need(ctx, name, m, SCB, "SCB", false);
    LQ_TRY(need(ctx, name, m, STATE_NF4, "weight.quant_state.bitsandbytes__nf4", false));
    return need(ctx, name, m, NESTED_ABSMAX, "weight.nested_absmax", false);
}

static lq_status check_bytes(lq_ctx *ctx, const lq_entry *w, const state *st) {
    uint64_t n = (uint64_t)st->rows * (uint64_t)st->cols, want = n / 2 + n % 2, unit = lq_dtypes[w->dtype].bytes;
    bool column = w->ndim == 2 && w->shape[1] == 1;
    want = (want + unit - 1) / unit * unit;
    if (lq_dtypes[w->dtype].block == 1 && column && w->bytes == want) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has %llu bytes%s, expected %llu in one column for shape [%lld, %lld]", w->name, (unsigned long long)w->bytes,
                   column ? "" : " in another shape", (unsigned long long)want, (long long)st->rows, (long long)st->cols);
}

static lq_scheme table_scheme(const state *st) {
    lq_scheme s = {.grid = {.kind = LQ_GRID_LUT, .bits = 4, .vec = 1, .bias = st->nf4 ? LQ_LUT_NF4 : LQ_LUT_FP4},
                   .scale = {.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = (uint32_t)st->block}};
    if (!st->nested) return s;
    s.scale.dtype = LQ_U8;
    s.scale.parent = LQ_F32;
    s.scale.span = (uint32_t)st->nested_block;
    return s;
}

static lq_status describe_table(lq_ctx *ctx, lq_source *s, const lq_module *m, lq_entry *e) {
    state st;
    LQ_TRY(read_state(ctx, s, s->n, m, &st)); /* the module about to be entry s->n */
    uint64_t n = (uint64_t)st.rows * (uint64_t)st.cols, nb = (n + (uint64_t)st.block - 1) / (uint64_t)st.block;
    const lq_entry *absmax = lq_modules_entry(s, m, ABSMAX), *map = lq_modules_entry(s, m, QUANT_MAP);
    LQ_TRY(check_bytes(ctx, lq_modules_entry(s, m, WEIGHT), &st));
    LQ_TRY(lq_entry_expect(ctx, absmax, absmax->dtype == (st.nested ? LQ_U8 : LQ_F32), 1, nb, 0));
    LQ_TRY(lq_entry_expect(ctx, map, map->dtype == LQ_F32, 1, 16, 0));
    if (st.nested) {
        const lq_entry *outer = lq_modules_entry(s, m, NESTED_ABSMAX), *table = lq_modules_entry(s, m, NESTED_MAP);
        LQ_TRY(lq_entry_expect(ctx, outer, outer->dtype == LQ_F32, 1, (nb + (uint64_t)st.nested_block - 1) / (uint64_t)st.nested_block, 0));
        LQ_TRY(lq_entry_expect(ctx, table, table->dtype == LQ_F32, 1, 256, 0));
    }
    *e = (lq_entry){.dtype = LQ_NONE, .ndim = 2, .shape = {(uint64_t)st.rows, (uint64_t)st.cols}, .scheme = table_scheme(&st)};
    return LQ_OK;
}

static lq_status describe_int8(lq_ctx *ctx, lq_source *s, const lq_module *m, lq_entry *e) {
    const lq_entry *w = lq_modules_entry(s, m, WEIGHT), *scb = lq_modules_entry(s, m, SCB), *format = lq_modules_entry(s, m, FORMAT);
    float threshold = ((const bnb *)lq_modules_priv(s))->threshold;
    LQ_TRY(lq_entry_expect(ctx, w, w->dtype == LQ_I8, 2, w->shape[0], w->shape[1]));
    if (!w->shape[0] || !w->shape[1] || w->shape[0] > INT32_MAX || w->shape[1] > INT32_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is empty or too large", w->name);
    LQ_TRY(lq_entry_expect(ctx, scb, scb->dtype == LQ_F32, 1, w->shape[0], 0));
    if (format) LQ_TRY(lq_entry_expect(ctx, format, format->dtype == LQ_U8, 0, 0, 0));
    *e = (lq_entry){.dtype = LQ_NONE, .ndim = 2, .shape = {w->shape[0], w->shape[1]},
                    .scheme = {.grid = {.kind = LQ_GRID_INT, .bits = 8, .vec = 1, .bias = 128}, .scale = {.dtype = LQ_F32, .sig = LQ_SIG_127TH, .tile_r = 1},
                               .act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .outlier = threshold, .scope = threshold > 0}}};
    return LQ_OK;
}

static lq_status bnb_describe(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m, lq_entry *e, bool *plain) {
    const lq_entry *w = lq_modules_entry(s, m, WEIGHT);
    bool table = m->part[ABSMAX] >= 0, int8 = m->part[SCB] >= 0;
    LQ_TRY(which_parts(ctx, name, m, table));
    if (table) return describe_table(ctx, s, m, e);
    if (int8) return describe_int8(ctx, s, m, e);
    LQ_TRY(need(ctx, name, m, FORMAT, "weight_format", false));
    if (w->dtype == LQ_I8 || w->dtype == LQ_U8) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is of type %s, but has neither absmax nor SCB", w->name, lq_dtypes[w->dtype].name);
    *plain = true;
    return LQ_OK;
}

/* -- data ------------------------------------------------------------------------------------------------------------ */

static lq_status read_nibbles(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, WEIGHT, &data);
    const uint8_t *bytes = data;
    for (uint32_t r = 0; !st && r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) {
            uint64_t at = (uint64_t)r * q->cols + c;
            lq_code_put(q->codes + r * q->row_bytes, 4, c, at & 1 ? bytes[at >> 1] & 15u : bytes[at >> 1] >> 4);
        }
    lq_free(data);
    return st;
}

static lq_status check_map(lq_ctx *ctx, lq_source *s, size_t i, const lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, QUANT_MAP, &data);
    const float *map = data;
    for (int k = 0; !st && k < 16; k++)
        if (!(fabsf(map[k] - q->lut[k]) <= 1e-6f)) /* NaN too; old versions differ in the last bit */
            st = lq_fail(ctx, LQ_ERR_FORMAT, "quant_map[%d] is %.9g, expected %.9g", k, (double)map[k], (double)q->lut[k]);
    lq_free(data);
    return st;
}

static lq_status read_into(lq_ctx *ctx, lq_source *s, size_t i, size_t part, void *out, size_t bytes) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, part, &data);
    if (!st) memcpy(out, data, bytes);
    lq_free(data);
    return st;
}

static lq_status read_nested(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q, size_t nb) {
    state head;
    float *lut = lq_arena_alloc(q->mem, 256 * sizeof *lut);
    if (!lut) return lq_oom(ctx, 256 * sizeof *lut);
    LQ_TRY(read_state(ctx, s, i, &((lq_modules *)s->priv)->modules[i], &head));
    q->scale.lut = lut;
    q->scale.offset = (float)head.offset;
    LQ_TRY(read_into(ctx, s, i, NESTED_MAP, lut, 256 * sizeof *lut));
    return read_into(ctx, s, i, NESTED_ABSMAX, q->scale.parent, (nb + q->sch.scale.span - 1) / q->sch.scale.span * sizeof(float));
}

static lq_status read_table(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    size_t nb = lq_plane_count(&q->sch.scale, q->rows, q->cols);
    LQ_TRY(check_map(ctx, s, i, q));
    LQ_TRY(read_nibbles(ctx, s, i, q));
    LQ_TRY(read_into(ctx, s, i, ABSMAX, q->scale.v, nb * lq_dtypes[q->sch.scale.dtype].bytes));
    return q->sch.scale.parent == LQ_NONE ? LQ_OK : read_nested(ctx, s, i, q, nb);
}

static lq_status check_format(lq_ctx *ctx, lq_source *s, size_t i) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, FORMAT, &data);
    if (!st && data && *(const uint8_t *)data)
        st = lq_fail(ctx, LQ_ERR_UNSUPPORTED, "weight_format is %u, a tiling of one GPU; only rows (0) are read: save the checkpoint anew with bitsandbytes 0.45 or later", *(const uint8_t *)data);
    lq_free(data);
    return st;
}

/* A row of zeros has SCB 0; its scale is 1. */
static lq_status read_scb(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, SCB, &data);
    float *scale = q->scale.v;
    for (uint32_t r = 0; !st && r < q->rows; r++) {
        float scb = ((const float *)data)[r];
        bool zeros = scb == 0;
        for (uint32_t c = 0; zeros && c < q->cols; c++) zeros = lq_code_get(q->codes + r * q->row_bytes, 8, c) == 128;
        if (!(scb >= 0) || !isfinite(scb) || (scb == 0 && !zeros)) st = lq_fail(ctx, LQ_ERR_FORMAT, "SCB[%u] is %g", r, (double)scb);
        scale[r] = zeros ? 1 : scb / 127;
    }
    lq_free(data);
    return st;
}

static lq_status read_int8(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    LQ_TRY(check_format(ctx, s, i));
    lq_status st = lq_modules_part(ctx, s, i, WEIGHT, &data);
    for (uint32_t r = 0; !st && r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) lq_code_put(q->codes + r * q->row_bytes, 8, c, (uint32_t)(((const int8_t *)data)[(size_t)r * q->cols + c] + 128));
    lq_free(data);
    return st ? st : read_scb(ctx, s, i, q);
}

static lq_status bnb_fill(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    const lq_entry *e = &s->entries[i];
    lq_status st = e->scheme.grid.kind == LQ_GRID_INT ? read_int8(ctx, s, i, out) : read_table(ctx, s, i, out);
    return st;
}

static const lq_module_format parts = {
    .suffix = {".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map", ".weight.quant_state.bitsandbytes__nf4",
               ".weight.quant_state.bitsandbytes__fp4", ".SCB", ".weight_format"},
    .required = 1u << WEIGHT, .priv_size = sizeof(bnb), .config = bnb_config, .describe = bnb_describe, .fill = bnb_fill,
};

static lq_status bnb_open(lq_ctx *ctx, lq_source *s) { return lq_modules_open(ctx, s, &parts); }

const lq_reader lq_reader_bnb = {
    .name = "bitsandbytes", .what = "bitsandbytes checkpoint folder: NF4, FP4, LLM.int8", .probe = bnb_probe, .open = bnb_open, LQ_MODULES_CALLS,
};
