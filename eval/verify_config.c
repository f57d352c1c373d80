/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What the configuration (or a GGUF's metadata) says against what is there. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "eval/verify_impl.h"

#include "calib/tokenizer.h"

#include <inttypes.h>
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

static const char config_name[] = "config.json";

/* ---- lists of modules that are not quantized ---- */

static bool regex_hits(const char *pattern, const char *name) {
    int error;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED | PCRE2_UTF, &error, &at, NULL);
    pcre2_match_data *md = re ? pcre2_match_data_create(1, NULL) : NULL;
    pcre2_match_context *limits = re ? pcre2_match_context_create(NULL) : NULL;
    if (limits) pcre2_set_match_limit(limits, 100000);
    bool hit = md && limits && pcre2_match(re, (PCRE2_SPTR)name, strlen(name), 0, 0, md, limits) >= 0;
    pcre2_match_context_free(limits);
    pcre2_match_data_free(md);
    pcre2_code_free(re);
    return hit;
}

/* compressed-tensors: names, "re:..." and module classes; the others: names, parts of names. */
static bool listed(const char *entry, const char *module, bool parts) {
    if (!strncmp(entry, "re:", 3)) return regex_hits(entry + 3, module);
    if (!strcmp(entry, module)) return true;
    size_t n = strlen(entry), k = strlen(module);
    if (!parts || !n) return false;
    for (const char *p = strstr(module, entry); p; p = strstr(p + 1, entry))
        if ((p == module || p[-1] == '.') && (p + n == module + k || p[n] == '.')) return true;
    return false;
}

static const char *const list_keys[] = {"ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules", "llm_int8_skip_modules"};
enum { LISTS = sizeof list_keys / sizeof *list_keys };

static bool list_names(const json_t *list, const char *module, bool parts) {
    size_t i;
    json_t *e;
    json_array_foreach(list, i, e)
        if (json_is_string(e) && listed(json_string_value(e), module, parts)) return true;
    return false;
}

static const char *module_of(const lq_entry *e, char *buf, size_t n) {
    snprintf(buf, n, "%s", e->name);
    char *dot = strrchr(buf, '.');
    if (dot && (!strcmp(dot, ".weight") || !strcmp(dot, ".bias"))) *dot = 0;
    return buf;
}

/* An entry of a list that stands for nothing is a typing error: what it was to keep is taken for quantized. */
static void list_entries(verify *v, const char *key, const json_t *list, bool parts) {
    size_t i;
    json_t *e;
    char module[512];
    json_array_foreach(list, i, e) {
        const char *text = json_string_value(e);
        bool hit = !text;
        for (size_t k = 0; k < v->raw->n && !hit; k++) hit = listed(text, module_of(&v->raw->entries[k], module, sizeof module), true);
        if (!hit && strcmp(text, "lm_head")) lq_verify_find(v, LQ_SEV_WARNING, "ignore", key, "'%s' names no module of the checkpoint", text);
        (void)parts;
    }
}

static bool wants_listed(const char *method) { return !strcmp(method, "compressed-tensors") || !strcmp(method, "fp8") || !strcmp(method, "modelopt"); }

static bool is_linear(const verify *v, const lq_row *r) { return r->linear && r->part == LQ_PART_WEIGHT && r->slot.block >= 0 && v->src; }

static bool in_lists(const json_t *qc, const char *module) {
    bool hit = false;
    for (int k = 0; k < LISTS; k++) hit |= list_names(json_object_get(qc, list_keys[k]), module, k > 0);
    return hit;
}

static void quantized_lists(verify *v) {
    const json_t *qc = json_object_get(v->config, "quantization_config");
    const char *method = json_string_value(json_object_get(qc, "quant_method"));
    char module[512];
    if (!json_is_object(qc) || !v->raw) return;
    for (int k = 0; k < LISTS; k++)
        if (json_object_get(qc, list_keys[k])) list_entries(v, list_keys[k], json_object_get(qc, list_keys[k]), k > 0);
    for (size_t i = 0; v->src && i < v->src->n; i++) {
        const lq_entry *e = &v->src->entries[i];
        if (e->dtype == LQ_NONE && in_lists(qc, module_of(e, module, sizeof module)))
            lq_verify_find(v, LQ_SEV_ERROR, "ignore", e->name, "is stored quantized, and the configuration lists it as kept");
    }
    for (size_t i = 0; v->m && method && wants_listed(method) && i < v->m->cat.n; i++) {
        const lq_row *r = &v->m->cat.rows[i];
        if (is_linear(v, r) && r->dtype != LQ_NONE && !in_lists(qc, lq_row_module(r, module, sizeof module)))
            lq_verify_find(v, LQ_SEV_ERROR, "ignore", r->name, "is stored in floats, and the configuration does not list it as kept: runtimes look for its scales");
    }
    if (v->src && !v->out->quantized) lq_verify_find(v, LQ_SEV_ERROR, "config", config_name, "quantization_config says %s, no tensor is quantized", method ? method : "nothing");
}

/* ---- heads ---- */

static bool same_tensor(verify *v, const lq_entry *a, const lq_entry *b) {
    uint64_t rows = lq_entry_rows(a), bytes = lq_dtype_row_bytes(a->dtype, lq_entry_cols(a));
    if (a->dtype != b->dtype || a->dtype == LQ_NONE || rows != lq_entry_rows(b) || lq_entry_cols(a) != lq_entry_cols(b)) return false;
    char *x = lq_alloc((size_t)bytes), *y = lq_alloc((size_t)bytes);
    bool same = x && y;
    for (uint64_t r = 0; r < rows && same; r++)
        same = !lq_source_read(&v->quiet, v->raw, (size_t)(a - v->raw->entries), r, 1, x) && !lq_source_read(&v->quiet, v->raw, (size_t)(b - v->raw->entries), r, 1, y) &&
               !memcmp(x, y, (size_t)bytes);
    lq_free(x);
    lq_free(y);
    return same;
}

static const lq_entry *entry_of(const verify *v, const char *tail) {
    size_t n = strlen(tail);
    for (size_t i = 0; v->raw && i < v->raw->n; i++) {
        size_t k = strlen(v->raw->entries[i].name);
        if (k >= n && !strcmp(v->raw->entries[i].name + k - n, tail)) return &v->raw->entries[i];
    }
    return NULL;
}

static void tied_head(verify *v) {
    const lq_entry *head = entry_of(v, "lm_head.weight"), *embed = entry_of(v, "embed_tokens.weight");
    if (!json_is_true(json_object_get(v->config, "tie_word_embeddings")) || !head) return;
    if (head->dtype == LQ_NONE)
        lq_verify_find(v, LQ_SEV_ERROR, "tied-head", head->name, "is quantized, and tie_word_embeddings is true: runtimes use the embedding or fail on the extra tensors");
    else if (embed && same_tensor(v, head, embed)) lq_verify_find(v, LQ_SEV_WARNING, "tied-head", head->name, "repeats the embedding, and tie_word_embeddings is true: runtimes drop it or load it twice");
    else if (embed) lq_verify_find(v, LQ_SEV_ERROR, "tied-head", head->name, "differs from the embedding, and tie_word_embeddings is true: most runtimes drop it");
}

/* ---- layers and names ---- */

/* Number behind "layers." (or "h.", "blocks.") in a tensor's name; -1: none. */
static int64_t layer_of(const char *name) {
    static const char *const words[] = {"layers.", "h.", "blocks.", "blk."};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        for (const char *p = strstr(name, words[i]); p; p = strstr(p + 1, words[i])) {
            const char *d = p + strlen(words[i]);
            if ((p != name && p[-1] != '.') || *d < '0' || *d > '9') continue;
            int64_t n = 0;
            for (; *d >= '0' && *d <= '9' && n < 1 << 20; d++) n = 10 * n + (*d - '0');
            return n;
        }
    return -1;
}

/* A text model inside a larger one: the rest has its own layers and names, which nobody here judges. */
static bool is_wrapped(const json_t *config) {
    static const char *const own[] = {"text_config", "llm_config", "quantization_config", "compression_config", "generation_config"};
    const char *key;
    json_t *e;
    json_object_foreach((json_t *)config, key, e) {
        size_t n = strlen(key);
        bool other = json_is_object(e) && n > 7 && !strcmp(key + n - 7, "_config");
        for (size_t i = 0; other && i < sizeof own / sizeof *own; i++) other = strcmp(key, own[i]) != 0;
        if (other) return true;
    }
    return false;
}

/* "model.language_model.layers." of the text model's rows; its length, 0: there are none. */
static size_t text_prefix(const verify *v, const char **name) {
    for (size_t i = 0; v->m && i < v->m->cat.n; i++) {
        const lq_row *r = &v->m->cat.rows[i];
        if (r->slot.role == LQ_R_UNKNOWN || r->slot.block < 0) continue;
        *name = r->name;
        return strcspn(r->name, "0123456789");
    }
    return 0;
}

static bool is_beside(const verify *v, const char *name) {
    const char *text = NULL;
    size_t n = is_wrapped(v->config) ? text_prefix(v, &text) : 0;
    return n && strncmp(name, text, n) != 0;
}

static void layers(verify *v) {
    const json_t *text = json_object_get(v->config, "text_config");
    const json_t *n = json_object_get(json_is_object(text) ? text : v->config, "num_hidden_layers");
    int64_t most = -1, want = json_is_integer(n) ? json_integer_value(n) : v->m ? (int64_t)v->m->par.n_layers : -1;
    for (size_t i = 0; v->raw && i < v->raw->n; i++) {
        int64_t l = is_beside(v, v->raw->entries[i].name) ? -1 : layer_of(v->raw->entries[i].name);
        if (l > most) most = l;
    }
    if (want >= 0 && most >= 0 && most + 1 != want)
        lq_verify_find(v, LQ_SEV_ERROR, "layers", v->gguf ? "block_count" : config_name, "%" PRId64 " layers, the tensors are of %" PRId64, want, most + 1);
}

static bool harmless(const char *name) { return strstr(name, "rotary_emb.inv_freq") || strstr(name, ".attn.bias") || strstr(name, "masked_bias") || strstr(name, "k_scale") || strstr(name, "v_scale"); }

static void unknown_names(verify *v) {
    size_t beside = 0;
    const char *first = NULL;
    for (size_t i = 0; v->m && i < v->m->cat.n; i++) {
        const lq_row *r = &v->m->cat.rows[i];
        if (r->slot.role != LQ_R_UNKNOWN || harmless(r->name)) continue;
        bool other = is_beside(v, r->name);
        if (other && !beside++) first = r->name;
        if (!other) lq_verify_find(v, LQ_SEV_WARNING, "extra", r->name, "architecture %s has no such tensor; runtimes refuse it or leave it out", v->m->arch->name);
    }
    if (beside) lq_verify_find(v, LQ_SEV_NOTE, "beside", first, "%zu tensors are of another part than the text model (the first: this one); only their values are looked at", beside);
}

/* ---- words ---- */

static bool is_told(const verify *v, const char *code, const char *where) {
    for (size_t i = 0; i < v->out->n; i++)
        if (!strcmp(v->out->v[i].code, code) && !strcmp(v->out->v[i].where, where)) return true;
    return false;
}

/* What runtimes read and lquant does not is worth a note. */
static bool has_file(const verify *v, const char *name) {
    char *path = v->dir ? lq_path_join(v->path, name) : NULL;
    bool there = path && lq_path_exists(path);
    lq_free(path);
    return there;
}

static void token_id(verify *v, const char *file, const json_t *o, const char *key, uint64_t rows) {
    const json_t *x = json_object_get(o, key);
    size_t n = json_is_array(x) ? json_array_size(x) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(x) ? json_array_get(x, i) : x;
        if (json_is_integer(id) && (json_integer_value(id) < -1 || (json_integer_value(id) >= 0 && (uint64_t)json_integer_value(id) >= rows)))
            lq_verify_find(v, LQ_SEV_ERROR, "vocabulary", file, "%s is %" JSON_INTEGER_FORMAT ", the embedding has %" PRIu64 " rows", key, json_integer_value(id), rows);
    }
}

static void words(verify *v) {
    static const char *const ids[] = {"bos_token_id", "eos_token_id", "pad_token_id"};
    lq_tokenizer *t = NULL;
    json_t *generation = NULL;
    uint64_t rows = v->m ? v->m->par.vocab : 0;
    if (!v->m || !v->src) return;
    for (size_t i = 0; i < 3 && v->config; i++) token_id(v, config_name, v->m->config, ids[i], rows);
    lq_buf b;
    if (!lq_source_sidecar(&v->quiet, v->src, "generation_config.json", &b) && b.v && !lq_json_parse(&v->quiet, "generation_config.json", b.v, b.n, &generation))
        for (size_t i = 0; i < 3; i++) token_id(v, "generation_config.json", generation, ids[i], rows);
    lq_buf_free(&b);
    json_decref(generation);
    if (is_told(v, "sidecar", "tokenizer.json")) return;
    lq_status st = lq_tokenizer_open(&v->quiet, v->src, &t);
    if (!lq_verify_ok(v, st, has_file(v, "tokenizer.model") ? LQ_SEV_NOTE : LQ_SEV_WARNING, "tokenizer", v->gguf ? "tokenizer.ggml" : "tokenizer.json")) return;
    if (lq_tokenizer_size(t) > rows)
        lq_verify_find(v, LQ_SEV_ERROR, "vocabulary", v->gguf ? "tokenizer.ggml.tokens" : "tokenizer.json", "%zu tokens, the embedding has %" PRIu64 " rows", lq_tokenizer_size(t), rows);
    lq_tokenizer_free(&t);
}

/* ---- floats ---- */

static void float_types(verify *v) {
    const json_t *qc = json_object_get(v->config, "quantization_config");
    const char *method = json_string_value(json_object_get(qc, "quant_method")), *type = json_string_value(json_object_get(v->config, "torch_dtype"));
    if (!type) type = json_string_value(json_object_get(v->config, "dtype"));
    if (method && type && !strcmp(method, "awq") && !strcmp(type, "bfloat16"))
        lq_verify_find(v, LQ_SEV_NOTE, "dtype", config_name, "awq with torch_dtype bfloat16: vLLM takes it through its marlin kernels only");
}

/* ---- GGUF ---- */

static void wants_key(verify *v, const char *key, lq_severity s, const char *why) {
    if (!lq_gguf_find(v->src->gguf, key)) lq_verify_find(v, s, "gguf", key, "missing: %s", why);
}

static void gguf_words(verify *v) {
    const lq_gguf *g = v->src->gguf;
    const lq_gguf_kv *tokens = lq_gguf_find(g, "tokenizer.ggml.tokens"), *model = lq_gguf_find(g, "tokenizer.ggml.model"), *pre = lq_gguf_find(g, "tokenizer.ggml.pre");
    const lq_entry *embed = entry_of(v, "token_embd.weight");
    size_t n;
    const char *kind = model ? lq_gguf_str(model, 0, &n) : NULL;
    wants_key(v, "tokenizer.ggml.model", LQ_SEV_ERROR, "llama.cpp does not load a model without a tokenizer");
    if (kind && !strcmp(kind, "gpt2")) {
        wants_key(v, "tokenizer.ggml.merges", LQ_SEV_ERROR, "a byte-level tokenizer does nothing without its merges");
        if (!pre) wants_key(v, "tokenizer.ggml.pre", LQ_SEV_WARNING, "llama.cpp takes the default pre-tokenizer and cuts text otherwise than the model learnt");
    }
    if (tokens && embed && embed->ndim == 2 && lq_gguf_len(tokens) != embed->shape[0])
        lq_verify_find(v, LQ_SEV_ERROR, "vocabulary", "tokenizer.ggml.tokens", "%" PRIu64 " tokens, token_embd.weight has %" PRIu64 " rows: llama.cpp refuses the file", lq_gguf_len(tokens),
                       embed->shape[0]);
    static const char *const ids[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.padding_token_id"};
    for (size_t i = 0; i < 3; i++) {
        const lq_gguf_kv *id = lq_gguf_find(g, ids[i]);
        if (id && tokens && lq_gguf_num(id, 0) >= (double)lq_gguf_len(tokens))
            lq_verify_find(v, LQ_SEV_ERROR, "vocabulary", ids[i], "%.0f, there are %" PRIu64 " tokens", lq_gguf_num(id, 0), lq_gguf_len(tokens));
    }
}

static void gguf(verify *v) {
    wants_key(v, "general.architecture", LQ_SEV_ERROR, "llama.cpp does not know what model this is");
    gguf_words(v);
    for (size_t i = 0; i < v->src->n; i++) {
        const lq_entry *e = &v->src->entries[i];
        bool norm = strstr(e->name, "norm") && e->ndim == 1;
        if (e->ndim == 1 && e->dtype != LQ_F32 && (norm || strstr(e->name, ".bias")))
            lq_verify_find(v, LQ_SEV_ERROR, "gguf", e->name, "a vector of type %s; llama.cpp computes with F32 ones only", lq_dtypes[e->dtype].name);
    }
}

void lq_verify_config(verify *v) {
    if (v->src && v->src->gguf) gguf(v);
    if (v->config) {
        quantized_lists(v);
        tied_head(v);
        float_types(v);
    }
    layers(v);
    unknown_names(v);
    if (!v->st) words(v);
}
