/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Float weights in compressed-tensors. A linear [N = out][K = in]:
 *
 *     float-quantized        weight        F8_E4M3 [N][K]
 *                            weight_scale  F16 BF16 F32 [1], [N][1], [N][K/g], [ceil(N/128)][K/128]
 *     mxfp8-quantized        weight        F8_E4M3 [N][K],  weight_scale U8 [N][K/32]: 2^(e-127)
 *     mxfp4-pack-quantized   weight_packed U8 [N][K/2]: E2M1, the even input in the low nibble;  weight_scale U8 [N][K/32]: 2^(e-127)
 *     nvfp4-pack-quantized   weight_packed as mxfp4,  weight_scale F8_E4M3 [N][K/16],  weight_global_scale F32 [1]: a divisor,
 *                            w = e2m1 * (weight_scale / weight_global_scale)
 *
 * compressed-tensors 0.20, compressors/naive_quantized, mxfp8, nvfp4, mxfp4. */
#include "formats/write_ct.h"

#include <string.h>

static bool is_scale(const lq_scheme *s, lq_dtype t, uint32_t tile) {
    return s->scale.dtype == t && s->scale.tile_r == 1 && s->scale.tile_c == tile && s->scale.parent == LQ_NONE;
}

static bool mxfp8_mine(const lq_scheme *s) { return s->grid.kind == LQ_GRID_E4M3 && s->scale.dtype == LQ_E8M0; }
static bool float_mine(const lq_scheme *s) { return s->grid.kind == LQ_GRID_E4M3 && s->scale.dtype != LQ_E8M0; }
static bool mxfp4_mine(const lq_scheme *s) { return s->grid.kind == LQ_GRID_E2M1 && s->scale.parent == LQ_NONE; }
static bool nvfp4_mine(const lq_scheme *s) { return s->grid.kind == LQ_GRID_E2M1 && s->scale.parent != LQ_NONE; }

static lq_status even_inputs(lq_ctx *ctx, uint32_t cols, uint32_t tile) {
    if (cols % tile == 0) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "blocks of %u do not divide %u inputs; --scheme W4A16 fits, or --keep-unfit keeps such linears", tile, cols);
}

static lq_status float_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    (void)rows, (void)cols;
    return s->zero_kind == LQ_ZERO_NONE ? LQ_OK : lq_fail(ctx, LQ_ERR_UNSUPPORTED, "floats have no zero points; --scheme FP8 fits");
}

static lq_status mxfp8_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    (void)rows;
    if (!is_scale(s, LQ_E8M0, 32) || s->zero_kind) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "E4M3 with powers of two has one for 32 inputs; --scheme FP8 fits");
    return even_inputs(ctx, cols, 32);
}

static lq_status mxfp4_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    (void)rows;
    if (!is_scale(s, LQ_E8M0, 32) || s->zero_kind || s->act.kind) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "4-bit floats are MXFP4 or NVFP4; --scheme MXFP4 fits");
    return even_inputs(ctx, cols, 32);
}

static lq_status nvfp4_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    const lq_plane_desc *d = &s->scale;
    (void)rows;
    if (d->dtype != LQ_E4M3 || d->tile_r != 1 || d->tile_c != 16 || d->parent != LQ_F32 || d->span || s->zero_kind || s->act.kind)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "4-bit floats are MXFP4 or NVFP4; --scheme NVFP4 fits");
    return even_inputs(ctx, cols, 16);
}

static size_t bytes_parts(const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    out[0] = (lq_part_spec){".weight", LQ_E4M3, 2, {lq_row_rows(r), lq_row_cols(r)}};
    out[1] = lq_ct_scale_part(r);
    if (out[1].dtype == LQ_E8M0) out[1].dtype = LQ_U8;
    return 2;
}

static size_t nibbles_parts(const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    bytes_parts(r, out);
    out[0] = (lq_part_spec){".weight_packed", LQ_U8, 2, {lq_row_rows(r), lq_row_cols(r) / 2}};
    if (r->scheme.scale.parent == LQ_NONE) return 2;
    out[2] = (lq_part_spec){".weight_global_scale", LQ_F32, 1, {1}};
    return 3;
}

/* Codes of 4 and 8 bits lie in our bitstream as they do here. */
static void pack(const lq_qtensor *q, const char *suffix, void *out) {
    size_t row = (size_t)q->cols * q->sch.grid.bits / 8;
    float up = q->scale.parent ? *(const float *)q->scale.parent : 1, divisor = q->sch.scale.divides ? up : 1 / up;
    if (!strcmp(suffix, ".weight_scale")) lq_ct_scale_pack(q, out);
    else if (!strcmp(suffix, ".weight_global_scale")) memcpy(out, &divisor, sizeof divisor);
    else
        for (uint32_t r = 0; r < q->rows; r++) memcpy((char *)out + r * row, q->codes + r * q->row_bytes, row);
}

const lq_ct_family lq_ct_float = {"float-quantized", float_mine, float_accept, bytes_parts, pack};
const lq_ct_family lq_ct_mxfp8 = {"mxfp8-quantized", mxfp8_mine, mxfp8_accept, bytes_parts, pack};
const lq_ct_family lq_ct_mxfp4 = {"mxfp4-pack-quantized", mxfp4_mine, mxfp4_accept, nibbles_parts, pack};
const lq_ct_family lq_ct_nvfp4 = {"nvfp4-pack-quantized", nvfp4_mine, nvfp4_accept, nibbles_parts, pack};
