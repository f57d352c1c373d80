/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* modelopt "unified" checkpoint (TensorRT-LLM, vLLM): a safetensors folder in which a quantized linear [N = out][K = in] is, by quant_algo,
 *
 *     FP8                        weight F8_E4M3 [N][K], weight_scale F32 [], input_scale F32 [] (static activations)
 *     FP8_PER_CHANNEL_PER_TOKEN  weight F8_E4M3 [N][K], weight_scale F32 [N]
 *     W4A16_NVFP4                weight U8 [N][K/2], two E2M1 codes a byte, the even input low; weight_scale F8_E4M3 [N][K/16];
 *                                weight_scale_2 F32 [], a factor of all scales: amax / (6 * 448)
 *     W4A16_AWQ                  weight U8 [N/2][K], a byte holds the signed codes of outputs 2n (low) and 2n + 1 of one input;
 *                                weight_scale [N][K/g]; pre_quant_scale F32 [K] where activations are to be multiplied first
 *     MIXED_PRECISION            several of them: "quantized_layers" names each module's {quant_algo, group_size}
 *
 * Scales of keys and values are "<attention>.k_proj.k_scale" and ".v_proj.v_scale". The settings stand in hf_quant_config.json and, in other words,
 * in config.json. Our AWQ's factors are folded into the tensors before; those of a checkpoint of modelopt's own
 * (o_proj, down_proj) come along. Runtimes ask for the producer
 * "modelopt", whose layout this is; who wrote it is in meta. Layout and config: nvidia-modelopt 0.47 (torch/export), vLLM modelopt.py. */
#include "formats/folder.h"

#include <stdio.h>
#include <string.h>

typedef enum algo { FP8, FP8_ROWS, NVFP4, AWQ, NONE } algo;
static const char *const algo_names[] = {"FP8", "FP8_PER_CHANNEL_PER_TOKEN", "W4A16_NVFP4", "W4A16_AWQ", NULL};

typedef struct lq_modelopt {
    lq_folder folder;
    lq_scheme base;              /* of the first quantized row; of all unless mixed */
    bool mixed;
} lq_modelopt;

/* -- accept ---------------------------------------------------------------------------------------------------------- */

static bool plane_is(const lq_plane_desc *d, lq_dtype t, uint32_t tile_r, uint32_t tile_c) {
    return d->dtype == t && d->tile_r == tile_r && d->tile_c == tile_c && !d->divides;
}

static bool acts_are(const lq_act *a, lq_act_kind kind) {
    return a->kind == kind && (kind == LQ_ACT_NONE || (a->dtype == LQ_E4M3 && !a->tile && !(a->outlier > 0) && !a->scope));
}

static algo algo_of(const lq_scheme *s) {
    const lq_plane_desc *d = &s->scale;
    bool plain = d->parent == LQ_NONE, floats = d->dtype == LQ_F16 || d->dtype == LQ_BF16 || d->dtype == LQ_F32;
    if (s->extra & ~(s->grid.kind == LQ_GRID_INT ? (uint32_t)LQ_X_PRESCALE : 0) || s->zero_kind != LQ_ZERO_NONE || s->grid.vec != 1) return NONE;
    if (s->grid.kind == LQ_GRID_E4M3 && plain && plane_is(d, LQ_F32, 0, 0) && acts_are(&s->act, LQ_ACT_STATIC)) return FP8;
    if (s->grid.kind == LQ_GRID_E4M3 && plain && plane_is(d, LQ_F32, 1, 0) && acts_are(&s->act, LQ_ACT_DYNAMIC)) return FP8_ROWS;
    if (s->grid.kind == LQ_GRID_E2M1 && d->parent == LQ_F32 && !d->span && plane_is(d, LQ_E4M3, 1, 16) && acts_are(&s->act, LQ_ACT_NONE)) return NVFP4;
    bool four = s->grid.kind == LQ_GRID_INT && s->grid.bits == 4 && s->grid.bias == 8 && acts_are(&s->act, LQ_ACT_NONE);
    return four && plain && floats && d->tile_r == 1 && d->tile_c ? AWQ : NONE;
}

static lq_status modelopt_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    algo a = algo_of(s);
    uint32_t g = s->scale.tile_c;
    if (a == NONE)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, s->grid.kind == LQ_GRID_INT
                                                    ? "integers are symmetric, of 4 bits, in groups; --bits 4 --sym --group-size 128 fits"
                                                    : "it holds FP8 with static activations or with scales per row, and NVFP4; --scheme FP8-tensor-static, FP8 or NVFP4 fits");
    if (!rows || !cols || (a == AWQ && rows % 2)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u outputs do not fit: an even number does; --keep-unfit keeps such linears", rows);
    if (a > FP8_ROWS && cols % g) {
        if (a == NVFP4) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "blocks of 16 do not divide %u inputs; --keep-unfit keeps such linears", cols);
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "groups of %u do not divide %u inputs; the nearest is --group-size %u", g, cols, lq_nearest_group(cols, g > cols ? cols : g));
    }
    return LQ_OK;
}

/* -- parts ----------------------------------------------------------------------------------------------------------- */

static size_t modelopt_parts(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]) {
    uint64_t rows = lq_row_rows(r), cols = lq_row_cols(r), groups = lq_plane_cols(&r->scheme.scale, (uint32_t)cols);
    algo a = algo_of(&r->scheme);
    (void)s;
    out[0] = a == AWQ     ? (lq_part_spec){".weight", LQ_U8, 2, {rows / 2, cols}}
             : a == NVFP4 ? (lq_part_spec){".weight", LQ_U8, 2, {rows, cols / 2}}
                          : (lq_part_spec){".weight", LQ_E4M3, 2, {rows, cols}};
    out[1] = a == FP8        ? (lq_part_spec){".weight_scale", LQ_F32, 0, {0}}
             : a == FP8_ROWS ? (lq_part_spec){".weight_scale", LQ_F32, 1, {rows}}
                             : (lq_part_spec){".weight_scale", r->scheme.scale.dtype, 2, {rows, groups}};
    if (a == AWQ && r->scheme.extra) return out[2] = (lq_part_spec){".pre_quant_scale", LQ_F32, 1, {cols}}, 3;
    out[2] = (lq_part_spec){a == FP8 ? ".input_scale" : ".weight_scale_2", LQ_F32, 0, {0}};
    return a == FP8 || a == NVFP4 ? 3 : 2;
}

/* Signed codes, q - 8: the top bit turns over. */
static void pack_pairs(const lq_qtensor *q, uint8_t *out) {
    for (uint32_t n = 0; n + 1 < q->rows; n += 2) {
        const uint8_t *even = q->codes + n * q->row_bytes, *odd = even + q->row_bytes;
        for (uint32_t k = 0; k < q->cols; k++) {
            uint32_t shift = k % 2 * 4, lo = even[k / 2] >> shift & 15u, hi = odd[k / 2] >> shift & 15u;
            *out++ = (uint8_t)((lo | hi << 4) ^ 0x88);
        }
    }
}

static lq_status modelopt_pack(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out) {
    algo a = algo_of(&r->scheme);
    (void)s;
    if (i == 0 && a == AWQ) pack_pairs(q, out);
    else if (i == 0) lq_folder_codes(q, out);
    else if (i == 1) memcpy(out, q->scale.v, lq_plane_count(&q->sch.scale, q->rows, q->cols) * lq_dtypes[q->sch.scale.dtype].bytes);
    else if (a == AWQ) memcpy(out, q->prescale, (size_t)q->cols * 4);
    else memcpy(out, a == FP8 ? (const void *)&q->act_scale : q->scale.parent, sizeof(float));
    return LQ_OK;
}

static const char *modelopt_kept_name(lq_arena *mem, const lq_row *r) {
    const char *end = r->slot.role == LQ_R_K_SCALE ? ".k_proj.k_scale" : ".v_proj.v_scale", *dot = strrchr(r->name, '.');
    if (!lq_role_is_kv(r->slot.role) || !dot || strstr(r->name, "_proj.")) return r->name;
    size_t n = (size_t)(dot - r->name), m = strlen(end) + 1;
    char *name = lq_arena_alloc(mem, n + m);
    if (name) memcpy(name, r->name, n), memcpy(name + n, end, m);
    return name;
}

static bool alike(const lq_scheme *a, const lq_scheme *b) { return algo_of(a) == algo_of(b) && a->scale.tile_c == b->scale.tile_c; }

static lq_status modelopt_check(lq_sink *s) {
    lq_modelopt *f = s->priv;
    const lq_row *first = NULL;
    for (size_t i = 0; i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (!r->quantize) continue;
        if (!first) f->base = (first = r)->scheme;
        f->mixed |= !alike(&first->scheme, &r->scheme);
        f->base.extra |= r->scheme.extra;
    }
    LQ_TRY(lq_folder_kept_apart(s));
    return lq_folder_check(s);
}

static lq_status modelopt_open(lq_sink *s) {
    static const lq_layout layout = {.parts = modelopt_parts, .pack = modelopt_pack, .kept_name = modelopt_kept_name};
    return lq_folder_open(s, &layout);
}

/* -- config ---------------------------------------------------------------------------------------------------------- */

static bool has_kv(const lq_sink *s) {
    for (size_t i = 0; i < s->cat->n; i++)
        if (lq_role_is_kv(s->cat->rows[i].slot.role)) return true;
    return false;
}

static json_t *excluded(const lq_sink *s) {
    json_t *kept = lq_folder_skipped(s);
    return json_is_null(kept) ? json_pack("[s]", "lm_head") : kept;
}

static json_t *producer(void) { return json_pack("{s:s, s:s}", "name", "modelopt", "version", "0.47.0"); }

static json_t *group_config(const lq_scheme *s, json_t *targets) {
    algo a = algo_of(s);
    json_t *w = json_pack("{s:b, s:i, s:s}", "dynamic", 0, "num_bits", (int)s->grid.bits, "type", a == AWQ ? "int" : "float");
    if (w && a > FP8_ROWS) json_object_set_new(w, "group_size", json_integer(s->scale.tile_c));
    if (w && a == FP8_ROWS) json_object_set_new(w, "strategy", json_string("channel"));
    json_t *g = json_pack("{s:o, s:o}", "weights", w, "targets", targets);
    if (g && s->act.kind != LQ_ACT_NONE)
        json_object_set_new(g, "input_activations", json_pack("{s:b, s:i, s:s}", "dynamic", s->act.kind == LQ_ACT_DYNAMIC, "num_bits", 8, "type", "float"));
    return g;
}

/* {quant_algo, group_size ...} of a scheme, as hf_quant_config.json has it. */
static json_t *algo_config(const lq_scheme *s) {
    algo a = algo_of(s);
    json_t *q = json_pack("{s:s?}", "quant_algo", algo_names[a]);
    if (q && (a == NVFP4 || a == AWQ)) json_object_set_new(q, "group_size", json_integer(s->scale.tile_c));
    if (q && a == AWQ) json_object_update_new(q, json_pack("{s:b, s:b}", "has_zero_point", 0, "pre_quant_scale", (int)(s->extra != 0)));
    return q;
}

/* {module: its algo}; of: only of those like it, and then an array of names. New reference; NULL: out of memory. */
static json_t *layers_of(const lq_sink *s, const lq_scheme *of) {
    lq_arena *mem = lq_arena_new();
    json_t *all = of ? json_array() : json_object();
    bool ok = mem && all;
    for (size_t i = 0; ok && i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (!r->quantize || (of && !alike(of, &r->scheme))) continue;
        const char *name = lq_folder_module(mem, r);
        ok = name && !(of ? json_array_append_new(all, json_string(name)) : json_object_set_new(all, name, algo_config(&r->scheme)));
    }
    lq_arena_free(&mem);
    if (ok) return all;
    json_decref(all);
    return NULL;
}

static bool is_first(const lq_sink *s, size_t i) {
    for (size_t k = 0; k < i; k++)
        if (s->cat->rows[k].quantize && alike(&s->cat->rows[k].scheme, &s->cat->rows[i].scheme)) return false;
    return s->cat->rows[i].quantize;
}

static json_t *groups(const lq_sink *s) {
    const lq_modelopt *f = s->priv;
    json_t *all = json_object();
    char name[32];
    bool ok = all;
    if (!f->mixed) ok = ok && !json_object_set_new(all, "group_0", group_config(&f->base, json_pack("[s]", "Linear")));
    for (size_t i = 0; ok && f->mixed && i < s->cat->n; i++) {
        const lq_scheme *q = &s->cat->rows[i].scheme;
        if (!is_first(s, i)) continue;
        snprintf(name, sizeof name, "group_%zu", json_object_size(all));
        ok = !json_object_set_new(all, name, group_config(q, layers_of(s, q)));
    }
    if (ok) return all;
    json_decref(all);
    return NULL;
}

/* Only AWQ's scales have significant bits to speak of: F32 and E4M3 scales beside them have all of theirs. */
static json_t *meta(const lq_sink *s) {
    json_t *m = lq_folder_meta(s);
    for (size_t i = 0; m && i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (r->quantize && algo_of(&r->scheme) == AWQ && r->scheme.scale.sig) json_object_set_new(m, "scale_sig", json_integer(r->scheme.scale.sig));
    }
    return m;
}

static json_t *modelopt_config(lq_sink *s) {
    const lq_modelopt *f = s->priv;
    algo a = algo_of(&f->base);
    json_t *c = json_pack("{s:s, s:s?, s:o, s:o, s:o, s:o}", "quant_method", "modelopt", "quant_algo", f->mixed ? "MIXED_PRECISION" : algo_names[a], "config_groups", groups(s), "ignore",
                          excluded(s), "producer", producer(), "meta", meta(s));
    if (c && has_kv(s)) json_object_set_new(c, "kv_cache_scheme", json_pack("{s:b, s:i, s:s}", "dynamic", 0, "num_bits", 8, "type", "float"));
    if (c && !f->mixed && a == AWQ) json_object_set_new(c, "group_size", json_integer(f->base.scale.tile_c));
    if (c && f->mixed && json_object_set_new(c, "quantized_layers", layers_of(s, NULL))) return json_decref(c), NULL;
    return c;
}

static json_t *hf_config(lq_sink *s) {
    const lq_modelopt *f = s->priv;
    json_t *q = f->mixed ? json_pack("{s:s, s:o}", "quant_algo", "MIXED_PRECISION", "quantized_layers", layers_of(s, NULL)) : algo_config(&f->base);
    if (q) json_object_update_new(q, json_pack("{s:s?, s:o}", "kv_cache_quant_algo", has_kv(s) ? "FP8" : NULL, "exclude_modules", excluded(s)));
    return json_pack("{s:o, s:o}", "producer", producer(), "quantization", q);
}

static lq_status modelopt_close(lq_sink *s) {
    lq_buf text;
    json_t *c = hf_config(s);
    if (!c) return lq_oom(s->ctx, 4096);
    lq_status st = lq_json_dump(s->ctx, c, &text);
    if (!st) st = lq_folder_sidecar(s, "hf_quant_config.json", text.v, text.n);
    lq_buf_free(&text);
    json_decref(c);
    return st ? st : lq_folder_close(s);
}

const lq_format lq_format_modelopt = {
    .name = "modelopt", .what = "modelopt checkpoint folder: FP8, NVFP4, W4A16_AWQ and mixtures of them, KV FP8", .priv_size = sizeof(lq_modelopt), .accept = modelopt_accept,
    .kv_scales = true, .check = modelopt_check, .open = modelopt_open, .put = lq_folder_put, .put_fp = lq_folder_put_fp, .sidecar = lq_folder_sidecar, .quant_config = modelopt_config,
    .sync = lq_folder_sync, .close = modelopt_close, .abandon = lq_folder_abandon,
};
