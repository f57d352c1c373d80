/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "calib/master.h"

#include "core/pack.h"

#include <math.h>
#include <string.h>

const lq_scheme lq_master_scheme = {
    .grid = {.kind = LQ_GRID_INT, .bits = 2, .vec = 1, .bias = 1},
    .scale = {.dtype = LQ_F32},
    .act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .scope = LQ_ACT_BITNET},
};

static bool only_head(const json_t *list) {
    const char *name = json_string_value(json_array_get(list, 0));
    return !list || json_is_null(list) || (json_is_array(list) && (!json_array_size(list) || (json_array_size(list) == 1 && name && !strcmp(name, "lm_head"))));
}

lq_status lq_master_find(lq_ctx *ctx, lq_model *m) {
    const json_t *q = json_object_get(m->src->config, "quantization_config");
    const char *method = json_string_value(json_object_get(q, "quant_method")), *mode = json_string_value(json_object_get(q, "quantization_mode"));
    if (!method || strcmp(method, "bitnet") || !mode || strcmp(mode, "online")) return LQ_OK;
    if (json_is_true(json_object_get(q, "use_rms_norm")))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a norm in every linear ('use_rms_norm' of quantization_config) is not supported");
    if (!only_head(json_object_get(q, "modules_to_not_convert")))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'modules_to_not_convert' of quantization_config names more than lm_head");
    m->par.master = true;
    return LQ_OK;
}

bool lq_is_master(const lq_model *m, const lq_row *row) {
    return m->par.master && row->linear && row->part == LQ_PART_WEIGHT && row->slot.block >= 0 && row->dtype != LQ_NONE;
}

/* fp32 steps as transformers takes them: 1 / mean, a product, a quotient. */
static float inverse_mean(const float *w, uint64_t n) {
    double sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += fabsf(w[i]);
    float mean = (float)(sum / (double)n);
    return 1 / (mean > 1e-5f ? mean : 1e-5f);
}

static float ternary(float w, float inverse) {
    float t = rintf(w * inverse);
    return t > 1 ? 1 : t < -1 ? -1 : t;
}

float lq_master_round(float *w, uint64_t n) {
    float inverse = inverse_mean(w, n);
    for (uint64_t i = 0; i < n; i++) w[i] = ternary(w[i], inverse) / inverse;
    return 1 / inverse;
}

lq_status lq_master_linear(lq_ctx *ctx, lq_model *m, const lq_row *row, lq_qtensor *q) {
    uint32_t rows = lq_row_rows(row), cols = lq_row_cols(row);
    uint64_t n = (uint64_t)rows * cols;
    float *w = lq_calloc(n, sizeof *w);
    if (!w) return lq_oom(ctx, n * sizeof *w);
    lq_status st = lq_model_read_f32(ctx, m, row, w);
    if (!st) st = lq_qtensor_init(ctx, q, &lq_master_scheme, row->slot, rows, cols);
    if (!st) {
        float scale = 0;
        for (uint64_t i = 0; i < n; i++) scale = fabsf(w[i]) > scale ? fabsf(w[i]) : scale;
        lq_plane_set(&q->sch.scale, &q->scale, 0, scale);
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t c = 0; c < cols; c++) {
                float v = w[(uint64_t)r * cols + c];
                lq_code_put(q->codes + (size_t)r * q->row_bytes, 2, c, v > 0 ? 2 : v < 0 ? 0 : 1);
            }
    }
    lq_free(w);
    return st;
}
