/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* BitNet b1.58 checkpoint as transformers reads it (quant_method "bitnet", linear_class "bitlinear"): a ternary matrix [N = out][K = in],
 * R = N / 4, is
 *
 *     <module>.weight         U8  [R][K]   byte [r][k] = sum over i < 4 of (t[i R + r][k] + 1) << 2 i,  t = -1, 0, 1
 *     <module>.weight_scale   F32 [1]      1 / s: w = t / weight_scale
 *
 * and activations are rounded to 8 bits per token. transformers also knows "autobitlinear", whose weight_scale is s itself; llama.cpp's
 * converter divides by it whatever the class, so the reciprocal is written. The matrices kept besides the head are named in
 * modules_to_not_convert. Source: transformers 5, integrations/bitnet.py. */
#include "core/pack.h"
#include "formats/folder.h"

static lq_status accept_scheme(lq_ctx *ctx, const lq_scheme *s) {
    const lq_plane_desc *d = &s->scale;
    char name[64];
    if (s->grid.kind != LQ_GRID_INT || s->grid.bits != 2 || s->grid.bias != 1 || s->zero_kind || s->extra)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds -1, 0, 1 alone, not %s; --scheme b1.58 fits", lq_scheme_name(s, name, sizeof name));
    if (s->act.kind != LQ_ACT_DYNAMIC || s->act.dtype != LQ_I8 || s->act.tile || s->act.outlier > 0 || s->act.scope != LQ_ACT_BITNET)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "its linears round their activations to 8 bits per token, this scheme does not; --scheme b1.58 (or ternary --activations int8) fits");
    if (d->tile_r || d->tile_c || d->dtype != LQ_F32 || d->sig != LQ_SIG_INVERSE || d->parent)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "one F32 scale per matrix that is 1 / a number fits, not %s; --scheme b1.58 does", lq_scheme_name(s, name, sizeof name));
    return LQ_OK;
}

static lq_status accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    LQ_TRY(accept_scheme(ctx, s));
    if (!rows || !cols || rows % 4)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u outputs x %u inputs do not fit: four outputs share a byte; --keep-unfit keeps such linears, --format lqt holds them", rows, cols);
    return LQ_OK;
}

static size_t parts(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    (void)s;
    out[0] = (lq_part_spec){".weight", LQ_U8, 2, {lq_row_rows(r) / 4, lq_row_cols(r)}};
    out[1] = (lq_part_spec){".weight_scale", LQ_F32, 1, {1}};
    return 2;
}

static lq_status pack_codes(lq_ctx *ctx, const lq_qtensor *q, uint8_t *out) {
    uint32_t quarter = q->rows / 4;
    for (uint32_t n = 0; n < q->rows; n++)
        for (uint32_t k = 0; k < q->cols; k++) {
            uint32_t code = lq_code_get(q->codes + n * q->row_bytes, 2, k);
            if (code > 2) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "weight (%u, %u) is 2 scales; ternary matrices fit", n, k);
            out[(size_t)(n % quarter) * q->cols + k] |= (uint8_t)(code << 2 * (n / quarter));
        }
    return LQ_OK;
}

static lq_status pack_scale(lq_ctx *ctx, const lq_qtensor *q, float *out) {
    float scale = *(const float *)q->scale.v;
    return lq_sig_stored(LQ_SIG_INVERSE, scale, out) ? LQ_OK : lq_fail(ctx, LQ_ERR_INTERNAL, "the scale %.9g has no reciprocal", (double)scale);
}

static lq_status pack(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out) {
    (void)r;
    return i ? pack_scale(s->ctx, q, out) : pack_codes(s->ctx, q, out);
}

static lq_status bitnet_open(lq_sink *s) {
    static const lq_layout layout = {.parts = parts, .pack = pack};
    return lq_folder_open(s, &layout);
}

static json_t *bitnet_config(lq_sink *s) {
    return json_pack("{s:s, s:s, s:s, s:b, s:o}", "quant_method", "bitnet", "linear_class", "bitlinear", "quantization_mode", "offline", "use_rms_norm", 0,
                     "modules_to_not_convert", lq_folder_skipped(s));
}

const lq_format lq_format_bitnet = {
    .name = "bitnet", .what = "BitNet b1.58 checkpoint folder for transformers: ternary", .priv_size = sizeof(lq_folder), .accept = accept, .check = lq_folder_check, .open = bitnet_open,
    .quant_config = bitnet_config, LQ_FOLDER_CALLS,
};
