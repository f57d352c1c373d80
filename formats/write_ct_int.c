/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Integer weights in compressed-tensors. A linear [N = out][K = in] of b bits, G scales a row; codes u = q + 2^(b-1):
 *
 *     pack-quantized, weights alone or (W4AFP8) with FP8 activations per token
 *       weight_packed     I32 [N][ceil(K*b/32)]   the K codes of a row as one LE bitstream, 32-bit words; 2..8 bits, dense
 *       weight_shape      I64 [2]                 N, K
 *       weight_scale      F16 BF16 F32 [N][G], [N][1], [1]
 *       weight_zero_point I32 [ceil(N*b/32)][G]   asymmetric: the N zero points u of a group, a bitstream down a column; [1]: I8, q
 *     int-quantized, with integer activations of 8 bits
 *       weight            I8 [N][K]               q
 *       weight_scale      as above
 *       weight_zero_point I8 like weight_scale    asymmetric: q
 *
 * Our canonical bitstream holds u, so do our zero planes. compressed-tensors 0.20, compressors/pack_quantized and naive_quantized. */
#include "formats/write_ct.h"

#include "core/pack.h"

#include <string.h>

static bool has_zero(const lq_scheme *s) { return s->zero_kind == LQ_ZERO_CODE; }
static bool packed_mine(const lq_scheme *s) { return s->grid.kind == LQ_GRID_INT && (s->act.kind == LQ_ACT_NONE || s->act.dtype == LQ_E4M3); }
static bool int_mine(const lq_scheme *s) { return s->grid.kind == LQ_GRID_INT && !packed_mine(s); }

static lq_status int_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    uint32_t b = s->grid.bits;
    (void)rows, (void)cols;
    if (b < 2 || b > 8) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u-bit integers do not fit; the nearest is --bits %d", b, b < 2 ? 2 : 8);
    bool same_tiles = s->zero.tile_r == s->scale.tile_r && s->zero.tile_c == s->scale.tile_c;
    if (s->zero_kind == LQ_ZERO_NONE && s->grid.bias == 1 << (b - 1)) return LQ_OK;
    if (has_zero(s) && !s->grid.bias && s->zero.dtype == LQ_U8 && s->zero.parent == LQ_NONE && same_tiles && lq_ct_tile_of(&s->scale) != LQ_CT_BLOCK) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "zero points are codes of one byte per scale, or 2^(bits-1) everywhere; --sym or --asym fits");
}

static size_t words(uint64_t codes, uint64_t bits) { return (size_t)((codes * bits + 31) / 32); }

static size_t packed_parts(const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    const lq_scheme *s = &r->scheme;
    uint64_t rows = lq_row_rows(r), cols = lq_row_cols(r), bits = s->grid.bits;
    size_t n = 0;
    out[n++] = (lq_part_spec){".weight_packed", LQ_I32, 2, {rows, words(cols, bits)}};
    out[n++] = lq_ct_scale_part(r);
    out[n++] = (lq_part_spec){".weight_shape", LQ_I64, 1, {2}};
    if (has_zero(s) && lq_ct_tile_of(&s->scale) == LQ_CT_TENSOR) out[n++] = (lq_part_spec){".weight_zero_point", LQ_I8, 1, {1}};
    else if (has_zero(s)) out[n++] = (lq_part_spec){".weight_zero_point", LQ_I32, 2, {words(rows, bits), lq_plane_cols(&s->scale, (uint32_t)cols)}};
    return n;
}

static size_t int_parts(const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    size_t n = 0;
    out[n++] = (lq_part_spec){".weight", LQ_I8, 2, {lq_row_rows(r), lq_row_cols(r)}};
    out[n++] = lq_ct_scale_part(r);
    if (!has_zero(&r->scheme)) return n;
    out[n] = lq_ct_scale_part(r);
    out[n].suffix = ".weight_zero_point";
    out[n++].dtype = LQ_I8;
    return n;
}

/* Rows of the canonical bitstream are padded: what lies behind the last code is not stored. */
static void pack_words(const lq_qtensor *q, uint8_t *out) {
    size_t bits = (size_t)q->cols * q->sch.grid.bits, row = words(q->cols, q->sch.grid.bits) * 4, whole = bits / 8;
    for (uint32_t r = 0; r < q->rows; r++) {
        const uint8_t *from = q->codes + r * q->row_bytes;
        memcpy(out + r * row, from, whole);
        if (bits % 8) out[r * row + whole] = from[whole] & (uint8_t)(0xff >> (8 - bits % 8));
    }
}

static void pack_zero_words(const lq_qtensor *q, uint8_t *out) {
    uint32_t bits = q->sch.grid.bits, groups = lq_plane_cols(&q->sch.scale, q->cols);
    for (uint32_t g = 0; g < groups; g++)
        for (uint32_t n = 0; n < q->rows; n++) {
            uint32_t zero = ((const uint8_t *)q->zero.v)[(size_t)n * groups + g];
            for (uint32_t i = 0; i < bits; i++) {
                size_t bit = (size_t)n * bits + i, word = bit / 32 * groups + g;
                if (zero >> i & 1) out[word * 4 + bit % 32 / 8] |= (uint8_t)(1u << bit % 8);
            }
        }
}

static void pack_bytes(const lq_qtensor *q, uint8_t *out) {
    uint32_t bits = q->sch.grid.bits, half = 1u << (bits - 1);
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) *out++ = (uint8_t)(lq_code_get(q->codes + r * q->row_bytes, bits, c) - half);
}

static void pack_zero_bytes(const lq_qtensor *q, uint8_t *out) {
    size_t n = lq_plane_count(&q->sch.zero, q->rows, q->cols);
    for (size_t i = 0; i < n; i++) out[i] = (uint8_t)(((const uint8_t *)q->zero.v)[i] - (1u << (q->sch.grid.bits - 1)));
}

static void pack_shape(const lq_qtensor *q, uint8_t *out) {
    lq_put_u32(out, q->rows);
    lq_put_u32(out + 8, q->cols);
}

static void packed_pack(const lq_qtensor *q, const char *suffix, void *out) {
    if (!strcmp(suffix, ".weight_packed")) pack_words(q, out);
    else if (!strcmp(suffix, ".weight_shape")) pack_shape(q, out);
    else if (!strcmp(suffix, ".weight_scale")) lq_ct_scale_pack(q, out);
    else if (lq_ct_tile_of(&q->sch.scale) == LQ_CT_TENSOR) pack_zero_bytes(q, out);
    else pack_zero_words(q, out);
}

static void int_pack(const lq_qtensor *q, const char *suffix, void *out) {
    if (!strcmp(suffix, ".weight")) pack_bytes(q, out);
    else if (!strcmp(suffix, ".weight_scale")) lq_ct_scale_pack(q, out);
    else pack_zero_bytes(q, out);
}

const lq_ct_family lq_ct_packed = {"pack-quantized", packed_mine, int_accept, packed_parts, packed_pack};
const lq_ct_family lq_ct_int = {"int-quantized", int_mine, int_accept, int_parts, int_pack};
