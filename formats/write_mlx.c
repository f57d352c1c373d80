/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* MLX checkpoint (mlx-lm): a safetensors folder in which a quantized linear [N = out][K = in] of b-bit codes in groups of g is
 *
 *     <module>.weight  U32 [N][K*b/32]   each row as one LE bitstream: our canonical one
 *     <module>.scales  [N][K/g]          w = scale * code + bias
 *     <module>.biases  [N][K/g]          of the scales' type
 *
 * b 2, 3, 4, 5, 6, 8; g 32, 64, 128. The bias is the negated MIN plane, or -2^(b-1) scales for a symmetric matrix, which is exact; zero points
 * that are codes have no place, for their product with the scale would be rounded. Modes of floats have U8 scales and no biases:
 *
 *     mxfp4  E2M1, E8M0 per 32        nvfp4  E2M1, E4M3 per 16        mxfp8  E4M3, E8M0 per 32
 *
 * F16 scales of at most 8 significant bits are stored as BF16 where the model's tensors are: mlx would compute in F32 with both types.
 * config.json says {group_size, bits[, mode]} as "quantization" and "quantization_config", modules that differ by their names in it; what
 * a reader cannot see is in "lquant", since other readers take every key of "quantization" for a module.
 * Layout and config: mlx 0.32 (mlx/nn/layers/quantized.py), mlx-lm 0.32 (utils.py). */
#include "core/num.h"
#include "formats/folder.h"

#include <string.h>

typedef struct lq_mlx {
    lq_folder folder;
    lq_scheme base;              /* the most common scheme */
    bool bf16;                   /* the model's tensors are */
} lq_mlx;

static bool is_int(const lq_scheme *s) { return s->grid.kind == LQ_GRID_INT; }
static bool is_sym(const lq_scheme *s) { return s->zero_kind == LQ_ZERO_NONE; }
static bool is_plain(lq_dtype t) { return t == LQ_F16 || t == LQ_BF16 || t == LQ_F32; }

/* NULL: affine integers */
static const char *mode_of(const lq_scheme *s) {
    if (is_int(s)) return NULL;
    return s->scale.dtype == LQ_E4M3 ? "nvfp4" : s->grid.kind == LQ_GRID_E2M1 ? "mxfp4" : "mxfp8";
}

/* -- accept ---------------------------------------------------------------------------------------------------------- */

static lq_status accept_floats(lq_ctx *ctx, const lq_scheme *s) {
    const lq_plane_desc *d = &s->scale;
    bool e2m1 = s->grid.kind == LQ_GRID_E2M1, e4m3 = s->grid.kind == LQ_GRID_E4M3;
    if ((e2m1 || e4m3) && d->dtype == LQ_E8M0 && d->tile_r == 1 && d->tile_c == 32 && d->parent == LQ_NONE && is_sym(s)) return LQ_OK;
    if (e2m1 && d->dtype == LQ_E4M3 && d->tile_r == 1 && d->tile_c == 16 && d->parent == LQ_NONE && is_sym(s)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds integers of 2, 3, 4, 5, 6 and 8 bits, and floats of %s; --scheme mlx4 or MXFP4 fits",
                   d->parent == LQ_NONE ? "mxfp4, mxfp8 and nvfp4" : "one level of scales (mxfp4, mxfp8)");
}

static lq_status accept_ints(lq_ctx *ctx, const lq_scheme *s) {
    uint32_t b = s->grid.bits;
    const lq_plane_desc *d = &s->scale, *z = &s->zero;
    if (b < 2 || b == 7 || b > 8) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u bits do not fit; the nearest is --bits %d", b, b < 2 ? 2 : 8);
    if (!is_plain(d->dtype) || d->tile_r != 1 || d->parent != LQ_NONE)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scales are F16, BF16 or F32, one per row and group; --scheme mlx%u fits", b);
    if (is_sym(s) && s->grid.bias == 1 << (b - 1)) return LQ_OK;
    if (s->zero_kind == LQ_ZERO_MIN && !s->grid.bias && z->dtype == d->dtype && z->tile_r == 1 && z->tile_c == d->tile_c && z->parent == LQ_NONE) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "zero points that are codes do not fit: it adds a bias, and zero * scale would be rounded; --scheme mlx%u, or --sym, fits", b);
}

static lq_status mlx_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    uint32_t g = s->scale.tile_c, wish = g ? g : cols;
    if (s->act.kind != LQ_ACT_NONE || s->extra || s->grid.vec != 1)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds weights in groups alone; --scheme mlx4 fits, --format lqt holds every scheme");
    LQ_TRY(is_int(s) ? accept_ints(ctx, s) : accept_floats(ctx, s));
    if (!rows || !cols || cols % 32) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u inputs do not fit: a multiple of 32 does; --keep-unfit keeps such linears", cols);
    if (is_int(s) && g != 32 && g != 64 && g != 128)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "groups of %u do not fit; the nearest is --group-size %d", wish,
                       cols % 128 == 0 && wish > 96 ? 128 : cols % 64 == 0 && wish > 48 ? 64 : 32);
    return cols % g ? lq_fail(ctx, LQ_ERR_UNSUPPORTED, "groups of %u do not divide %u inputs; the nearest is --group-size %u", g, cols, cols % 64 ? 32 : 64) : LQ_OK;
}

/* -- open ------------------------------------------------------------------------------------------------------------ */

static bool narrow(const lq_plane_desc *d) { return d->dtype == LQ_F16 && d->sig && d->sig <= 8; }

static lq_dtype stored_type(const lq_sink *s, const lq_scheme *q) {
    bool both = narrow(&q->scale) && (is_sym(q) || narrow(&q->zero));
    return is_int(q) ? both && ((const lq_mlx *)s->priv)->bf16 ? LQ_BF16 : q->scale.dtype : LQ_U8;
}

static size_t mlx_parts(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    const lq_scheme *q = &r->scheme;
    uint64_t rows = lq_row_rows(r), cols = lq_row_cols(r), groups = lq_plane_cols(&q->scale, (uint32_t)cols);
    lq_dtype t = stored_type(s, q);
    out[0] = (lq_part_spec){".weight", LQ_U32, 2, {rows, cols * q->grid.bits / 32}};
    out[1] = (lq_part_spec){".scales", t, 2, {rows, groups}};
    out[2] = (lq_part_spec){".biases", t, 2, {rows, groups}};
    return is_int(q) ? 3 : 2;
}

/* n planes' values, each times `by`, in the stored type; by is a power of two or -1, so this is exact or overflows. */
static lq_status pack_plane(const lq_sink *s, const lq_plane_desc *d, const lq_plane *p, size_t n, float by, lq_dtype t, void *out) {
    for (size_t i = 0; i < n; i++) {
        float v = lq_plane_get(d, p, i) * by, back;
        char *at = (char *)out + i * lq_dtypes[t].bytes;
        lq_dtype_encode(t, &v, at, 1);
        lq_dtype_decode(t, at, &back, 1);
        if (back != v) return lq_fail(s->ctx, LQ_ERR_QUALITY, "element %zu of scales or biases is %g, which is no %s number", i, (double)v, lq_dtypes[t].name);
    }
    return LQ_OK;
}

static lq_status mlx_pack(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out) {
    const lq_plane_desc *d = &q->sch.scale;
    size_t n = lq_plane_count(d, q->rows, q->cols);
    lq_dtype t = stored_type(s, &r->scheme);
    if (i == 0) return lq_folder_codes(q, out), LQ_OK;
    if (t == LQ_U8) return memcpy(out, q->scale.v, n), LQ_OK;
    if (i == 1) return pack_plane(s, d, &q->scale, n, 1, t, out);
    return is_sym(&q->sch) ? pack_plane(s, d, &q->scale, n, -(float)q->sch.grid.bias, t, out) : pack_plane(s, &q->sch.zero, &q->zero, n, -1, t, out);
}

static bool same_config(const lq_scheme *a, const lq_scheme *b) {
    return a->grid.bits == b->grid.bits && a->scale.tile_c == b->scale.tile_c && is_int(a) == is_int(b) && (is_int(a) || a->scale.dtype == b->scale.dtype);
}

static lq_status mlx_open(lq_sink *s) {
    static const lq_layout layout = {.parts = mlx_parts, .pack = mlx_pack};
    lq_mlx *f = s->priv;
    size_t floats = 0, bf16 = 0, wide = 0;
    for (size_t i = 0; i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        wide += r->quantize && r->scheme.scale.dtype == LQ_BF16; /* scale_dtype speaks of all BF16 scales */
        if (r->quantize || r->part != LQ_PART_WEIGHT) continue;
        floats += r->ndim == 2 && (r->out_dtype == LQ_F16 || r->out_dtype == LQ_F32);
        bf16 += r->ndim == 2 && r->out_dtype == LQ_BF16;
    }
    f->bf16 = bf16 > floats && !wide;
    f->base = lq_scheme_int(4, 64, true);
    lq_folder_common(s, same_config, &f->base);
    return lq_folder_open(s, &layout);
}

/* -- config ---------------------------------------------------------------------------------------------------------- */

static json_t *settings(const lq_sink *s, const lq_row *r) {
    const lq_scheme *q = r ? &r->scheme : &((const lq_mlx *)s->priv)->base;
    json_t *c = json_pack("{s:i, s:i}", "group_size", (int)q->scale.tile_c, "bits", (int)q->grid.bits);
    if (c && mode_of(q)) json_object_set_new(c, "mode", json_string(mode_of(q)));
    return c;
}

static json_t *mlx_quant_config(lq_sink *s) {
    const lq_mlx *f = s->priv;
    lq_arena *mem = lq_arena_new();
    json_t *c = settings(s, NULL);
    bool ok = c && mem;
    for (size_t i = 0; ok && i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (!r->quantize || same_config(&r->scheme, &f->base)) continue;
        const char *module = lq_folder_module(mem, r);
        ok = module && !json_object_set_new(c, module, settings(s, r));
    }
    lq_arena_free(&mem);
    if (ok) return c;
    json_decref(c);
    return NULL;
}

static json_t *mlx_config(lq_sink *s) {
    json_t *c = mlx_quant_config(s), *own = lq_folder_meta(s);
    bool ok = c && own && !json_object_set_new(own, "sym", lq_folder_sym(s));
    if (ok && ((const lq_mlx *)s->priv)->bf16) ok = !json_object_set_new(own, "scale_dtype", json_string("F16"));
    json_t *top = ok ? json_pack("{s:O, s:O}", "quantization", c, "lquant", own) : NULL;
    json_decref(c);
    json_decref(own);
    return top;
}

const lq_format lq_format_mlx = {
    .name = "mlx", .what = "MLX checkpoint folder: integers in groups, mxfp4, mxfp8, nvfp4", .priv_size = sizeof(lq_mlx), .accept = mlx_accept, .check = lq_folder_check, .open = mlx_open,
    .quant_config = mlx_quant_config, .config = mlx_config, LQ_FOLDER_CALLS,
};
