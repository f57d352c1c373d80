/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GPTQ checkpoint: a safetensors folder in which a quantized linear [N = out][K = in] with G groups is five tensors,
 *
 *     <module>.qweight I32 [K*b/32][N]   column n = the K codes of output n as one LE bitstream, 32-bit words downwards
 *     <module>.qzeros  I32 [G][N*b/32]   row g = the N zero points of group g as one LE bitstream
 *     <module>.scales  F16 [G][N]
 *     <module>.g_idx   I32 [K]           k / group: codes lie in weight order and groups are static, so desc_act is false
 *     <module>.bias                      a kept tensor like any other
 *
 * v1 ("gptq") stores z - 1, v2 ("gptq_v2") stores z; readers of v1 disagree about z = 0, so v1 is written only when every scheme is
 * symmetric (z = 2^(b-1)). Linears that differ from the most common scheme are named by `dynamic` (re.match on the module name: GPTQModel,
 * vLLM), kept ones also by their absence from `modules_in_block_to_quantize` (transformers, which knows no other widths).
 * Layout and config: AutoGPTQ, GPTQModel 7. */
#include "formats/folder.h"

#include <string.h>

typedef struct lq_gptq {
    lq_folder folder;
    lq_scheme base;              /* the most common scheme: bits, group_size and sym of the config */
    bool v1;
} lq_gptq;

static bool is_sym(const lq_scheme *s) { return s->zero_kind == LQ_ZERO_NONE; }
static uint32_t groups(const lq_scheme *s, uint32_t cols) { return lq_plane_cols(&s->scale, cols); }

/* -- accept ---------------------------------------------------------------------------------------------------------- */

static bool plane_is(const lq_plane_desc *d, lq_dtype t, uint32_t group) {
    return d->dtype == t && d->tile_r == 1 && d->tile_c == group && d->parent == LQ_NONE;
}

static lq_status accept_kind(lq_ctx *ctx, const lq_scheme *s) {
    uint32_t b = s->grid.bits;
    if (s->grid.kind != LQ_GRID_INT || s->grid.vec != 1 || s->act.kind != LQ_ACT_NONE || s->extra & ~(uint32_t)LQ_X_PERM)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds integer weights alone; --format lqt holds every scheme");
    if (s->extra & LQ_X_PERM)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "codes in permuted column order do not fit; use static groups, or --format lqt");
    if (b != 2 && b != 3 && b != 4 && b != 8) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u bits do not fit; the nearest is --bits %d", b, b < 2 ? 2 : b < 6 ? 4 : 8);
    if (!plane_is(&s->scale, LQ_F16, s->scale.tile_c))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scales are F16, one per row and group, not %s%s; --scheme int%u fits", lq_dtypes[s->scale.dtype].name,
                       s->scale.tile_r == 1 ? "" : " for more than a row", b == 3 || b == 8 ? b : 4);
    if (s->zero_kind == LQ_ZERO_NONE && s->grid.bias == 1 << (b - 1)) return LQ_OK;
    if (s->zero_kind == LQ_ZERO_CODE && !s->grid.bias && plane_is(&s->zero, LQ_U8, s->scale.tile_c)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "zero points are codes of one byte per scale, or 2^(bits-1) everywhere; --sym or --asym fits");
}

static lq_status gptq_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    LQ_TRY(accept_kind(ctx, s));
    if (!rows || !cols || cols % 32 || rows % 32)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED,
                       "%u outputs x %u inputs do not fit: both must be multiples of 32 (the nearest: %u x %u); --keep-unfit keeps such linears, --format lqt holds them",
                       rows, cols, rows < 32 ? 32 : rows / 32 * 32, cols < 32 ? 32 : cols / 32 * 32);
    uint32_t g = s->scale.tile_c;
    if (g && (g > cols || cols % g))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "groups of %u do not divide %u inputs; the nearest is --group-size %u", g, cols, lq_nearest_group(cols, g > cols ? cols : g));
    return LQ_OK;
}

/* -- open ------------------------------------------------------------------------------------------------------------ */

static bool same_config(const lq_scheme *a, const lq_scheme *b) {
    return a->grid.bits == b->grid.bits && a->scale.tile_c == b->scale.tile_c && is_sym(a) == is_sym(b);
}

static size_t gptq_parts(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    uint64_t rows = lq_row_rows(r), cols = lq_row_cols(r), bits = r->scheme.grid.bits, g = groups(&r->scheme, (uint32_t)cols);
    (void)s;
    out[0] = (lq_part_spec){".qweight", LQ_I32, 2, {cols * bits / 32, rows}};
    out[1] = (lq_part_spec){".qzeros", LQ_I32, 2, {g, rows * bits / 32}};
    out[2] = (lq_part_spec){".scales", LQ_F16, 2, {g, rows}};
    out[3] = (lq_part_spec){".g_idx", LQ_I32, 1, {cols}};
    return 4;
}

static bool all_sym(const lq_catalog *cat) {
    for (size_t i = 0; i < cat->n; i++)
        if (cat->rows[i].quantize && !is_sym(&cat->rows[i].scheme)) return false;
    return true;
}

/* -- put ------------------------------------------------------------------------------------------------------------- */

/* A column of qweight is the row of our canonical bitstream, cut into words: only the transposition is left to do. */
static void pack_weight(const lq_qtensor *q, uint8_t *out) {
    enum { TILE = 16 };
    uint32_t words = q->cols / 32 * q->sch.grid.bits;
    for (uint32_t n0 = 0; n0 < q->rows; n0 += TILE)
        for (uint32_t w = 0; w < words; w++)
            for (uint32_t n = n0; n < q->rows && n < n0 + TILE; n++)
                memcpy(out + ((size_t)w * q->rows + n) * 4, q->codes + n * q->row_bytes + (size_t)w * 4, 4);
}

/* Symmetric schemes have no zero plane: their zero point is the bias of the grid. */
static uint32_t zero_of(const lq_qtensor *q, uint32_t n, uint32_t g, uint32_t n_groups) {
    return is_sym(&q->sch) ? (uint32_t)q->sch.grid.bias : ((const uint8_t *)q->zero.v)[(size_t)n * n_groups + g];
}

static void pack_zeros(const lq_qtensor *q, bool v1, uint8_t *out) {
    uint32_t n_groups = groups(&q->sch, q->cols), bits = q->sch.grid.bits;
    for (uint32_t g = 0; g < n_groups; g++) {
        uint64_t window = 0;
        for (uint32_t n = 0, have = 0; n < q->rows; n++) {
            window |= (uint64_t)(zero_of(q, n, g, n_groups) - v1) << have;
            if ((have += bits) < 32) continue;
            lq_put_u32(out, (uint32_t)window);
            out += 4;
            window >>= 32;
            have -= 32;
        }
    }
}

static void pack_scales(const lq_qtensor *q, uint16_t *out) {
    uint32_t n_groups = groups(&q->sch, q->cols);
    for (uint32_t g = 0; g < n_groups; g++)
        for (uint32_t n = 0; n < q->rows; n++) out[(size_t)g * q->rows + n] = ((const uint16_t *)q->scale.v)[(size_t)n * n_groups + g];
}

static void pack_g_idx(const lq_qtensor *q, uint8_t *out) {
    uint32_t group = q->sch.scale.tile_c ? q->sch.scale.tile_c : q->cols;
    for (uint32_t k = 0; k < q->cols; k++) lq_put_u32(out + (size_t)k * 4, k / group);
}

static lq_status gptq_pack(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out) {
    (void)r;
    switch (i) {
    case 0: pack_weight(q, out); break;
    case 1: pack_zeros(q, ((const lq_gptq *)s->priv)->v1, out); break;
    case 2: pack_scales(q, out); break;
    default: pack_g_idx(q, out); break;
    }
    return LQ_OK;
}

static lq_status gptq_open(lq_sink *s) {
    static const lq_layout layout = {.parts = gptq_parts, .pack = gptq_pack};
    lq_gptq *f = s->priv;
    f->base = lq_scheme_int(4, -1, true);
    lq_folder_common(s, same_config, &f->base);
    f->v1 = s->format == &lq_format_gptq && all_sym(s->cat);
    return lq_folder_open(s, &layout);
}

/* -- config ---------------------------------------------------------------------------------------------------------- */

/* vLLM loads some linears fused and looks up their settings by one name: qkv_proj, gate_up_proj, and "experts" for a whole block's
 * experts. The rule of one member matches that name too. */
static const struct { const char *end, *pattern; } fused[] = {
    {".experts.0.gate_proj", "\\.experts(?:\\.0\\.gate_proj)?$"}, {".experts.0.w1", "\\.experts(?:\\.0\\.w1)?$"},
    {".q_proj", "\\.q(?:kv)?_proj$"}, {".gate_proj", "\\.gate(?:_up)?_proj$"}};

static bool literal(lq_buf *out, const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (strchr("\\.^$|()[]{}*+?", text[i]) && !lq_buf_add(out, "\\", 1)) return false;
        if (!lq_buf_add(out, text + i, 1)) return false;
    }
    return true;
}

/* "+:^model\.layers\.0\.self_attn\.o_proj$": the form that every reader takes for exactly this name (and what it is fused into). */
static bool exact_pattern(lq_buf *out, const char *sign, const char *name) {
    size_t n = strlen(name);
    if (!lq_buf_addf(out, "%s^", sign)) return false;
    for (size_t i = 0; i < sizeof fused / sizeof *fused; i++) {
        size_t e = strlen(fused[i].end);
        if (n > e && !strcmp(name + n - e, fused[i].end)) return literal(out, name, n - e) && lq_buf_addf(out, "%s", fused[i].pattern);
    }
    return literal(out, name, n) && lq_buf_add(out, "$", 1);
}

static int group_size(const lq_scheme *s) { return s->scale.tile_c ? (int)s->scale.tile_c : -1; }

static bool is_kept_linear(const lq_row *r) { return r->linear && !r->quantize && r->part == LQ_PART_WEIGHT && r->slot.block >= 0; }

static bool add_dynamic(json_t *dynamic, const lq_gptq *f, const lq_row *r, lq_arena *mem) {
    bool kept = is_kept_linear(r);
    if (!kept && !(r->quantize && !same_config(&r->scheme, &f->base))) return true;
    lq_buf key = {0};
    const char *module = lq_folder_module(mem, r);
    json_t *v = kept ? json_object() : json_pack("{s:i, s:i, s:b}", "bits", (int)r->scheme.grid.bits, "group_size", group_size(&r->scheme), "sym", (int)is_sym(&r->scheme));
    bool ok = module && v && exact_pattern(&key, kept ? "-:" : "+:", module) && !json_object_set(dynamic, key.v, v);
    json_decref(v);
    lq_buf_free(&key);
    return ok;
}

static json_t *dynamic_of(const lq_sink *s) {
    json_t *d = json_object();
    lq_arena *mem = lq_arena_new();
    bool ok = d && mem;
    for (size_t i = 0; i < s->cat->n && ok; i++) ok = add_dynamic(d, s->priv, &s->cat->rows[i], mem);
    lq_arena_free(&mem);
    if (ok) return d;
    json_decref(d);
    return NULL;
}

/* transformers and vLLM's fused linears do not look at "-:" patterns; they take a list of what is quantized. NULL: none is kept. */
static bool quantized_modules(const lq_sink *s, json_t **out) {
    bool any_kept = false;
    *out = NULL;
    for (size_t i = 0; i < s->cat->n; i++) any_kept |= is_kept_linear(&s->cat->rows[i]);
    if (!any_kept) return true;
    lq_arena *mem = lq_arena_new();
    json_t *names = mem ? json_array() : NULL;
    bool ok = names;
    for (size_t i = 0; i < s->cat->n && ok; i++) {
        if (!s->cat->rows[i].quantize) continue;
        const char *module = lq_folder_module(mem, &s->cat->rows[i]);
        ok = module && !json_array_append_new(names, json_string(module));
    }
    lq_arena_free(&mem);
    *out = json_pack("[o]", names);
    return ok && *out;
}

/* Legacy readers look for these beside "bits"; they are the method's, so only what it said is repeated. */
static bool copy_legacy(json_t *c, const json_t *meta) {
    static const char *const keys[] = {"damp_percent", "true_sequential", "static_groups"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *v = json_object_get(meta, keys[i]);
        if (v && json_object_set(c, keys[i], v)) return false;
    }
    return true;
}

static json_t *gptq_config(lq_sink *s) {
    const lq_gptq *f = s->priv;
    const char *version = f->v1 ? "gptq" : "gptq_v2";
    json_t *meta = lq_folder_meta(s), *dynamic = dynamic_of(s), *list;
    bool ok = quantized_modules(s, &list);
    json_t *c = json_pack("{s:s, s:i, s:i, s:b, s:b, s:b, s:b, s:s, s:s, s:s, s:s}", "quant_method", "gptq", "bits", (int)f->base.grid.bits,
                          "group_size", group_size(&f->base), "desc_act", 0, "sym", (int)is_sym(&f->base), "lm_head", (int)lq_folder_has_head(s),
                          "static_groups", (int)s->opts.act_order, "checkpoint_format", version, "method", "gptq", "format", version, "pack_dtype", "int32");
    ok = ok && meta && dynamic && c && copy_legacy(c, meta);
    if (ok && json_object_size(dynamic)) ok = !json_object_set(c, "dynamic", dynamic);
    if (ok && list) ok = !json_object_set(c, "modules_in_block_to_quantize", list);
    if (ok) ok = !json_object_set(c, "meta", meta);
    json_decref(list);
    json_decref(meta);
    json_decref(dynamic);
    if (ok) return c;
    json_decref(c);
    return NULL;
}

static lq_status write_quantize_config(lq_sink *s) {
    lq_buf text;
    json_t *c = gptq_config(s);
    if (!c) return lq_oom(s->ctx, 4096);
    lq_status st = lq_json_dump(s->ctx, c, &text);
    if (!st) st = lq_folder_sidecar(s, "quantize_config.json", text.v, text.n);
    lq_buf_free(&text);
    json_decref(c);
    return st;
}

static lq_status gptq_close(lq_sink *s) {
    LQ_TRY(write_quantize_config(s));
    return lq_folder_close(s);
}

const lq_format lq_format_gptq = {
    .name = "gptq", .what = "GPTQ checkpoint folder: v1 when all is symmetric, else v2", .priv_size = sizeof(lq_gptq),
    .accept = gptq_accept, .check = lq_folder_check, .open = gptq_open, .put = lq_folder_put, .put_fp = lq_folder_put_fp, .sidecar = lq_folder_sidecar,
    .quant_config = gptq_config, .sync = lq_folder_sync, .close = gptq_close, .abandon = lq_folder_abandon,
};
const lq_format lq_format_gptq_v2 = {
    .name = "gptq_v2", .what = "GPTQ checkpoint folder, always v2 (zero points stored as they are)", .priv_size = sizeof(lq_gptq),
    .accept = gptq_accept, .check = lq_folder_check, .open = gptq_open, .put = lq_folder_put, .put_fp = lq_folder_put_fp, .sidecar = lq_folder_sidecar,
    .quant_config = gptq_config, .sync = lq_folder_sync, .close = gptq_close, .abandon = lq_folder_abandon,
};
