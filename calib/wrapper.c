/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Multimodal models: their text tower is a known architecture (config.json: text_config, names behind a prefix). The tower is
 * bound, run and quantized; vision towers and projectors become UNKNOWN rows and are copied through. Listed are models whose
 * text, where no image stands in it, is computed as the tower alone computes it; others are refused. */
#include "calib/arch.h"

#include <string.h>

typedef struct wrapper { const char *model_type, *text; } wrapper; /* text: the tower's model_type when text_config has none */
static const wrapper wrappers[] = {
    {"gemma3", "gemma3_text"},     {"got_ocr2", "qwen2"},       {"idefics3", "llama"},           {"internvl", "qwen2"},
    {"llava", "llama"},            {"llava_next", "llama"},     {"llava_onevision", "qwen2"},    {"mistral3", "mistral"},
    {"qwen2_5_vl", "qwen2_5_vl_text"}, {"qwen2_vl", "qwen2_vl_text"}, {"qwen3_vl", "qwen3_vl_text"}, {"smolvlm", "llama"},
    {"vipllava", "llama"},
};

/* As published (transformers before 4.52 wrote so), and since. */
const lq_respelled lq_wrapper_names[] = {
    {"model.", "language_model.model."},
    {"lm_head.", "language_model.lm_head."},
    {"model.", "model.language_model."},
    {"model.", "model.text_model."},
    {NULL, NULL},
};

lq_status lq_text_config(lq_ctx *ctx, const json_t *config, const json_t **text, const char **model_type) {
    const json_t *inner = json_object_get(config, "text_config");
    const wrapper *found = NULL;
    *text = config;
    LQ_TRY(lq_json_string(ctx, config, "model_type", true, model_type));
    for (size_t i = 0; i < sizeof wrappers / sizeof *wrappers && json_is_object(inner); i++)
        if (!strcmp(*model_type, wrappers[i].model_type)) found = &wrappers[i];
    if (!found) return LQ_OK;
    *text = inner;
    LQ_TRY(lq_json_string(ctx, inner, "model_type", false, model_type));
    if (!*model_type) *model_type = found->text;
    return LQ_OK;
}
