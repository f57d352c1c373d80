/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* FP8 checkpoints (quant_method "fp8"): DeepSeek's blocks, AutoFP8's and vLLM's one scale, transformers' names for the latter. A module of N outputs
 * and K inputs is F8_E4M3 "weight" [N][K] and
 *
 *     weight_scale_inv [ceil(N/B)][ceil(K/C)], F32, F16, BF16 or powers of two as F8_E8M0 or U8 ("ue8m0"), weight_block_size [B, C], or
 *     weight_scale or weight_scale_inv, one float for the matrix; input_scale or activation_scale, one float when activation_scheme is "static"
 *
 *     w[n][k] = scale * weight[n][k], activations E4M3 in groups of C, or per token, or with the static step
 *
 * A "weight" of another type is a kept tensor. */
#include "formats/modules.h"
#include "formats/qcodec.h"

#include <string.h>

enum { WEIGHT, SCALE_INV, SCALE, INPUT_SCALE, ACT_SCALE };

typedef struct fp8 { int64_t block[2]; bool statics; } fp8; /* block 0: one scale for the matrix */

static bool fp8_probe(const char *path, const json_t *config) {
    const char *method = json_string_value(json_object_get(json_object_get(config, "quantization_config"), "quant_method"));
    (void)path;
    return method && !strcmp(method, "fp8");
}

static lq_status read_block(lq_ctx *ctx, const json_t *q, fp8 *f) {
    const json_t *b = json_object_get(q, "weight_block_size");
    if (!b || json_is_null(b)) return LQ_OK;
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_array_get(b, i);
        if (json_array_size(b) != 2 || !json_is_integer(v) || json_integer_value(v) < 2 || json_integer_value(v) > 1 << 20)
            return lq_fail(ctx, LQ_ERR_FORMAT, "'weight_block_size' is not two integers from 2 to %d", 1 << 20);
        f->block[i] = json_integer_value(v);
    }
    return LQ_OK;
}

static lq_status fp8_config(lq_ctx *ctx, lq_source *s) {
    fp8 *f = lq_modules_priv(s);
    const json_t *q = json_object_get(s->config, "quantization_config");
    const char *acts = NULL, *fmt = NULL, *expert = NULL;
    LQ_TRY(lq_json_string(ctx, q, "activation_scheme", false, &acts));
    LQ_TRY(lq_json_string(ctx, q, "fmt", false, &fmt));
    LQ_TRY(lq_json_string(ctx, q, "expert_dtype", false, &expert));
    LQ_TRY(read_block(ctx, q, f));
    if (acts && strcmp(acts, "dynamic") && strcmp(acts, "static")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "activation_scheme '%.64s'; dynamic and static are read", acts);
    if (fmt && strcmp(fmt, "e4m3") && strcmp(fmt, "float8_e4m3fn")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "fmt '%.64s'; e4m3 is read", fmt);
    if (expert && strcmp(expert, "fp8")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "expert_dtype '%.64s'; fp8 is read", expert);
    f->statics = acts && !strcmp(acts, "static");
    if (f->statics && f->block[0]) return lq_fail(ctx, LQ_ERR_FORMAT, "activation_scheme static with weight_block_size: runtimes know dynamic ones alone");
    return LQ_OK;
}

/* -- modules --------------------------------------------------------------------------------------------------------- */

static size_t scale_part(const lq_module *m) { return m->part[SCALE_INV] >= 0 ? SCALE_INV : SCALE; }
static size_t step_part(const lq_module *m) { return m->part[INPUT_SCALE] >= 0 ? INPUT_SCALE : ACT_SCALE; }

static lq_dtype plane_dtype(lq_dtype t) { return t == LQ_U8 ? LQ_E8M0 : t; } /* ue8m0 as torch without that type stores it */

static lq_status check_blocks(lq_ctx *ctx, const fp8 *f, const lq_entry *w, const lq_entry *sc) {
    bool ok = sc->dtype == LQ_F32 || sc->dtype == LQ_F16 || sc->dtype == LQ_BF16 || sc->dtype == LQ_E8M0 || sc->dtype == LQ_U8;
    uint64_t b = (uint64_t)f->block[0], c = (uint64_t)f->block[1];
    return lq_entry_expect(ctx, sc, ok, 2, (w->shape[0] + b - 1) / b, (w->shape[1] + c - 1) / c);
}

static lq_status check_parts(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m) {
    const fp8 *f = lq_modules_priv(s);
    const lq_entry *w = lq_modules_entry(s, m, WEIGHT), *sc = lq_modules_entry(s, m, scale_part(m)), *step = lq_modules_entry(s, m, step_part(m));
    if (w->dtype != LQ_E4M3)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is %s, but has scales beside it; expected F8_E4M3", w->name, lq_dtypes[w->dtype].name);
    if (w->ndim != 2 || !w->shape[0] || !w->shape[1] || w->shape[0] > INT32_MAX || w->shape[1] > INT32_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' (%u dimensions) is no matrix", w->name, w->ndim);
    if (!sc) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is F8_E4M3, but has no %s", w->name, f->block[0] ? "weight_scale_inv" : "weight_scale");
    if (m->part[SCALE_INV] >= 0 && m->part[SCALE] >= 0) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has both weight_scale and weight_scale_inv", name);
    if (f->statics != (step != NULL))
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has %s input_scale, but activation_scheme is %s", name, step ? "an" : "no", f->statics ? "static" : "dynamic");
    if (step) LQ_TRY(lq_entry_scalar(ctx, step));
    return f->block[0] ? check_blocks(ctx, f, w, sc) : lq_entry_scalar(ctx, sc);
}

static lq_status fp8_describe(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m, lq_entry *e, bool *plain) {
    const fp8 *f = lq_modules_priv(s);
    const lq_entry *w = lq_modules_entry(s, m, WEIGHT);
    bool alone = m->part[SCALE] < 0 && m->part[SCALE_INV] < 0 && m->part[INPUT_SCALE] < 0 && m->part[ACT_SCALE] < 0;
    if (alone && w->dtype != LQ_E4M3) return *plain = true, LQ_OK;
    LQ_TRY(check_parts(ctx, s, name, m));
    e->ndim = 2;
    e->shape[0] = w->shape[0];
    e->shape[1] = w->shape[1];
    e->scheme = (lq_scheme){.grid = {LQ_GRID_E4M3, 8, 1, 0}, .scale = {.dtype = LQ_F32}, .act = {.kind = f->statics ? LQ_ACT_STATIC : LQ_ACT_DYNAMIC, .dtype = LQ_E4M3}};
    if (!f->block[0]) return LQ_OK;
    e->scheme.scale = (lq_plane_desc){.dtype = plane_dtype(lq_modules_entry(s, m, scale_part(m))->dtype), .tile_r = (uint32_t)f->block[0], .tile_c = (uint32_t)f->block[1]};
    e->scheme.act.tile = (uint32_t)f->block[1];
    return LQ_OK;
}

/* -- data ------------------------------------------------------------------------------------------------------------ */

static lq_status read_scales(lq_ctx *ctx, lq_source *s, size_t i, const lq_module *m, lq_qtensor *q) {
    void *data;
    if (!q->sch.scale.tile_c) return lq_modules_scalar(ctx, s, i, scale_part(m), q->scale.v);
    lq_status st = lq_modules_part(ctx, s, i, scale_part(m), &data);
    if (!st) memcpy(q->scale.v, data, lq_plane_count(&q->sch.scale, q->rows, q->cols) * lq_dtypes[q->sch.scale.dtype].bytes);
    lq_free(data);
    return st;
}

static lq_status fp8_fill(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    const lq_entry *e = &s->entries[i];
    const lq_module *m = &((const lq_modules *)s->priv)->modules[i];
    LQ_TRY(lq_modules_codes(ctx, s, i, WEIGHT, out));
    LQ_TRY(read_scales(ctx, s, i, m, out));
    if (e->scheme.act.kind == LQ_ACT_STATIC) LQ_TRY(lq_modules_scalar(ctx, s, i, step_part(m), &out->act_scale));
    return LQ_OK;
}

static const lq_module_format parts = {
    .suffix = {".weight", ".weight_scale_inv", ".weight_scale", ".input_scale", ".activation_scale"}, .priv_size = sizeof(fp8), .config = fp8_config, .describe = fp8_describe, .fill = fp8_fill,
};

static lq_status fp8_open(lq_ctx *ctx, lq_source *s) { return lq_modules_open(ctx, s, &parts); }

const lq_reader lq_reader_fp8 = {
    .name = "fp8", .what = "FP8 checkpoint folder: DeepSeek's blocks, or one scale a matrix", .probe = fp8_probe, .open = fp8_open, LQ_MODULES_CALLS,
};
