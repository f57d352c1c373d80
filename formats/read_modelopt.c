/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* modelopt "unified" checkpoints (nvidia-modelopt, lquant). A module of N outputs and K inputs, told by its parts:
 *
 *     weight F8_E4M3 [N][K], weight_scale one float or F32 [N]; input_scale one float: static activations, none: per token
 *     weight U8 [N][K/2], weight_scale F8_E4M3 [N][K/16], weight_scale_2 one float: E2M1 codes, the even input in the low nibble;
 *                         w = weight_scale * weight_scale_2 * code
 *     weight U8 [N/2][K], weight_scale F16, BF16 or F32 [N][K/g]: outputs 2i (low) and 2i + 1 as signed 4-bit numbers; w = weight_scale * code
 *
 * quant_algo in config.json or hf_quant_config.json must agree; of MIXED_PRECISION "quantized_layers" says each module's. NVFP4 of activations has no place here: the weights alone are read.
 * pre_quant_scale [K] beside integers or NVFP4: activations are multiplied by it first (o_proj, down_proj: no norm before them takes it in). */
#include "core/pack.h"
#include "formats/modules.h"
#include "formats/qcodec.h"

#include <stdio.h>
#include <string.h>

enum { WEIGHT, SCALE, SCALE_2, INPUT_SCALE, PRE_SCALE };
typedef struct algo { char name[40]; int64_t group; } algo;
typedef struct modelopt { algo all; json_t *layers; uint8_t sig; bool told; } modelopt; /* layers: of MIXED_PRECISION, owned; else NULL */

static const char beside[] = "hf_quant_config.json";

static bool modelopt_probe(const char *path, const json_t *config) {
    const json_t *q = json_object_get(config, "quantization_config");
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    if (q && !json_is_null(q)) return method && !strncmp(method, "modelopt", 8);
    char file[4096];
    int n = snprintf(file, sizeof file, "%s/%s", path, beside);
    return config && n > 0 && (size_t)n < sizeof file && lq_path_exists(file);
}

/* The settings of the file beside, for checkpoints whose config.json has none. */
static lq_status load_beside(lq_ctx *ctx, const lq_source *s, json_t **doc) {
    char *path = lq_path_join(s->path, beside);
    if (!path) return lq_oom(ctx, strlen(s->path));
    lq_status st = lq_json_load_max(ctx, path, 4 << 20, doc);
    lq_free(path);
    return st;
}

static lq_status read_algo(lq_ctx *ctx, const json_t *q, algo *out) {
    const char *name = NULL;
    LQ_TRY(lq_json_string(ctx, q, "quant_algo", true, &name));
    LQ_TRY(lq_json_int(ctx, q, "group_size", false, 0, 0, 1 << 20, &out->group));
    snprintf(out->name, sizeof out->name, "%s", name);
    static const char *const known[] = {"FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "NVFP4_AWQ", "W4A16_NVFP4", "W4A16_AWQ"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i])) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "modelopt's quant_algo '%.64s' is not read; FP8, FP8_PER_CHANNEL_PER_TOKEN, NVFP4, NVFP4_AWQ, W4A16_NVFP4, W4A16_AWQ and MIXED_PRECISION of them are", name);
}

static lq_status read_settings(lq_ctx *ctx, const json_t *q, modelopt *f) {
    const char *name = json_string_value(json_object_get(q, "quant_algo"));
    int64_t sig;
    LQ_TRY(lq_json_int(ctx, json_object_get(q, "meta"), "scale_sig", false, 0, 0, 11, &sig));
    f->sig = (uint8_t)sig;
    if (!name || strcmp(name, "MIXED_PRECISION")) return read_algo(ctx, q, &f->all);
    json_t *layers = json_object_get(q, "quantized_layers");
    if (!json_is_object(layers)) return lq_fail(ctx, LQ_ERR_FORMAT, "quant_algo is MIXED_PRECISION, but there are no quantized_layers");
    f->layers = json_incref(layers);
    return LQ_OK;
}

static void modelopt_free(void *priv) { json_decref(((modelopt *)priv)->layers); }

static lq_status algo_of(lq_ctx *ctx, const modelopt *f, const char *module, algo *out) {
    *out = f->all;
    if (!f->layers) return LQ_OK;
    const json_t *own = json_object_get(f->layers, module);
    if (!json_is_object(own)) return lq_fail(ctx, LQ_ERR_FORMAT, "it is stored quantized, but quantized_layers does not name it");
    return read_algo(ctx, own, out);
}

static lq_status modelopt_config(lq_ctx *ctx, lq_source *s) {
    const json_t *q = json_object_get(s->config, "quantization_config");
    json_t *doc = NULL;
    if (!json_is_object(q)) {
        LQ_TRY(load_beside(ctx, s, &doc));
        q = json_object_get(doc, "quantization");
    }
    lq_status st = read_settings(ctx, q, lq_modules_priv(s));
    json_decref(doc);
    return st;
}

/* -- modules --------------------------------------------------------------------------------------------------------- */

static bool is_fp8(const algo *a) { return !strncmp(a->name, "FP8", 3); }
static bool is_nvfp4(const algo *a) { return strstr(a->name, "NVFP4") != NULL; }

static lq_status describe_fp8(lq_ctx *ctx, const lq_entry *w, const lq_entry *sc, const lq_entry *step, lq_entry *e) {
    bool rows = sc->ndim == 1 && sc->shape[0] > 1;
    LQ_TRY(lq_entry_expect(ctx, w, w->dtype == LQ_E4M3, 2, w->shape[0], w->shape[1]));
    LQ_TRY(rows ? lq_entry_expect(ctx, sc, sc->dtype == LQ_F32, 1, w->shape[0], 0) : lq_entry_scalar(ctx, sc));
    if (step) LQ_TRY(lq_entry_scalar(ctx, step));
    e->shape[0] = w->shape[0];
    e->shape[1] = w->shape[1];
    e->scheme = (lq_scheme){.grid = {LQ_GRID_E4M3, 8, 1, 0}, .scale = {.dtype = LQ_F32, .tile_r = rows}, .act = {.kind = step ? LQ_ACT_STATIC : LQ_ACT_DYNAMIC, .dtype = LQ_E4M3}};
    return LQ_OK;
}

static lq_status describe_nvfp4(lq_ctx *ctx, const lq_entry *w, const lq_entry *sc, const lq_entry *up, lq_entry *e) {
    if (!up) return lq_fail(ctx, LQ_ERR_FORMAT, "there is no weight_scale_2");
    LQ_TRY(lq_entry_expect(ctx, w, w->dtype == LQ_U8, 2, w->shape[0], w->shape[1]));
    uint64_t k = w->shape[1] * 2;
    if (k % 16) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has %llu inputs, which blocks of 16 do not divide", w->name, (unsigned long long)k);
    LQ_TRY(lq_entry_expect(ctx, sc, sc->dtype == LQ_E4M3, 2, w->shape[0], k / 16));
    LQ_TRY(lq_entry_scalar(ctx, up));
    e->shape[0] = w->shape[0];
    e->shape[1] = k;
    e->scheme = (lq_scheme){.grid = {LQ_GRID_E2M1, 4, 1, 0}, .scale = {.dtype = LQ_E4M3, .tile_r = 1, .tile_c = 16, .parent = LQ_F32}};
    return LQ_OK;
}

static lq_status describe_awq(lq_ctx *ctx, const algo *a, uint8_t sig, const lq_entry *w, const lq_entry *sc, lq_entry *e) {
    uint64_t n = w->shape[0] * 2, k = w->shape[1], g = sc->ndim == 2 && sc->shape[1] ? k / sc->shape[1] : 0;
    LQ_TRY(lq_entry_expect(ctx, w, w->dtype == LQ_U8, 2, w->shape[0], k));
    if (!g || g * sc->shape[1] != k || (a->group && g != (uint64_t)a->group))
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' does not scale %llu inputs in groups of %d", sc->name, (unsigned long long)k, (int)a->group);
    LQ_TRY(lq_entry_expect(ctx, sc, sc->dtype == LQ_F16 || sc->dtype == LQ_BF16 || sc->dtype == LQ_F32, 2, n, k / g));
    e->shape[0] = n;
    e->shape[1] = k;
    e->scheme = lq_scheme_int(4, (int)g, true);
    e->scheme.scale.dtype = sc->dtype;
    e->scheme.scale.sig = sig;
    return LQ_OK;
}

/* The entry's scheme with the factors of its inputs. */
static lq_status describe_factors(lq_ctx *ctx, const lq_entry *pre, lq_entry *e) {
    LQ_TRY(lq_entry_expect(ctx, pre, pre->dtype == LQ_F16 || pre->dtype == LQ_BF16 || pre->dtype == LQ_F32, 1, e->shape[1], 0));
    e->scheme.extra = LQ_X_PRESCALE;
    return LQ_OK;
}

static lq_status modelopt_describe(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m, lq_entry *e, bool *plain) {
    modelopt *f = lq_modules_priv(s);
    const lq_entry *w = lq_modules_entry(s, m, WEIGHT), *sc = lq_modules_entry(s, m, SCALE), *step = lq_modules_entry(s, m, INPUT_SCALE), *pre = lq_modules_entry(s, m, PRE_SCALE);
    bool alone = !sc && !step && m->part[SCALE_2] < 0 && m->part[PRE_SCALE] < 0;
    if (alone && w->dtype != LQ_E4M3 && w->dtype != LQ_U8) return *plain = true, LQ_OK;
    if (!sc) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has no weight_scale", name);
    if (w->ndim != 2 || !w->shape[0] || !w->shape[1] || w->shape[0] > INT32_MAX / 2 || w->shape[1] > INT32_MAX / 2)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' (%u dimensions) is no matrix", w->name, w->ndim);
    e->ndim = 2;
    algo a;
    LQ_TRY(algo_of(ctx, f, name, &a));
    if (is_fp8(&a) && pre) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'%s' has a pre_quant_scale beside FP8, which is not read", name);
    if (is_fp8(&a)) return describe_fp8(ctx, w, sc, step, e);
    if (!is_nvfp4(&a)) {
        LQ_TRY(describe_awq(ctx, &a, f->sig, w, sc, e));
        return pre ? describe_factors(ctx, pre, e) : LQ_OK;
    }
    if (step && !f->told) {
        f->told = true;
        lq_log(ctx, LQ_LOG_WARN, "NVFP4 of activations is not read: the weights alone are, without input_scale");
    }
    LQ_TRY(describe_nvfp4(ctx, w, sc, lq_modules_entry(s, m, SCALE_2), e));
    return pre ? describe_factors(ctx, pre, e) : LQ_OK;
}

/* -- data ------------------------------------------------------------------------------------------------------------ */

static uint32_t unsigned_code(uint32_t two_complement) { return (two_complement + 8) % 16; }

static lq_status read_pairs(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data;
    lq_status st = lq_modules_part(ctx, s, i, WEIGHT, &data);
    for (uint32_t n = 0; !st && n < q->rows; n++)
        for (uint32_t k = 0; k < q->cols; k++) {
            uint32_t byte = ((const uint8_t *)data)[(size_t)(n / 2) * q->cols + k];
            lq_code_put(q->codes + n * q->row_bytes, 4, k, unsigned_code(n % 2 ? byte / 16 : byte % 16));
        }
    lq_free(data);
    return st;
}

static lq_status read_scales(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data;
    size_t n = lq_plane_count(&q->sch.scale, q->rows, q->cols);
    if (n == 1 && q->sch.scale.dtype == LQ_F32) return lq_modules_scalar(ctx, s, i, SCALE, q->scale.v);
    lq_status st = lq_modules_part(ctx, s, i, SCALE, &data);
    if (!st) memcpy(q->scale.v, data, n * lq_dtypes[q->sch.scale.dtype].bytes);
    lq_free(data);
    return st;
}

static lq_status modelopt_fill(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    const lq_entry *e = &s->entries[i];
    if (e->scheme.grid.kind == LQ_GRID_INT) LQ_TRY(read_pairs(ctx, s, i, out));
    else LQ_TRY(lq_modules_codes(ctx, s, i, WEIGHT, out));
    LQ_TRY(read_scales(ctx, s, i, out));
    if (e->scheme.scale.parent != LQ_NONE) LQ_TRY(lq_modules_scalar(ctx, s, i, SCALE_2, out->scale.parent));
    if (e->scheme.act.kind == LQ_ACT_STATIC) LQ_TRY(lq_modules_scalar(ctx, s, i, INPUT_SCALE, &out->act_scale));
    return out->prescale ? lq_modules_floats(ctx, s, i, PRE_SCALE, out->cols, out->prescale) : LQ_OK;
}

static const lq_module_format parts = {
    .suffix = {".weight", ".weight_scale", ".weight_scale_2", ".input_scale", ".pre_quant_scale"}, .priv_size = sizeof(modelopt), .config = modelopt_config, .free_priv = modelopt_free,
    .describe = modelopt_describe, .fill = modelopt_fill,
};

static lq_status modelopt_open(lq_ctx *ctx, lq_source *s) { return lq_modules_open(ctx, s, &parts); }

const lq_reader lq_reader_modelopt = {
    .name = "modelopt", .what = "modelopt checkpoint folder: FP8, NVFP4, W4A16_AWQ, mixed", .probe = modelopt_probe, .open = modelopt_open, LQ_MODULES_CALLS,
};
