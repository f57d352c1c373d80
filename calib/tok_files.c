/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Tokenizers from the files beside a model: tokenizer.json, or vocab.json + merges.txt as GPT-2 came; and which tokens
 * begin and end a text, which only tokenizer_config.json, special_tokens_map.json or config.json say. */
#include "calib/tok_impl.h"

static lq_status sidecar_json(lq_ctx *ctx, lq_source *src, const char *name, json_t **out) {
    lq_buf b = {0};
    *out = NULL;
    lq_status st = lq_source_sidecar(ctx, src, name, &b);
    if (!st && b.v) st = lq_json_parse(ctx, name, b.v, b.n, out);
    lq_buf_free(&b);
    return st;
}

/* A token is written as a string or as {"content": ...}. */
static const char *token_text(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
}

static lq_status config_id(lq_ctx *ctx, const json_t *config, const char *key, const lq_tokenizer *t, int32_t *id) {
    const json_t *v = json_object_get(config, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    if (!json_is_integer(v)) return LQ_OK;
    if (json_integer_value(v) < 0 || json_integer_value(v) >= (json_int_t)t->size)
        return lq_fail(ctx, LQ_ERR_FORMAT, "config.json: '%s' is %lld, but the tokenizer has %u tokens", key,
                       (long long)json_integer_value(v), t->size);
    *id = (int32_t)json_integer_value(v);
    return LQ_OK;
}

lq_status lq_tok_read_config(lq_ctx *ctx, lq_source *src, lq_tokenizer *t) {
    static const char *const files[] = {"special_tokens_map.json", "tokenizer_config.json"}; /* the later one wins */
    LQ_TRY(config_id(ctx, src->config, "bos_token_id", t, &t->bos));
    LQ_TRY(config_id(ctx, src->config, "eos_token_id", t, &t->eos));
    for (int i = 0; i < 2; i++) {
        json_t *o = NULL;
        LQ_TRY(sidecar_json(ctx, src, files[i], &o));
        const char *bos = token_text(o, "bos_token"), *eos = token_text(o, "eos_token");
        int32_t b = bos ? lq_tokenizer_id(t, bos) : -1, e = eos ? lq_tokenizer_id(t, eos) : -1;
        if (b >= 0) t->bos = b;
        if (e >= 0) t->eos = e;
        json_decref(o);
    }
    return LQ_OK;
}

/* "left right" a line; a first line that begins with #version is skipped. */
static json_t *merges_json(const char *s, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0, end; list && i < n; i = end + 1) {
        const char *nl = memchr(s + i, '\n', n - i);
        end = nl ? (size_t)(nl - s) : n;
        size_t len = end - i - (end > i && s[end - 1] == '\r');
        if (!len || (!i && len >= 8 && !memcmp(s, "#version", 8))) continue;
        if (json_array_append_new(list, json_stringn(s + i, len))) { /* not UTF-8, or memory is out */
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

static bool set_new(json_t *o, const char *key, json_t *v) { return v && !json_object_set_new(o, key, v); }

static bool add_special(json_t *list, const json_t *o, const char *key, const json_t *vocab) {
    const char *text = token_text(o, key);
    if (!text) return true;
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!strcmp(json_string_value(json_object_get(json_array_get(list, i), "content")), text)) return true;
    const json_t *id = json_object_get(vocab, text), *v = json_object_get(o, key);
    if (!json_is_integer(id)) return true; /* named, but never given an id */
    const bool l = json_is_true(json_object_get(v, "lstrip")), r = json_is_true(json_object_get(v, "rstrip"));
    return !json_array_append_new(list, json_pack("{sssIsbsbsbsbsb}", "content", text, "id", json_integer_value(id),
                                                  "special", 1, "normalized", 0, "single_word",
                                                  (int)json_is_true(json_object_get(v, "single_word")), "lstrip",
                                                  (int)l, "rstrip", (int)r));
}

/* The stages every GPT-2 tokenizer has; add_bos_token of the configuration becomes a template. */
static bool add_stages(json_t *root, const json_t *config, const json_t *vocab) {
    const bool space = json_is_true(json_object_get(config, "add_prefix_space"));
    const char *bos = token_text(config, "bos_token");
    const json_t *id = bos ? json_object_get(vocab, bos) : NULL;
    bool ok =
        set_new(root, "pre_tokenizer",
                json_pack("{sssbsbsb}", "type", "ByteLevel", "add_prefix_space", (int)space, "trim_offsets", 1,
                          "use_regex", 1)) &&
        set_new(root, "decoder",
                json_pack("{sssbsbsb}", "type", "ByteLevel", "add_prefix_space", 1, "trim_offsets", 1, "use_regex", 1));
    if (!ok || !json_is_integer(id) || !json_is_true(json_object_get(config, "add_bos_token"))) return ok;
    return set_new(root, "post_processor",
                   json_pack("{sss[{s{sssi}}{s{sssi}}]s[{s{sssi}}{s{sssi}}{s{sssi}}]s{s{sss[I]s[s]}}}", "type",
                             "TemplateProcessing", "single", "SpecialToken", "id", bos, "type_id", 0, "Sequence", "id",
                             "A", "type_id", 0, "pair", "SpecialToken", "id", bos, "type_id", 0, "Sequence", "id", "A",
                             "type_id", 0, "Sequence", "id", "B", "type_id", 1, "special_tokens", bos, "id", bos, "ids",
                             json_integer_value(id), "tokens", bos));
}

/* The same as a tokenizer.json. */
static json_t *assemble(const json_t *vocab, json_t *merges, const json_t *map, const json_t *config) {
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "pad_token",
                                       "sep_token", "cls_token", "mask_token"};
    json_t *root = json_object(), *added = json_array();
    const char *unk = token_text(config, "unk_token");
    bool ok = root && set_new(root, "added_tokens", json_incref(added)) &&
              set_new(root, "model",
                      json_pack("{sssOsOss?}", "type", "BPE", "vocab", vocab, "merges", merges, "unk_token", unk)) &&
              add_stages(root, config, vocab);
    for (size_t i = 0; ok && i < sizeof keys / sizeof *keys; i++)
        ok = add_special(added, map, keys[i], vocab) && add_special(added, config, keys[i], vocab);
    json_decref(added);
    if (ok) return root;
    json_decref(root);
    return NULL;
}

lq_status lq_tok_from_files(lq_ctx *ctx, lq_source *src, uint32_t limit, lq_tokenizer **out) {
    json_t *vocab = NULL, *map = NULL, *config = NULL, *merges = NULL, *root = NULL;
    lq_buf b = {0};
    lq_status st = LQ_OK;
    *out = NULL;
    LQ_GO(sidecar_json(ctx, src, "vocab.json", &vocab));
    LQ_GO(lq_source_sidecar(ctx, src, "merges.txt", &b));
    if (!vocab || !b.v) goto done;
    LQ_GO(sidecar_json(ctx, src, "special_tokens_map.json", &map));
    LQ_GO(sidecar_json(ctx, src, "tokenizer_config.json", &config));
    merges = merges_json(b.v, b.n);
    if (!merges) LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "merges.txt: not UTF-8"));
    root = assemble(vocab, merges, map, config);
    if (!root) LQ_GO(lq_oom(ctx, b.n));
    st = lq_tok_from_json(ctx, root, limit, out);
    if (st) lq_note(ctx, st, "vocab.json and merges.txt");
done:
    json_decref(vocab);
    json_decref(map);
    json_decref(config);
    json_decref(merges);
    json_decref(root);
    lq_buf_free(&b);
    return st;
}

/* Of config.json, where a wrong number is the model's business; 0: unknown. */
static uint32_t vocab_size(const lq_source *src) {
    json_int_t n = json_integer_value(json_object_get(src->config, "vocab_size"));
    return n > 0 && n < LQ_TOK_ID_MAX ? (uint32_t)n : 0;
}

lq_status lq_tokenizer_open(lq_ctx *ctx, lq_source *src, lq_tokenizer **out) {
    json_t *root = NULL;
    lq_status st;
    *out = NULL;
    if (src->gguf) {
        st = lq_tok_from_gguf(ctx, src->gguf, out);
        return st ? lq_note(ctx, st, "%s", src->path) : LQ_OK;
    }
    LQ_GO(sidecar_json(ctx, src, "tokenizer.json", &root));
    if (root) {
        st = lq_tok_from_json(ctx, root, vocab_size(src), out);
        if (st) lq_note(ctx, st, "tokenizer.json");
    } else st = lq_tok_from_files(ctx, src, vocab_size(src), out);
    if (!st && !*out) LQ_GO(lq_fail(ctx, LQ_ERR_UNSUPPORTED, "no tokenizer.json, and no vocab.json with merges.txt"));
    if (!st) LQ_GO(lq_tok_read_config(ctx, src, *out));
done:
    json_decref(root);
    if (st) lq_tokenizer_free(out);
    return st ? lq_note(ctx, st, "%s", src->path) : LQ_OK;
}
