/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* FP8 checkpoint (quant_method "fp8"): a safetensors folder in which a quantized linear [N = out][K = in] is, in blocks of B x C (128 x 128),
 *
 *     <module>.weight            F8_E4M3 [N][K]
 *     <module>.weight_scale_inv  F32 or, scale_fmt "ue8m0", F8_E8M0 [ceil(N/B)][ceil(K/C)]   a multiplier, whatever its name says
 *
 * and with one scale for the matrix
 *
 *     <module>.weight        F8_E4M3 [N][K]
 *     <module>.weight_scale  F32 []
 *     <module>.input_scale   F32 []       step of static activations: x is rounded to E4M3(x / input_scale)
 *
 * Kept linears are named twice: vLLM reads ignored_layers (exact names), transformers modules_to_not_convert. transformers knows the
 * second form under other names (weight_scale_inv, activation_scale), which vLLM does not: it is written as vLLM has it.
 * Layout and config: DeepSeek-V3, AutoFP8; vLLM 0.2x quantization/fp8.py, transformers 5 finegrained_fp8.py. */
#include "formats/folder.h"

#include <string.h>

typedef struct lq_fp8 {
    lq_folder folder;
    lq_scheme base;              /* of every quantized row */
} lq_fp8;

static bool is_block(const lq_scheme *s) { return s->scale.tile_c > 0; }

static lq_status fp8_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    const lq_act *a = &s->act;
    if (s->grid.kind != LQ_GRID_E4M3 || s->zero_kind != LQ_ZERO_NONE || s->extra)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds E4M3 weights alone; --scheme FP8-block fits");
    bool powers = s->scale.dtype == LQ_E8M0 && s->scale.tile_c;
    if ((s->scale.dtype != LQ_F32 && !powers) || s->scale.parent != LQ_NONE || (s->scale.tile_c ? s->scale.tile_r < 2 || s->scale.tile_r == LQ_FLAT : s->scale.tile_r != 0))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scales are F32, for blocks or for the whole matrix; --scheme FP8-block or FP8-tensor fits, --format compressed-tensors holds one per row");
    if (a->kind == LQ_ACT_NONE || a->dtype != LQ_E4M3 || a->outlier > 0 || a->scope)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "runtimes round the activations to E4M3 too; --scheme FP8-block or FP8-tensor says so");
    if (is_block(s) ? a->kind != LQ_ACT_DYNAMIC || a->tile != s->scale.tile_c : a->tile != 0)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "activations are rounded in blocks as wide as the weights', or per token with one scale; --scheme FP8-block or FP8-tensor fits");
    return rows && cols ? LQ_OK : lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a matrix of %u x %u", rows, cols);
}

static size_t fp8_parts(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    const lq_plane_desc *d = &r->scheme.scale;
    uint32_t rows = lq_row_rows(r), cols = lq_row_cols(r), n = 1;
    (void)s;
    out[0] = (lq_part_spec){".weight", LQ_E4M3, 2, {rows, cols}};
    if (is_block(&r->scheme)) out[n++] = (lq_part_spec){".weight_scale_inv", d->dtype, 2, {(rows + d->tile_r - 1) / d->tile_r, (cols + d->tile_c - 1) / d->tile_c}};
    else out[n++] = (lq_part_spec){".weight_scale", LQ_F32, 0, {0}};
    if (r->scheme.act.kind == LQ_ACT_STATIC) out[n++] = (lq_part_spec){".input_scale", LQ_F32, 0, {0}};
    return n;
}

static lq_status fp8_pack(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out) {
    (void)s;
    (void)r;
    if (i == 0) lq_folder_codes(q, out);
    else if (i == 1) memcpy(out, q->scale.v, lq_plane_count(&q->sch.scale, q->rows, q->cols) * lq_dtypes[q->sch.scale.dtype].bytes);
    else memcpy(out, &q->act_scale, sizeof(float));
    return LQ_OK;
}

static lq_status fp8_check(lq_sink *s) {
    const lq_row *first;
    LQ_TRY(lq_folder_alike(s, lq_scheme_eq, "--format compressed-tensors mixes them", &first));
    if (first) ((lq_fp8 *)s->priv)->base = first->scheme;
    return lq_folder_check(s);
}

static lq_status fp8_open(lq_sink *s) {
    static const lq_layout layout = {.parts = fp8_parts, .pack = fp8_pack};
    return lq_folder_open(s, &layout);
}

static json_t *fp8_config(lq_sink *s) {
    const lq_scheme *base = &((lq_fp8 *)s->priv)->base;
    json_t *kept = lq_folder_skipped(s), *meta = lq_folder_meta(s);
    json_t *c = kept && meta ? json_pack("{s:s, s:s, s:s, s:O, s:O}", "quant_method", "fp8", "activation_scheme", base->act.kind == LQ_ACT_STATIC ? "static" : "dynamic",
                                         "fmt", "e4m3", "ignored_layers", kept, "modules_to_not_convert", kept)
                             : NULL;
    bool ok = c;
    if (ok && is_block(base))
        ok = !json_object_set_new(c, "weight_block_size", json_pack("[i, i]", (int)base->scale.tile_r, (int)base->scale.tile_c)) &&
             !json_object_set_new(c, "scale_fmt", json_string(base->scale.dtype == LQ_E8M0 ? "ue8m0" : "float"));
    ok = ok && !json_object_set(c, "meta", meta);
    json_decref(kept);
    json_decref(meta);
    if (ok) return c;
    json_decref(c);
    return NULL;
}

const lq_format lq_format_fp8 = {
    .name = "fp8", .what = "FP8 checkpoint folder: E4M3 in blocks or with one scale", .priv_size = sizeof(lq_fp8), .accept = fp8_accept, .kv_scales = true,
    .check = fp8_check, .open = fp8_open, .quant_config = fp8_config, LQ_FOLDER_CALLS,
};
