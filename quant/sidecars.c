/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/sidecars.h"

#include "calib/chat.h"
#include "calib/rotate.h"
#include "calib/tokenizer.h"

#include <string.h>

static lq_status copy_one(lq_ctx *ctx, lq_source *src, const char *name, lq_sink *sink) {
    lq_buf b;
    LQ_TRY(lq_source_sidecar(ctx, src, name, &b));
    bool config = !strcmp(name, "config.json");
    lq_status st = config ? lq_sink_config(sink, b.v, b.n) : lq_sink_sidecar(sink, name, b.v, b.n);
    lq_buf_free(&b);
    return st;
}

static lq_status put_json(lq_ctx *ctx, lq_sink *sink, const char *name, json_t *v) {
    lq_buf b = {0};
    lq_status st = v ? lq_json_dump(ctx, v, &b) : lq_oom(ctx, 256);
    if (!st) st = !strcmp(name, "config.json") ? lq_sink_config(sink, b.v, b.n) : lq_sink_sidecar(sink, name, b.v, b.n);
    lq_buf_free(&b);
    json_decref(v);
    return st;
}

static json_t *token_or_null(const lq_tokenizer *t, int32_t id) {
    const char *text = id >= 0 ? lq_tokenizer_token(t, id) : NULL;
    return text ? json_string(text) : json_null();
}

static bool has_no_tokenizer(const lq_gguf *g) {
    size_t n;
    const char *model = lq_gguf_str(lq_gguf_find(g, "tokenizer.ggml.model"), 0, &n);
    return model && !strcmp(model, "none");
}

static lq_status tokenizer_files(lq_ctx *ctx, lq_source *src, lq_sink *sink) {
    if (has_no_tokenizer(src->gguf)) return LQ_OK;
    lq_tokenizer *t = NULL;
    lq_buf chat = {0};
    json_t *v = NULL;
    lq_status st;
    LQ_GO(lq_tokenizer_open(ctx, src, &t));
    LQ_GO(lq_tokenizer_json(ctx, t, &v));
    LQ_GO(put_json(ctx, sink, "tokenizer.json", v));
    LQ_GO(lq_chat_template(ctx, src, &chat));
    v = json_pack("{s:s, s:o, s:o}", "tokenizer_class", "PreTrainedTokenizerFast", "bos_token", token_or_null(t, lq_tokenizer_bos(t)), "eos_token",
                  token_or_null(t, lq_tokenizer_eos(t)));
    if (v && chat.v) json_object_set_new(v, "chat_template", json_stringn(chat.v, chat.n));
    LQ_GO(put_json(ctx, sink, "tokenizer_config.json", v));
    v = json_object();
    if (v && lq_tokenizer_bos(t) >= 0) json_object_set_new(v, "bos_token_id", json_integer(lq_tokenizer_bos(t)));
    if (v && lq_tokenizer_eos(t) >= 0) json_object_set_new(v, "eos_token_id", json_integer(lq_tokenizer_eos(t)));
    st = put_json(ctx, sink, "generation_config.json", v);
done:
    lq_buf_free(&chat);
    lq_tokenizer_free(&t);
    return st;
}

static bool decodes(const lq_model *m) {
    for (size_t i = 0; i < m->cat.n; i++)
        if (m->cat.rows[i].dtype == LQ_NONE) return true;
    return false;
}

static const char *float_name(lq_dtype t) { return t == LQ_F32 ? "float32" : t == LQ_F16 ? "float16" : "bfloat16"; }

json_t *lq_sidecars_changes(const lq_model *m, lq_dtype floats) {
    static const char *const types[] = {"dtype", "torch_dtype"}; /* what runtimes cast to when nobody says otherwise */
    const json_t *config = m->src->config;
    json_t *v = json_object();
    int bad = !v;
    if (m->rotation && m->rotation->untied) bad |= json_object_set_new(v, "tie_word_embeddings", json_false());
    static const char *const codes[] = {"quantization_config", "compression_config", "quantization", "lquant"}; /* the second: early compressed-tensors; the latter two: MLX */
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if ((decodes(m) || m->par.master) && json_object_get(config, codes[i])) bad |= json_object_set_new(v, codes[i], json_null());
    for (int i = 0; i < 2 && floats; i++) {
        const char *was = json_string_value(json_object_get(config, types[i]));
        if (was && strcmp(was, float_name(floats))) bad |= json_object_set_new(v, types[i], json_string(float_name(floats)));
    }
    if (!bad) return v;
    json_decref(v);
    return NULL;
}

/* Says how the tensors of the source are quantized: GPTQ's, AWQ's and modelopt's. */
static bool is_about_codes(const char *name) {
    return !strcmp(name, "quantize_config.json") || !strcmp(name, "quant_config.json") || !strcmp(name, "hf_quant_config.json");
}

lq_status lq_sidecars_write(lq_ctx *ctx, lq_source *src, const lq_model *m, lq_sink *sink) {
    if (!src->gguf) {
        for (size_t i = 0; i < src->n_sidecars; i++)
            if (strcmp(src->sidecars[i], "lquant-manifest.json") && (!is_about_codes(src->sidecars[i]) || !decodes(m)))
                LQ_TRY(copy_one(ctx, src, src->sidecars[i], sink));
        return LQ_OK;
    }
    json_t *config = NULL;
    LQ_TRY(lq_model_config(ctx, m, &config));
    lq_dtype t = m->cat.rows[0].out_dtype;
    json_object_set_new(config, "torch_dtype", json_string(float_name(t)));
    LQ_TRY(put_json(ctx, sink, "config.json", config));
    return tokenizer_files(ctx, src, sink);
}
