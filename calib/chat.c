/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Where a model keeps its chat template, and how it is rendered. */
#include "calib/chat.h"

#include "calib/jinja.h"
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

/* ---- rendering ---- */

static lq_status set_variables(jj *j, const json_t *messages, const char *bos, const char *eos, bool add_generation_prompt) {
    json_t *vars = j->scope[0];
    int bad = json_object_set(vars, "messages", (json_t *)(uintptr_t)messages) | json_object_set_new(vars, "tools", json_null()) |
              json_object_set_new(vars, "documents", json_null()) |
              json_object_set_new(vars, "add_generation_prompt", json_boolean(add_generation_prompt));
    if (*bos) bad |= json_object_set_new(vars, "bos_token", json_string(bos));
    if (*eos) bad |= json_object_set_new(vars, "eos_token", json_string(eos));
    return bad ? lq_oom(j->ctx, 1024) : LQ_OK;
}

/* "\r\n" and "\r" become "\n", as Jinja reads its sources. */
static bool unix_lines(const char *s, size_t n, lq_buf *out) {
    bool ok = lq_buf_add(out, s, n);
    size_t k = 0;
    for (size_t i = 0; ok && i < n; i++) {
        if (s[i] == '\r' && i + 1 < n && s[i + 1] == '\n') continue;
        out->v[k++] = s[i] == '\r' ? '\n' : s[i];
    }
    out->n = k;
    return ok;
}

enum { TEMPLATE_MAX = 1 << 20 };

lq_status lq_chat_render(lq_ctx *ctx, const char *template_text, size_t n, const json_t *messages, const char *bos, const char *eos,
                         bool add_generation_prompt, lq_buf *out) {
    jj j = {.ctx = ctx, .out = out, .mem = lq_arena_new(), .pool = json_array(), .undefined = json_string("undefined"), .n_scope = 1};
    lq_buf text = {0};
    json_t *utf8 = NULL;
    lq_status st = LQ_OK;
    j.scope[0] = json_object();
    if (!j.mem || !j.pool || !j.undefined || !j.scope[0]) LQ_GO(lq_oom(ctx, 4096));
    if (n > TEMPLATE_MAX) LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "chat template of %zu bytes, at most %d are accepted", n, TEMPLATE_MAX));
    if (!unix_lines(template_text, n, &text)) LQ_GO(lq_oom(ctx, n));
    utf8 = json_stringn(text.v, text.n);
    if (!utf8) LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "the chat template is not UTF-8"));
    LQ_GO(set_variables(&j, messages, bos, eos, add_generation_prompt));
    jj_lex(&j, text.v, text.n);
    const jj_node *body = j.st ? NULL : jj_parse(&j);
    if (body) jj_run(&j, body);
    st = j.st;
done:
    json_decref(utf8);
    jj_drop(&j);
    lq_buf_free(&text);
    return st;
}
