/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Where a model keeps its chat template. */
#include "calib/chat.h"

#include "formats/source.h"

#include <string.h>

/* tokenizer_config.json's chat_template: a string, or a list of {name, template} of which "default" is taken. */
static const json_t *template_in(const json_t *config) {
    const json_t *t = json_object_get(config, "chat_template");
    if (json_is_string(t)) return t;
    for (size_t i = 0; i < json_array_size(t); i++) {
        const json_t *row = json_array_get(t, i), *name = json_object_get(row, "name");
        if (json_is_string(name) && !strcmp(json_string_value(name), "default")) return json_object_get(row, "template");
    }
    return NULL;
}

static lq_status from_config(lq_ctx *ctx, lq_source *src, lq_buf *out) {
    static const char *const names[] = {"chat_template.json", "tokenizer_config.json"};
    lq_status st = LQ_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names && !st && !out->v; i++) {
        lq_buf text;
        json_t *config = NULL;
        LQ_TRY(lq_source_sidecar(ctx, src, names[i], &text));
        if (!text.v) continue;
        st = lq_json_parse(ctx, names[i], text.v, text.n, &config);
        const json_t *t = template_in(config);
        if (!st && json_is_string(t) && !lq_buf_add(out, json_string_value(t), json_string_length(t))) st = lq_oom(ctx, json_string_length(t));
        json_decref(config);
        lq_buf_free(&text);
    }
    return st;
}

lq_status lq_chat_template(lq_ctx *ctx, lq_source *src, lq_buf *out) {
    *out = (lq_buf){0};
    if (src->gguf) {
        size_t n = 0;
        const lq_gguf_kv *kv = lq_gguf_find(src->gguf, "tokenizer.chat_template");
        const char *s = kv ? lq_gguf_str(kv, 0, &n) : NULL;
        return s && !lq_buf_add(out, s, n) ? lq_oom(ctx, n) : LQ_OK;
    }
    LQ_TRY(lq_source_sidecar(ctx, src, "chat_template.jinja", out));
    return out->v ? LQ_OK : from_config(ctx, src, out);
}
