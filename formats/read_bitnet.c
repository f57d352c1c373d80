/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* BitNet checkpoints of transformers, packed ("offline"): "<module>.weight" U8 [N/4][K] with "<module>.weight_scale" [1] beside it. Output n
 * is bits 2 (n / (N/4)) of row n % (N/4), value t = field - 1; a field of 3 means nothing. linear_class says what the scale is:
 *
 *     bitlinear (the default)   w = t / weight_scale
 *     autobitlinear             w = t weight_scale
 *
 * Activations are 8 bits per token. Masters ("online") hold floats and are read as they are (calib/master.h). */
#include "core/pack.h"
#include "formats/modules.h"
#include "formats/qcodec.h"

#include "core/num.h"

#include <string.h>

enum { WEIGHT, SCALE };

typedef struct bitnet { bool direct; } bitnet; /* weight_scale multiplies */

static const json_t *quant_of(const json_t *config) { return json_object_get(config, "quantization_config"); }

static bool bitnet_probe(const char *path, const json_t *config) {
    const char *method = json_string_value(json_object_get(quant_of(config), "quant_method"));
    const char *mode = json_string_value(json_object_get(quant_of(config), "quantization_mode"));
    (void)path;
    return method && !strcmp(method, "bitnet") && (!mode || strcmp(mode, "online"));
}

static lq_status bitnet_config(lq_ctx *ctx, lq_source *s) {
    const char *class, *mode;
    bool norms = false;
    LQ_TRY(lq_json_string(ctx, quant_of(s->config), "linear_class", false, &class));
    LQ_TRY(lq_json_string(ctx, quant_of(s->config), "quantization_mode", false, &mode));
    LQ_TRY(lq_json_bool(ctx, quant_of(s->config), "use_rms_norm", false, &norms));
    if (norms) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a norm in every linear ('use_rms_norm' of quantization_config) is not supported");
    if (mode && strcmp(mode, "offline")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "quantization_mode '%.32s' is not read; offline and online are", mode);
    if (class && strcmp(class, "bitlinear") && strcmp(class, "autobitlinear"))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "linear_class '%.32s' is not read; bitlinear and autobitlinear are", class);
    ((bitnet *)lq_modules_priv(s))->direct = class && !strcmp(class, "autobitlinear");
    return LQ_OK;
}

static lq_status bitnet_describe(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m, lq_entry *e, bool *plain) {
    const lq_entry *w = lq_modules_entry(s, m, WEIGHT), *scale = lq_modules_entry(s, m, SCALE);
    bool direct = ((const bitnet *)lq_modules_priv(s))->direct;
    (void)name;
    if (!scale && w->dtype == LQ_U8) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is of type U8, but has no weight_scale", w->name);
    if (!scale) {
        *plain = true;
        return LQ_OK;
    }
    if (w->dtype == LQ_F32 || w->dtype == LQ_F16 || w->dtype == LQ_BF16)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'%s' is ternary in %s; packed weights (U8) are read", w->name, lq_dtypes[w->dtype].name);
    LQ_TRY(lq_entry_expect(ctx, w, w->dtype == LQ_U8, 2, w->shape[0], w->shape[1]));
    if (!w->shape[0] || !w->shape[1] || w->shape[0] > INT32_MAX / 4 || w->shape[1] > INT32_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is empty or too large", w->name);
    LQ_TRY(lq_entry_expect(ctx, scale, scale->dtype == LQ_F32 || scale->dtype == LQ_F16 || scale->dtype == LQ_BF16, 1, 1, 0));
    *e = (lq_entry){.dtype = LQ_NONE, .ndim = 2, .shape = {4 * w->shape[0], w->shape[1]},
                    .scheme = {.grid = {.kind = LQ_GRID_INT, .bits = 2, .vec = 1, .bias = 1}, .scale = {.dtype = LQ_F32, .sig = direct ? 0 : LQ_SIG_INVERSE}, .act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .scope = LQ_ACT_BITNET}}};
    return LQ_OK;
}

static lq_status read_codes(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, WEIGHT, &data);
    const uint8_t *byte = data;
    for (uint32_t r = 0; !st && r < q->rows / 4; r++)
        for (uint32_t k = 0; !st && k < q->cols; k++, byte++) {
            if (*byte & *byte >> 1 & 0x55) st = lq_fail(ctx, LQ_ERR_FORMAT, "byte (%u, %u) is 0x%02x: a field of 3 is no ternary value", r, k, *byte);
            for (uint32_t field = 0; field < 4; field++) lq_code_put(q->codes + (r + field * (q->rows / 4)) * q->row_bytes, 2, k, *byte >> 2 * field & 3u);
        }
    lq_free(data);
    return st;
}

static lq_status read_scale(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    const lq_entry *e = lq_modules_entry(s, &((lq_modules *)s->priv)->modules[i], SCALE);
    void *data = NULL;
    float v = 0;
    lq_status st = lq_modules_part(ctx, s, i, SCALE, &data);
    if (!st) lq_dtype_decode(e->dtype, data, &v, 1);
    lq_free(data);
    if (!st && !(v > 0 && isfinite(v) && isfinite(1 / v))) st = lq_fail(ctx, LQ_ERR_FORMAT, "weight_scale is %g", (double)v);
    if (!st) *(float *)q->scale.v = ((const bitnet *)lq_modules_priv(s))->direct ? v : 1 / v;
    return st;
}

static lq_status bitnet_fill(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    lq_status st = read_codes(ctx, s, i, out);
    if (!st) st = read_scale(ctx, s, i, out);
    return st;
}

static const lq_module_format parts = {
    .suffix = {".weight", ".weight_scale"}, .required = 1u << WEIGHT, .priv_size = sizeof(bitnet), .config = bitnet_config, .describe = bitnet_describe, .fill = bitnet_fill,
};

static lq_status bitnet_open(lq_ctx *ctx, lq_source *s) {
    LQ_TRY(lq_modules_open(ctx, s, &parts));
    for (size_t i = 0; i < s->n; i++)
        if (s->entries[i].dtype == LQ_NONE) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_FORMAT, "the configuration says packed offline (bitnet), but no tensor is");
}

const lq_reader lq_reader_bitnet = {
    .name = "bitnet", .what = "BitNet b1.58 folder of transformers, packed", .probe = bitnet_probe, .open = bitnet_open, LQ_MODULES_CALLS,
};
