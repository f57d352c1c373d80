/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* AWQ checkpoint, gemm layout: a safetensors folder in which a quantized linear [N = out][K = in] of 4-bit codes with G groups is
 *
 *     <module>.qweight I32 [K][N/8]   a word holds 8 neighbouring outputs of one input; nibble i is output 8 c + {0,2,4,6,1,3,5,7}[i]
 *     <module>.qzeros  I32 [G][N/8]   zero points as they are, in the same order
 *     <module>.scales  F16 [G][N]
 *     <module>.bias                   a kept tensor like any other
 *
 * Readers know zero points alone, so a symmetric matrix is stored with 8 everywhere and meta.sym says that it was one. Kept linears are
 * named by modules_to_not_convert, which vLLM compares as substrings. Layout and config: AutoAWQ 0.2.9, GPTQModel 7. */
#include "formats/folder.h"

typedef struct lq_awq {
    lq_folder folder;
    uint32_t group;              /* 0: one group per row; -1 in the config */
} lq_awq;

static bool is_sym(const lq_scheme *s) { return s->zero_kind == LQ_ZERO_NONE; }
static uint32_t groups(const lq_scheme *s, uint32_t cols) { return lq_plane_cols(&s->scale, cols); }

/* -- accept ---------------------------------------------------------------------------------------------------------- */

static bool plane_is(const lq_plane_desc *d, lq_dtype t, uint32_t group) {
    return d->dtype == t && d->tile_r == 1 && d->tile_c == group && d->parent == LQ_NONE;
}

static lq_status accept_kind(lq_ctx *ctx, const lq_scheme *s) {
    if (s->grid.kind != LQ_GRID_INT || s->grid.vec != 1 || s->act.kind != LQ_ACT_NONE || s->extra & ~(uint32_t)LQ_X_PERM)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds integer weights alone; --format lqt holds every scheme");
    if (s->extra & LQ_X_PERM)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "codes in permuted column order do not fit; use static groups, or --format lqt");
    if (s->grid.bits != 4) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u bits do not fit; the nearest is --bits 4, and --format gptq has 2, 3 and 8", s->grid.bits);
    if (!plane_is(&s->scale, LQ_F16, s->scale.tile_c))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scales are F16, one per row and group, not %s%s; --scheme int4 fits", lq_dtypes[s->scale.dtype].name,
                       s->scale.tile_r == 1 ? "" : " for more than a row");
    if (s->zero_kind == LQ_ZERO_NONE && s->grid.bias == 8) return LQ_OK;
    if (s->zero_kind == LQ_ZERO_CODE && !s->grid.bias && plane_is(&s->zero, LQ_U8, s->scale.tile_c)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "zero points are codes of one byte per scale, or 8 everywhere; --asym or --sym fits");
}

static lq_status awq_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    uint32_t g = s->scale.tile_c;
    LQ_TRY(accept_kind(ctx, s));
    if (!rows || !cols || rows % 8)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u outputs do not fit: they must be a multiple of 8 (the nearest: %u); --keep-unfit keeps such linears, --format lqt holds them",
                       rows, rows < 8 ? 8 : rows / 8 * 8);
    if (g && (g > cols || cols % g))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "groups of %u do not divide %u inputs; the nearest is --group-size %u", g, cols, lq_nearest_group(cols, g > cols ? cols : g));
    return LQ_OK;
}

/* -- open ------------------------------------------------------------------------------------------------------------ */

static size_t awq_parts(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    uint64_t rows = lq_row_rows(r), cols = lq_row_cols(r), g = groups(&r->scheme, (uint32_t)cols);
    (void)s;
    out[0] = (lq_part_spec){".qweight", LQ_I32, 2, {cols, rows / 8}};
    out[1] = (lq_part_spec){".qzeros", LQ_I32, 2, {g, rows / 8}};
    out[2] = (lq_part_spec){".scales", LQ_F16, 2, {g, rows}};
    return 3;
}

static bool same_group(const lq_scheme *a, const lq_scheme *b) { return a->scale.tile_c == b->scale.tile_c; }

/* -- put ------------------------------------------------------------------------------------------------------------- */

static const uint8_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7}; /* output of each nibble */

static uint32_t nibble(const lq_qtensor *q, uint32_t n, uint32_t k) { return q->codes[n * q->row_bytes + k / 2] >> (k % 2 * 4) & 15u; }

static void pack_weight(const lq_qtensor *q, uint8_t *out) {
    for (uint32_t k = 0; k < q->cols; k++)
        for (uint32_t c = 0; c < q->rows / 8; c++, out += 4) {
            uint32_t word = 0;
            for (uint32_t i = 0; i < 8; i++) word |= nibble(q, 8 * c + order[i], k) << 4 * i;
            lq_put_u32(out, word);
        }
}

static uint32_t zero_of(const lq_qtensor *q, uint32_t n, uint32_t g, uint32_t n_groups) {
    return is_sym(&q->sch) ? 8 : ((const uint8_t *)q->zero.v)[(size_t)n * n_groups + g];
}

static void pack_zeros(const lq_qtensor *q, uint8_t *out) {
    uint32_t n_groups = groups(&q->sch, q->cols);
    for (uint32_t g = 0; g < n_groups; g++)
        for (uint32_t c = 0; c < q->rows / 8; c++, out += 4) {
            uint32_t word = 0;
            for (uint32_t i = 0; i < 8; i++) word |= zero_of(q, 8 * c + order[i], g, n_groups) << 4 * i;
            lq_put_u32(out, word);
        }
}

static void pack_scales(const lq_qtensor *q, uint16_t *out) {
    uint32_t n_groups = groups(&q->sch, q->cols);
    for (uint32_t g = 0; g < n_groups; g++)
        for (uint32_t n = 0; n < q->rows; n++) *out++ = ((const uint16_t *)q->scale.v)[(size_t)n * n_groups + g];
}

static lq_status awq_pack(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out) {
    (void)s;
    (void)r;
    switch (i) {
    case 0: pack_weight(q, out); break;
    case 1: pack_zeros(q, out); break;
    default: pack_scales(q, out); break;
    }
    return LQ_OK;
}

static lq_status awq_check(lq_sink *s) {
    const lq_row *first;
    LQ_TRY(lq_folder_alike(s, same_group, "--format gptq has several group sizes", &first));
    ((lq_awq *)s->priv)->group = first ? first->scheme.scale.tile_c : 0;
    LQ_TRY(lq_folder_kept_apart(s));
    return lq_folder_check(s);
}

static lq_status awq_open(lq_sink *s) {
    static const lq_layout layout = {.parts = awq_parts, .pack = awq_pack};
    return lq_folder_open(s, &layout);
}

/* -- config ---------------------------------------------------------------------------------------------------------- */

static json_t *awq_config(lq_sink *s) {
    const lq_awq *f = s->priv;
    json_t *meta = lq_folder_meta(s), *kept = lq_folder_skipped(s);
    bool ok = meta && kept && !json_object_set_new(meta, "sym", lq_folder_sym(s));
    json_t *c = ok ? json_pack("{s:s, s:i, s:i, s:b, s:s, s:b, s:O, s:O}", "quant_method", "awq", "bits", 4, "group_size", f->group ? (int)f->group : -1,
                               "zero_point", 1, "version", "gemm", "lm_head", (int)lq_folder_has_head(s), "modules_to_not_convert", kept, "meta", meta)
                   : NULL;
    json_decref(meta);
    json_decref(kept);
    return c;
}

const lq_format lq_format_awq = {
    .name = "awq", .what = "AWQ checkpoint folder, gemm layout, 4 bits", .priv_size = sizeof(lq_awq), .accept = awq_accept, .check = awq_check, .open = awq_open,
    .quant_config = awq_config, LQ_FOLDER_CALLS,
};
