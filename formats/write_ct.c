/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* compressed-tensors checkpoint (llm-compressor's, vLLM's own): a safetensors folder in which a quantized linear is some tensors
 * "<module>.weight_*" (drawn in write_ct_int.c, write_ct_float.c), and with static activations
 *
 *     <module>.input_scale   F32 [1]      x is rounded to multiples of it
 *     <attention>.k_scale, .v_scale       F32 [1], kept tensors like any other, announced by kv_cache_scheme
 *
 * Linears of one kind (storage format, weights, activations) are a config group. One group targets the class Linear; of several, each lists
 * its modules by name, for runtimes that fuse linears look at the class before the parts. What is no quantized linear is in `ignore`.
 * Only keys that the readers of every version know: unknown ones in a group are errors to them. compressed-tensors 0.20, quantization/. */
#include "formats/write_ct.h"

#include "core/num.h"
#include "formats/qcodec.h"

#include <stdio.h>
#include <string.h>

typedef struct lq_ct { lq_folder folder; } lq_ct;
static const lq_ct_family *const families[] = {&lq_ct_packed, &lq_ct_int, &lq_ct_float, &lq_ct_mxfp8, &lq_ct_mxfp4, &lq_ct_nvfp4};

static const lq_ct_family *family_of(const lq_scheme *s) {
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (families[i]->mine(s)) return families[i];
    return NULL;
}

/* -- accept ---------------------------------------------------------------------------------------------------------- */

lq_ct_tile lq_ct_tile_of(const lq_plane_desc *d) {
    if (d->tile_r == LQ_FLAT) return LQ_CT_OTHER;
    if (!d->tile_r) return d->tile_c ? LQ_CT_OTHER : LQ_CT_TENSOR;
    if (d->tile_r == 1) return d->tile_c ? LQ_CT_GROUP : LQ_CT_CHANNEL;
    return d->tile_c ? LQ_CT_BLOCK : LQ_CT_OTHER;
}

static lq_status accept_scale(lq_ctx *ctx, const lq_scheme *s, uint32_t cols) {
    const lq_plane_desc *d = &s->scale;
    bool plain = d->dtype == LQ_F16 || d->dtype == LQ_BF16 || d->dtype == LQ_F32, small = s->grid.kind != LQ_GRID_INT && (d->dtype == LQ_E8M0 || d->dtype == LQ_E4M3);
    lq_ct_tile tile = lq_ct_tile_of(d);
    if (!plain && !small) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scales are F16, BF16 or F32, not %s; --scheme int4 or FP8 fits", lq_dtypes[d->dtype].name);
    if (tile == LQ_CT_OTHER || (plain && d->parent != LQ_NONE))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scales are one per group, row, block of rows and inputs, or tensor, of one level; --group-size 128 fits");
    if (tile == LQ_CT_BLOCK && s->grid.kind != LQ_GRID_E4M3) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "blocks of rows are for FP8; --group-size %u fits", d->tile_c);
    if (d->tile_c && cols % d->tile_c)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "groups of %u do not divide %u inputs; the nearest is --group-size %u", d->tile_c, cols, lq_nearest_group(cols, d->tile_c));
    return LQ_OK;
}

static lq_status accept_act(lq_ctx *ctx, const lq_scheme *s) {
    const lq_act *a = &s->act;
    if (a->kind == LQ_ACT_NONE) return LQ_OK;
    if (a->outlier > 0 || a->scope) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "activations with outliers apart do not fit; --scheme W8A8 fits, --format bitsandbytes holds them");
    if (s->grid.kind == LQ_GRID_INT && a->dtype == LQ_E4M3 && s->grid.bits == 4 && s->scale.tile_c && !s->zero_kind && a->kind == LQ_ACT_DYNAMIC && !a->tile) return LQ_OK; /* W4AFP8 */
    if (a->dtype != (s->grid.kind == LQ_GRID_INT ? LQ_I8 : LQ_E4M3))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "activations of type %s beside these weights do not fit; --scheme %s fits", lq_dtypes[a->dtype].name, s->grid.kind == LQ_GRID_INT ? "W8A8" : "FP8");
    if (a->tile && (a->kind == LQ_ACT_STATIC || a->dtype == LQ_I8)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "activations in blocks are FP8 and dynamic; --scheme FP8-block fits");
    return LQ_OK;
}

static lq_status ct_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    const lq_ct_family *f = family_of(s);
    if (!f) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds integers of 2 to 8 bits, FP8, MXFP4 and NVFP4; the nearest is --scheme W%dA16, and --format lqt holds every scheme", s->grid.bits > 4 ? 8 : 4);
    if (s->extra || s->grid.vec != 1 || s->zero_kind == LQ_ZERO_MIN)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s do not fit; --format lqt holds every scheme", s->extra & LQ_X_PERM ? "codes in permuted column order" : s->extra ? "values beside the codes" : "subtracted minima");
    LQ_TRY(accept_scale(ctx, s, cols));
    LQ_TRY(accept_act(ctx, s));
    LQ_TRY(f->accept(ctx, s, rows, cols));
    return lq_scheme_check(ctx, s, rows, cols);
}

/* -- parts ----------------------------------------------------------------------------------------------------------- */

lq_part_spec lq_ct_scale_part(const lq_row *r) {
    const lq_plane_desc *d = &r->scheme.scale;
    if (lq_ct_tile_of(d) == LQ_CT_TENSOR) return (lq_part_spec){".weight_scale", d->dtype, 1, {1}};
    uint64_t down = d->tile_r ? (lq_row_rows(r) + d->tile_r - 1) / d->tile_r : 1;
    return (lq_part_spec){".weight_scale", d->dtype, 2, {down, lq_plane_cols(d, lq_row_cols(r))}};
}

void lq_ct_scale_pack(const lq_qtensor *q, void *out) {
    memcpy(out, q->scale.v, lq_plane_count(&q->sch.scale, q->rows, q->cols) * lq_dtypes[q->sch.scale.dtype].bytes);
}

static size_t ct_parts(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    (void)s;
    size_t n = family_of(&r->scheme)->parts(r, out);
    if (r->scheme.act.kind == LQ_ACT_STATIC) out[n++] = (lq_part_spec){".input_scale", LQ_F32, 1, {1}};
    return n;
}

/* The file divides by the second-level scale; what multiplies can be told apart there only as a power of two. */
static lq_status divisor_is_exact(lq_ctx *ctx, const lq_plane_desc *d, float up) {
    bool power = (lq_f32_bits(up) & 0x7fffff) == 0;
    if (!isfinite(up) || !(up > 0) || !isfinite(1 / up)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a second-level scale of %g has no reciprocal", (double)up);
    if (power != d->divides) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, power ? "a divisor of %g would be read as a factor" : "a second-level scale of %g has no exact reciprocal, which the file stores; quantize to NVFP4 again, or --format lqt", (double)up);
}

static lq_status ct_pack(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out) {
    lq_part_spec parts[LQ_PARTS_MAX] = {0};
    ct_parts(s, r, parts);
    if (q->scale.offset != 0) return lq_fail(s->ctx, LQ_ERR_INTERNAL, "a scale plane with an offset");
    if (q->scale.parent) LQ_TRY(divisor_is_exact(s->ctx, &q->sch.scale, *(const float *)q->scale.parent));
    if (!strcmp(parts[i].suffix, ".input_scale")) memcpy(out, &q->act_scale, sizeof q->act_scale);
    else family_of(&q->sch)->pack(q, parts[i].suffix, out);
    return LQ_OK;
}

static lq_status ct_open(lq_sink *s) {
    static const lq_layout layout = {.parts = ct_parts, .pack = ct_pack};
    return lq_folder_open(s, &layout);
}

/* -- config ---------------------------------------------------------------------------------------------------------- */

static bool same_kind(const lq_scheme *a, const lq_scheme *b) {
    return family_of(a) == family_of(b) && a->grid.bits == b->grid.bits && a->zero_kind == b->zero_kind && a->scale.tile_r == b->scale.tile_r &&
           a->scale.tile_c == b->scale.tile_c && a->act.kind == b->act.kind && a->act.dtype == b->act.dtype && a->act.tile == b->act.tile;
}

static bool set(json_t *o, const char *key, json_t *v) { return !json_object_set_new(o, key, v); }

static const char *scale_dtype(const lq_scheme *s) { return s->scale.dtype == LQ_E8M0 ? "torch.uint8" : s->scale.dtype == LQ_E4M3 ? "torch.float8_e4m3fn" : NULL; }

static json_t *weights_of(const lq_sink *sink, const lq_scheme *s) {
    static const char *const names[] = {"tensor", "channel", "group", "block"};
    lq_ct_tile tile = lq_ct_tile_of(&s->scale);
    bool fp = s->grid.kind != LQ_GRID_INT, asym = s->zero_kind == LQ_ZERO_CODE;
    json_t *w = json_pack("{s:i, s:s, s:b, s:s, s:n, s:b}", "num_bits", (int)s->grid.bits, "type", fp ? "float" : "int", "symmetric", !asym, "strategy",
                          s->scale.parent != LQ_NONE ? "tensor_group" : names[tile], "group_size", "dynamic", 0);
    bool ok = w != NULL;
    if (tile == LQ_CT_GROUP) ok = ok && set(w, "group_size", json_integer(s->scale.tile_c));
    if (tile == LQ_CT_BLOCK) ok = ok && set(w, "block_structure", json_pack("[i, i]", (int)s->scale.tile_r, (int)s->scale.tile_c));
    if (scale_dtype(s)) ok = ok && set(w, "scale_dtype", json_string(scale_dtype(s)));
    if (asym) ok = ok && set(w, "zp_dtype", json_string("torch.int8"));
    if (sink->opts.act_order && !fp && tile == LQ_CT_GROUP) ok = ok && set(w, "actorder", json_string("weight")); /* groups lie in the order of inputs: no weight_g_idx */
    if (ok) return w;
    json_decref(w);
    return NULL;
}

static json_t *inputs_of(const lq_act *a) {
    if (a->kind == LQ_ACT_NONE) return json_null();
    bool dynamic = a->kind == LQ_ACT_DYNAMIC;
    json_t *v = json_pack("{s:i, s:s, s:b, s:s, s:n, s:b}", "num_bits", 8, "type", a->dtype == LQ_I8 ? "int" : "float", "symmetric", 1, "strategy",
                          !dynamic ? "tensor" : a->tile ? "group" : "token", "group_size", "dynamic", (int)dynamic);
    if (v && a->tile && json_object_set_new(v, "group_size", json_integer(a->tile))) {
        json_decref(v);
        return NULL;
    }
    return v;
}

typedef struct kinds { const lq_row **first; size_t n; } kinds; /* a row of each, in the catalog's order */

static size_t kind_of(const kinds *k, const lq_row *r) {
    size_t i = 0;
    while (i < k->n && !same_kind(&k->first[i]->scheme, &r->scheme)) i++;
    return i;
}

static bool find_kinds(const lq_sink *s, kinds *k) {
    *k = (kinds){0};
    for (size_t i = 0; i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (!r->quantize || kind_of(k, r) < k->n) continue;
        const lq_row **more = lq_realloc(k->first, k->n * sizeof *more, (k->n + 1) * sizeof *more);
        if (!more) return false;
        k->first = more;
        k->first[k->n++] = r;
    }
    return true;
}

/* Every module of the kind by name, or the class when there is no other kind. */
static json_t *targets_of(const lq_sink *s, const kinds *k, size_t kind, lq_arena *mem) {
    if (k->n == 1) return json_pack("[s]", "Linear");
    json_t *list = json_array();
    bool ok = list != NULL;
    for (size_t i = 0; i < s->cat->n && ok; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (!r->quantize || kind_of(k, r) != kind) continue;
        const char *module = lq_folder_module(mem, r);
        ok = module && !json_array_append_new(list, json_string(module));
    }
    if (ok) return list;
    json_decref(list);
    return NULL;
}

/* Older readers do not know a group's own format, and need it only where groups differ; compressed-tensors 0.20 takes W4AFP8 for int-quantized without it. */
static bool add_group(const lq_sink *s, const kinds *k, size_t kind, bool mixed, lq_arena *mem, json_t *groups) {
    char name[32];
    const lq_scheme *sch = &k->first[kind]->scheme;
    json_t *g = json_pack("{s:o?, s:o?, s:o?, s:n}", "targets", targets_of(s, k, kind, mem), "weights", weights_of(s, sch), "input_activations", inputs_of(&sch->act),
                          "output_activations");
    bool ok = g && json_is_array(json_object_get(g, "targets")) && json_is_object(json_object_get(g, "weights")) && json_object_get(g, "input_activations");
    if (mixed || (sch->grid.kind == LQ_GRID_INT && sch->act.dtype == LQ_E4M3)) ok = ok && set(g, "format", json_string(family_of(sch)->name));
    snprintf(name, sizeof name, "group_%zu", kind);
    ok = ok && !json_object_set(groups, name, g);
    json_decref(g);
    return ok;
}

/* Everything that a runtime may make a Linear of: kept matrices, known or not. A tied head has no tensor but is a module. */
static bool add_ignored(const lq_sink *s, lq_arena *mem, json_t *list) {
    bool head = false;
    for (size_t i = 0; i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        bool other = r->quantize || r->part != LQ_PART_WEIGHT || r->ndim != 2 || r->slot.role == LQ_R_EMBED || r->slot.role == LQ_R_POS_EMBED;
        head |= r->slot.role == LQ_R_HEAD;
        if (other) continue;
        const char *module = lq_folder_module(mem, r);
        if (!module || (strcmp(module, r->name) && json_array_append_new(list, json_string(module)))) return false;
    }
    return head || !json_array_append_new(list, json_string("lm_head"));
}

static bool has_kv(const lq_catalog *cat) {
    for (size_t i = 0; i < cat->n; i++)
        if (cat->rows[i].slot.role == LQ_R_K_SCALE) return true;
    return false;
}

/* Significant bits that every scale plane of the type obeys; 0: all of the type's. */
static int common_sig(const lq_catalog *cat, lq_dtype t) {
    int sig = -1;
    for (size_t i = 0; i < cat->n; i++) {
        const lq_row *r = &cat->rows[i];
        if (r->quantize && r->scheme.scale.dtype == t) sig = sig < 0 || sig == r->scheme.scale.sig ? r->scheme.scale.sig : 0;
    }
    return sig < 0 ? 0 : sig;
}

/* What the values do not say; other readers skip it. */
static json_t *own_of(const lq_sink *s) {
    static const lq_dtype types[] = {LQ_F16, LQ_BF16, LQ_F32};
    json_t *sigs = json_object(), *own = json_pack("{s:s, s:O*}", "version", LQ_VERSION, "meta", s->opts.meta);
    bool ok = sigs && own;
    for (size_t i = 0; i < 3 && ok; i++)
        if (common_sig(s->cat, types[i])) ok = set(sigs, lq_dtypes[types[i]].name, json_integer(common_sig(s->cat, types[i])));
    if (ok && json_object_size(sigs)) ok = !json_object_set(own, "scale_sig", sigs);
    json_decref(sigs);
    if (ok) return own;
    json_decref(own);
    return NULL;
}

static json_t *kv_of(const lq_catalog *cat) {
    if (!has_kv(cat)) return json_null();
    return json_pack("{s:i, s:s, s:b, s:s, s:n, s:b}", "num_bits", 8, "type", "float", "symmetric", 1, "strategy", "tensor", "group_size", "dynamic", 0);
}

static bool is_mixed(const kinds *k) {
    for (size_t i = 1; i < k->n; i++)
        if (family_of(&k->first[i]->scheme) != family_of(&k->first[0]->scheme)) return true;
    return false;
}

static json_t *config_of(const lq_sink *s, const kinds *k, lq_arena *mem) {
    bool mixed = is_mixed(k);
    json_t *groups = json_object(), *ignore = json_array();
    bool ok = groups && ignore && add_ignored(s, mem, ignore);
    for (size_t i = 0; i < k->n && ok; i++) ok = add_group(s, k, i, mixed, mem, groups);
    const char *format = mixed ? "mixed-precision" : k->n ? family_of(&k->first[0]->scheme)->name : "dense";
    json_t *c = json_pack("{s:s, s:s, s:s, s:s, s:n, s:O, s:O, s:o, s:{}, s:{}, s:o}", "quant_method", "compressed-tensors", "version", "0.20.0", "format", format,
                          "quantization_status", "compressed", "global_compression_ratio", "config_groups", groups, "ignore", ignore, "kv_cache_scheme", kv_of(s->cat),
                          "sparsity_config", "transform_config", "lquant", own_of(s));
    json_decref(groups);
    json_decref(ignore);
    if (ok) return c;
    json_decref(c);
    return NULL;
}

static json_t *ct_config(lq_sink *s) {
    kinds k;
    lq_arena *mem = lq_arena_new();
    json_t *c = find_kinds(s, &k) && mem ? config_of(s, &k, mem) : NULL;
    lq_free(k.first);
    lq_arena_free(&mem);
    return c;
}

const lq_format lq_format_ct = {
    .name = "compressed-tensors", .what = "compressed-tensors checkpoint folder, for vLLM and transformers", .priv_size = sizeof(lq_ct), .kv_scales = true,
    .accept = ct_accept, .check = lq_folder_check, .open = ct_open, .quant_config = ct_config, LQ_FOLDER_CALLS,
};
