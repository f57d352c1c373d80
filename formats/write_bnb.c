/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* bitsandbytes checkpoint: a safetensors folder as transformers saves it. Every linear but the head is quantized, others are named in
 * llm_int8_skip_modules. 4 bits (NF4, FP4): blocks of B consecutive weights of the flattened matrix [N = out][K = in], n = N K, nb = ceil(n / B),
 *
 *     <module>.weight                    U8  [ceil(n/2)][1]   byte j: element 2j in the high nibble, 2j + 1 in the low one
 *     <module>.weight.absmax             F32 [nb]             double quantized: U8 [nb], an index into nested_quant_map
 *     <module>.weight.quant_map          F32 [16]             the codebook
 *     <module>.weight.nested_absmax      F32 [ceil(nb/256)]   double quantized: absmax = nested_quant_map[u8] nested_absmax + nested_offset
 *     <module>.weight.nested_quant_map   F32 [256]
 *     <module>.weight.quant_state.bitsandbytes__nf4 (__fp4)   U8 [length], JSON: type, block size, dtype, shape, nested_offset
 *
 * nested_offset is known with the data only, the length before: the JSON of a double quantized matrix is followed by spaces. LLM.int8:
 *
 *     <module>.weight         I8  [N][K]   W = q SCB / 127
 *     <module>.SCB            F32 [N]      largest magnitude of a row
 *     <module>.weight_format  U8  scalar   0: rows
 *
 * Transformers turns GPT-2's Conv1D before it quantizes: such a matrix is [out][in] here like any other. Source: bitsandbytes 0.50,
 * transformers 5. */
#include "core/num.h"
#include "core/pack.h"
#include "formats/folder.h"

#include <stdio.h>
#include <string.h>

enum { NESTED_BLOCK = 256, STATE = 192 }; /* STATE: bytes of a double quantized matrix's JSON with its spaces */

typedef struct bnb {
    lq_folder folder;
    const lq_row *first;         /* the first quantized row: what the config says of all; NULL: none */
} bnb;

static bool is_int8(const lq_scheme *s) { return s->grid.kind == LQ_GRID_INT; }
static bool is_nested(const lq_scheme *s) { return s->scale.parent != LQ_NONE; }
static const char *type_name(const lq_scheme *s) { return is_int8(s) ? "int8" : s->grid.bias == LQ_LUT_NF4 ? "nf4" : "fp4"; }

/* -- accept ---------------------------------------------------------------------------------------------------------- */

static bool legal_block(uint32_t b) { return b >= 32 && b <= 4096 && !(b & (b - 1)); }

static lq_status accept_table(lq_ctx *ctx, const lq_scheme *s) {
    const lq_plane_desc *d = &s->scale;
    if (s->act.kind || s->extra) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "NF4 and FP4 hold weights alone; --format lqt holds every scheme");
    if (d->tile_r != LQ_FLAT) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "blocks run over the flattened matrix; --group-size 64 fits");
    if (!legal_block(d->tile_c))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "blocks of %u do not fit, powers of two from 32 to 4096 do; the nearest is --group-size %d", d->tile_c,
                       d->tile_c < 48 ? 32 : d->tile_c < 96 ? 64 : d->tile_c < 192 ? 128 : d->tile_c < 384 ? 256 : d->tile_c < 768 ? 512 : d->tile_c < 1536 ? 1024 : d->tile_c < 3072 ? 2048 : 4096);
    bool plain = d->dtype == LQ_F32 && d->parent == LQ_NONE, nested = d->dtype == LQ_U8 && d->parent == LQ_F32 && d->span == NESTED_BLOCK;
    return (plain || nested) && !d->sig ? LQ_OK : lq_fail(ctx, LQ_ERR_UNSUPPORTED, "block scales are F32, or 8 bits with one F32 for 256 (NF4-DQ), not %s", lq_dtypes[d->dtype].name);
}

static lq_status accept_int8(lq_ctx *ctx, const lq_scheme *s) {
    const lq_plane_desc *d = &s->scale;
    if (s->extra & LQ_X_OUTLIER_COLS)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "outlier columns fixed by calibration do not fit, bitsandbytes finds them as it runs; leave out --static, or use --format lqt");
    if (s->grid.bits != 8 || s->grid.bias != 128 || s->zero_kind || s->extra || d->tile_r != 1 || d->tile_c || d->dtype != LQ_F32 || d->sig != LQ_SIG_127TH || d->parent)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "integers are 8 bits, symmetric, with one F32 scale per row that is a number / 127; --scheme %s fits", s->grid.bits > 5 ? "INT8" : "NF4");
    if (s->act.kind != LQ_ACT_DYNAMIC || s->act.dtype != LQ_I8 || s->act.tile)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "its 8-bit linears round their activations per token to 8 bits, this scheme does not; --scheme INT8 fits");
    if (s->act.scope != (s->act.outlier > 0))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "bitsandbytes takes outliers for a whole column of the batch; --compat bnb fits");
    return LQ_OK;
}

static lq_status accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    char name[64];
    if (!rows || !cols) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u outputs x %u inputs", rows, cols);
    if (s->grid.kind == LQ_GRID_INT) return accept_int8(ctx, s);
    if (s->grid.kind == LQ_GRID_LUT && s->grid.bits == 4 && (s->grid.bias == LQ_LUT_NF4 || s->grid.bias == LQ_LUT_FP4)) return accept_table(ctx, s);
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds NF4, FP4 and LLM.int8, not %s; --format lqt holds every scheme", lq_scheme_name(s, name, sizeof name));
}

/* -- parts ----------------------------------------------------------------------------------------------------------- */

static lq_dtype float_type(lq_dtype t) { return t == LQ_F16 || t == LQ_BF16 || t == LQ_F32 ? t : LQ_NONE; }

/* The type a runtime dequantizes to: the source's own, else that of the first kept tensor. */
static const char *dtype_name(const lq_sink *s, const lq_row *r) {
    lq_dtype t = float_type(r->dtype);
    for (size_t i = 0; i < s->cat->n && t == LQ_NONE; i++)
        if (!s->cat->rows[i].quantize) t = float_type(s->cat->rows[i].out_dtype);
    return t == LQ_F16 ? "float16" : t == LQ_BF16 ? "bfloat16" : "float32";
}

/* offset NULL: what comes before it. */
static int state_text(const lq_sink *s, const lq_row *r, const char *offset, char out[STATE]) {
    int n = snprintf(out, STATE, "{\"quant_type\": \"%s\", \"blocksize\": %u, \"dtype\": \"%s\", \"shape\": [%u, %u]", type_name(&r->scheme), r->scheme.scale.tile_c,
                     dtype_name(s, r), lq_row_rows(r), lq_row_cols(r));
    if (offset) n += snprintf(out + n, STATE - (size_t)n, ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", \"nested_offset\": %s", NESTED_BLOCK, offset);
    return n + snprintf(out + n, STATE - (size_t)n, "}");
}

static size_t int8_parts(const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    out[0] = (lq_part_spec){".weight", LQ_I8, 2, {lq_row_rows(r), lq_row_cols(r)}};
    out[1] = (lq_part_spec){".SCB", LQ_F32, 1, {lq_row_rows(r)}};
    out[2] = (lq_part_spec){".weight_format", LQ_U8, 0, {0}};
    return 3;
}

static size_t parts(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    if (is_int8(&r->scheme)) return int8_parts(r, out);
    uint64_t n = lq_row_elems(r), nb = lq_plane_count(&r->scheme.scale, lq_row_rows(r), lq_row_cols(r));
    bool nested = is_nested(&r->scheme), nf4 = r->scheme.grid.bias == LQ_LUT_NF4;
    char text[STATE];
    size_t i = 0;
    out[i++] = (lq_part_spec){".weight", LQ_U8, 2, {(n + 1) / 2, 1}};
    out[i++] = (lq_part_spec){nf4 ? ".weight.quant_state.bitsandbytes__nf4" : ".weight.quant_state.bitsandbytes__fp4", LQ_U8, 1,
                              {nested ? STATE : (uint64_t)state_text(s, r, NULL, text)}};
    out[i++] = (lq_part_spec){".weight.absmax", r->scheme.scale.dtype, 1, {nb}};
    out[i++] = (lq_part_spec){".weight.quant_map", LQ_F32, 1, {16}};
    if (nested) out[i++] = (lq_part_spec){".weight.nested_absmax", LQ_F32, 1, {(nb + NESTED_BLOCK - 1) / NESTED_BLOCK}};
    if (nested) out[i++] = (lq_part_spec){".weight.nested_quant_map", LQ_F32, 1, {256}};
    return i;
}

/* -- put ------------------------------------------------------------------------------------------------------------- */

static void pack_nibbles(const lq_qtensor *q, uint8_t *out) {
    size_t i = 0;
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++, i++) {
            uint32_t code = lq_code_get(q->codes + r * q->row_bytes, 4, c);
            out[i / 2] |= (uint8_t)(i % 2 ? code : code << 4);
        }
    if (i % 2 && q->sch.grid.bias == LQ_LUT_NF4) out[i / 2] |= 7; /* as a padding zero is coded */
}

static lq_status pack_state(const lq_sink *s, const lq_row *r, const lq_qtensor *q, uint8_t *out) {
    char offset[40] = "", text[STATE];
    if (is_nested(&q->sch)) {
        json_t *v = json_real((double)q->scale.offset); /* jansson: no locale's comma */
        size_t n = v ? json_dumpb(v, offset, sizeof offset - 1, JSON_ENCODE_ANY) : 0;
        json_decref(v);
        if (!n || n >= sizeof offset) return lq_oom(s->ctx, sizeof offset);
    }
    int n = state_text(s, r, *offset ? offset : NULL, text);
    if (n >= STATE) return lq_fail(s->ctx, LQ_ERR_INTERNAL, "a quant_state of %d bytes", n);
    memset(out, ' ', *offset ? STATE : 0);
    memcpy(out, text, (size_t)n);
    return LQ_OK;
}

static void pack_map(const lq_qtensor *q, float *out) {
    for (int i = 0; i < 16; i++) out[i] = q->lut[i] + 0.0f; /* FP4's -0 is stored as 0 */
}

static lq_status pack_table(const lq_sink *s, const lq_qtensor *q, void *out) {
    if (!q->scale.lut) return lq_fail(s->ctx, LQ_ERR_UNSUPPORTED, "its 8-bit block scales have no table of values; double quantize it anew (--scheme NF4-DQ), or use --format lqt");
    memcpy(out, q->scale.lut, 256 * sizeof *q->scale.lut);
    return LQ_OK;
}

static bool row_is_zero(const lq_qtensor *q, uint32_t r) {
    for (uint32_t c = 0; c < q->cols; c++)
        if (q->codes[r * q->row_bytes + c] != 128) return false;
    return true;
}

static lq_status pack_scb(const lq_sink *s, const lq_qtensor *q, float *out) {
    for (uint32_t r = 0; r < q->rows; r++) {
        float scale = ((const float *)q->scale.v)[r];
        if (scale == 1 && row_is_zero(q, r)) continue; /* 0, as bitsandbytes has it */
        if (!lq_sig_stored(LQ_SIG_127TH, scale, &out[r])) return lq_fail(s->ctx, LQ_ERR_INTERNAL, "the scale %.9g of row %u has no SCB", (double)scale, r);
    }
    return LQ_OK;
}

static lq_status pack_int8(const lq_sink *s, const lq_qtensor *q, size_t i, uint8_t *out) {
    if (i == 1) return pack_scb(s, q, (float *)(void *)out);
    for (uint32_t r = 0; i == 0 && r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) out[(size_t)r * q->cols + c] = q->codes[r * q->row_bytes + c] ^ 0x80;
    return LQ_OK;
}

static lq_status pack(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out) {
    if (is_int8(&q->sch)) return pack_int8(s, q, i, out);
    size_t nb = lq_plane_count(&q->sch.scale, q->rows, q->cols);
    switch (i) {
    case 0: pack_nibbles(q, out); break;
    case 1: return pack_state(s, r, q, out);
    case 2: memcpy(out, q->scale.v, nb * lq_dtypes[q->sch.scale.dtype].bytes); break;
    case 3: pack_map(q, out); break;
    case 4: memcpy(out, q->scale.parent, (nb + NESTED_BLOCK - 1) / NESTED_BLOCK * sizeof(float)); break;
    default: return pack_table(s, q, out);
    }
    return LQ_OK;
}

/* -- open and config ------------------------------------------------------------------------------------------------- */

/* Block sizes may differ: each matrix says its own. */
static lq_status same_kind(lq_ctx *ctx, const lq_row *a, const lq_row *b) {
    const lq_scheme *x = &a->scheme, *y = &b->scheme;
    if (is_int8(x) != is_int8(y))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'%s' is %s and '%s' %s: the config says load_in_4bit or load_in_8bit for the whole model; use one of them, or --format lqt", a->name,
                       type_name(x), b->name, type_name(y));
    if (x->grid.bias != y->grid.bias || is_nested(x) != is_nested(y))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'%s' is %s%s and '%s' %s%s: the config says one type for the whole model; use one of them, or --format lqt", a->name,
                       type_name(x), is_nested(x) ? "-dq" : "", b->name, type_name(y), is_nested(y) ? "-dq" : "");
    if (x->act.outlier != y->act.outlier)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'%s' has threshold %g and '%s' %g: the config says one for the whole model", a->name, (double)x->act.outlier, b->name, (double)y->act.outlier);
    return LQ_OK;
}

/* Seen in 0.50.2: wrong weights from its vectorized kernel, also of its own files; CUDA and the plain kernels read the layout as it is. */
static void warn_crossing(const lq_sink *s, const lq_row *r, size_t n) {
    if (n)
        lq_log(s->ctx, LQ_LOG_WARN, "blocks of %u run across the rows of %zu matrices (first '%s', %u inputs): bitsandbytes' AVX-512 kernel for CPUs dequantizes such wrongly",
               r->scheme.scale.tile_c, n, r->name, lq_row_cols(r));
}

static lq_status bnb_check(lq_sink *s) {
    bnb *f = s->priv;
    for (size_t i = 0; i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (!r->quantize) continue;
        if (!f->first) f->first = r;
        LQ_TRY(same_kind(s->ctx, f->first, r));
    }
    return lq_folder_check(s);
}

static lq_status bnb_open(lq_sink *s) {
    static const lq_layout layout = {.parts = parts, .pack = pack};
    const lq_row *crossing = NULL;
    size_t n = 0;
    for (size_t i = 0; i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (!r->quantize || is_int8(&r->scheme) || lq_row_cols(r) % r->scheme.scale.tile_c == 0) continue;
        if (!n++) crossing = r;
    }
    warn_crossing(s, crossing, n);
    return lq_folder_open(s, &layout);
}

/* Every key that transformers writes; a skip list replaces its default (the head). */
static json_t *bnb_config(lq_sink *s) {
    const lq_row *r = ((const bnb *)s->priv)->first;
    bool int8 = r && is_int8(&r->scheme);
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:s, s:b, s:s, s:s, s:f, s:o, s:b, s:b}", "quant_method", "bitsandbytes", "_load_in_4bit", !int8, "_load_in_8bit", (int)int8,
                     "load_in_4bit", !int8, "load_in_8bit", (int)int8, "bnb_4bit_quant_type", r && !int8 ? type_name(&r->scheme) : "fp4", "bnb_4bit_use_double_quant",
                     (int)(r && is_nested(&r->scheme)), "bnb_4bit_compute_dtype", r ? dtype_name(s, r) : "float32", "bnb_4bit_quant_storage", "uint8", "llm_int8_threshold",
                     int8 ? (double)r->scheme.act.outlier : 6.0, "llm_int8_skip_modules", lq_folder_skipped(s), "llm_int8_enable_fp32_cpu_offload", 0, "llm_int8_has_fp16_weight", 0);
}

const lq_format lq_format_bnb = {
    .name = "bitsandbytes", .what = "bitsandbytes checkpoint folder: NF4, FP4, LLM.int8", .priv_size = sizeof(bnb), .accept = accept, .check = bnb_check, .open = bnb_open,
    .quant_config = bnb_config, LQ_FOLDER_CALLS,
};
