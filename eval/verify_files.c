/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Files apart from what is in the tensors: safetensors headers, the shard index, the manifest's hashes, what a runtime loads beside the weights. */
#include "eval/verify_impl.h"

#include "formats/gguf_write.h"

#include <inttypes.h>
#include <string.h>

enum { HEADER_MAX = 100000000, TREE_MAX = 32 << 20 }; /* what the format allows; what is parsed: a tree takes forty times its text */
static const char index_name[] = "model.safetensors.index.json";

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

/* ---- safetensors ---- */

static void header_keys(verify *v, const char *name, const json_t *header) {
    const json_t *meta = json_object_get(header, "__metadata__"), *value;
    const char *key, *format = json_string_value(json_object_get(meta, "format"));
    if (!meta) lq_verify_find(v, LQ_SEV_WARNING, "metadata", name, "no __metadata__; transformers wants {\"format\": \"pt\"}");
    else if (!format) lq_verify_find(v, LQ_SEV_WARNING, "metadata", name, "__metadata__ without \"format\"; an empty one breaks a loader of vLLM");
    json_object_foreach((json_t *)meta, key, value)
        if (!json_is_string(value)) lq_verify_find(v, LQ_SEV_ERROR, "metadata", name, "__metadata__ '%s' is no string; the format allows only strings", key);
}

static void one_header(verify *v, const char *name, const char *path, json_t **out) {
    lq_file f = {.fd = -1};
    uint8_t head[8];
    char *text = NULL;
    *out = NULL;
    if (!lq_verify_ok(v, lq_file_open(&v->quiet, path, &f), LQ_SEV_ERROR, "file", name)) return;
    uint64_t n = 0;
    if (f.size < 8) lq_verify_find(v, LQ_SEV_ERROR, "header", name, "%" PRIu64 " bytes; a safetensors file begins with 8 bytes of length", f.size);
    else if (lq_verify_ok(v, lq_file_read(&v->quiet, &f, 0, head, 8), LQ_SEV_ERROR, "header", name))
        for (int i = 0; i < 8; i++) n |= (uint64_t)head[i] << 8 * i;
    if (n > HEADER_MAX || n > f.size - 8) lq_verify_find(v, LQ_SEV_ERROR, "header", name, "a header of %" PRIu64 " bytes in a file of %" PRIu64, n, f.size), n = 0;
    if (n % 8) lq_verify_find(v, LQ_SEV_NOTE, "header", name, "a header of %" PRIu64 " bytes, no multiple of 8: tensors are not aligned", n);
    if (n > TREE_MAX) lq_verify_find(v, LQ_SEV_NOTE, "header", name, "a header of %" PRIu64 " bytes is not looked at here", n), n = 0;
    if (n && !(text = lq_alloc((size_t)n))) v->st = lq_oom(v->ctx, (size_t)n);
    if (text && lq_verify_ok(v, lq_file_read(&v->quiet, &f, 8, text, (size_t)n), LQ_SEV_ERROR, "header", name) &&
        lq_verify_ok(v, lq_json_parse(&v->quiet, name, text, (size_t)n, out), LQ_SEV_ERROR, "header", name))
        header_keys(v, name, *out);
    lq_free(text);
    lq_file_close(&f);
}

static uint64_t bytes_of(const json_t *header) {
    const char *key;
    json_t *t;
    uint64_t n = 0;
    json_object_foreach((json_t *)header, key, t) {
        const json_t *at = json_object_get(t, "data_offsets");
        if (at) n += (uint64_t)(json_integer_value(json_array_get(at, 1)) - json_integer_value(json_array_get(at, 0)));
    }
    return n;
}

/* What the index says of this file against what is in it. */
static void against_index(verify *v, const char *name, const json_t *header, const json_t *map) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)header, key, value) {
        const char *says = json_string_value(json_object_get(map, key));
        if (!strcmp(key, "__metadata__")) continue;
        if (!says) lq_verify_find(v, LQ_SEV_ERROR, "index", name, "tensor '%s' is not in %s: loaders that go by the index leave it out", key, index_name);
        else if (strcmp(says, name)) lq_verify_find(v, LQ_SEV_ERROR, "index", name, "tensor '%s' is placed in %s by the index, and is here too", key, says);
    }
    json_object_foreach((json_t *)map, key, value)
        if (json_is_string(value) && !strcmp(json_string_value(value), name) && !json_object_get(header, key))
            lq_verify_find(v, LQ_SEV_ERROR, "index", name, "tensor '%s' is missing: the index places it here", key);
}

static bool names_file(const json_t *map, const char *name) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)map, key, value)
        if (json_is_string(value) && !strcmp(json_string_value(value), name)) return true;
    return false;
}

static void missing_shards(verify *v, const json_t *map) {
    const char *key, *last = "";
    json_t *value;
    json_object_foreach((json_t *)map, key, value) {
        const char *name = json_string_value(value);
        if (!name || !lq_name_is_plain(name)) {
            lq_verify_find(v, LQ_SEV_ERROR, "index", index_name, "tensor '%s' is placed in no plain file name", key);
            continue;
        }
        if (!strcmp(name, last)) continue;
        last = name;
        char *path = lq_path_join(v->path, name);
        if (path && !lq_path_exists(path)) lq_verify_find(v, LQ_SEV_ERROR, "index", name, "the shard is missing; the index places '%s' there", key);
        lq_free(path);
    }
}

static void safetensors(verify *v, char **names, size_t n) {
    json_t *index = NULL, *header;
    char *path = lq_path_join(v->path, index_name);
    uint64_t total = 0;
    bool sharded = path && lq_path_exists(path);
    if (sharded) lq_verify_ok(v, lq_json_load_max(&v->quiet, path, 256 << 20, &index), LQ_SEV_ERROR, "index", index_name);
    lq_free(path);
    const json_t *map = json_object_get(index, "weight_map"), *size = json_object_get(json_object_get(index, "metadata"), "total_size");
    if (index && !json_is_object(map)) lq_verify_find(v, LQ_SEV_ERROR, "index", index_name, "no weight_map object");
    if (map) missing_shards(v, map);
    for (size_t i = 0; i < n && !v->st; i++) {
        if (!ends_with(names[i], ".safetensors")) continue;
        bool listed = !map || names_file(map, names[i]);
        if (!listed) lq_verify_find(v, LQ_SEV_WARNING, "stale-shard", names[i], "the index does not name it; loaders that open every file load its tensors over the others");
        if (!listed || !(path = lq_path_join(v->path, names[i]))) continue;
        one_header(v, names[i], path, &header);
        if (header && map) against_index(v, names[i], header, map);
        total += bytes_of(header);
        json_decref(header);
        lq_free(path);
    }
    if (json_is_integer(size) && (uint64_t)json_integer_value(size) != total)
        lq_verify_find(v, LQ_SEV_WARNING, "index", index_name, "total_size is %" JSON_INTEGER_FORMAT ", the tensors take %" PRIu64, json_integer_value(size), total);
    json_decref(index);
}

/* ---- hashes ---- */

static void one_hash(verify *v, const json_t *e) {
    const char *name = json_string_value(json_object_get(e, "name")), *want = json_string_value(json_object_get(e, "sha256"));
    char hex[65];
    if (!name || !want || !lq_name_is_plain(name)) return;
    char *path = lq_path_join(v->path, name);
    if (!path) return;
    if (!lq_path_exists(path)) lq_verify_find(v, LQ_SEV_ERROR, "hash", name, "the manifest lists it, and it is not here");
    else if (lq_verify_ok(v, lq_sha_file(&v->quiet, path, hex), LQ_SEV_ERROR, "hash", name) && strcmp(hex, want))
        lq_verify_find(v, LQ_SEV_ERROR, "hash", name, "its bytes are not those lquant wrote: sha256 %.16s..., the manifest has %.16s...", hex, want);
    lq_free(path);
}

static void manifest(verify *v, char **names, size_t n) {
    json_t *m = NULL, *e;
    size_t i;
    char *path = lq_path_join(v->path, "lquant-manifest.json");
    if (path && lq_path_exists(path)) lq_verify_ok(v, lq_json_load(&v->quiet, path, &m), LQ_SEV_ERROR, "manifest", "lquant-manifest.json");
    lq_free(path);
    const json_t *list = json_object_get(m, "outputs");
    json_array_foreach(list, i, e) one_hash(v, e);
    for (size_t k = 0; list && k < n; k++) {
        bool listed = !ends_with(names[k], ".safetensors");
        json_array_foreach(list, i, e) {
            const char *name = json_string_value(json_object_get(e, "name"));
            listed |= name && !strcmp(name, names[k]);
        }
        if (!listed) lq_verify_find(v, LQ_SEV_WARNING, "hash", names[k], "the manifest does not list it");
    }
    json_decref(m);
}

/* A GGUF of ours says what its data were; another tool that copies keys says it of its own data. */
static void gguf_data(verify *v, const lq_gguf *g, const lq_file *f) {
    const char *name = lq_path_base(f->path), *want = lq_gguf_str(lq_gguf_find(g, LQ_GGUF_KEY_HASH), 0, NULL);
    char hex[65];
    if (!want || !lq_gguf_count(g)) return;
    uint64_t at = lq_gguf_tensor_at(g, 0)->offset, bytes = lq_gguf_bits(lq_gguf_find(g, LQ_GGUF_KEY_BYTES), 0);
    if (f->size - at != bytes)
        lq_verify_find(v, LQ_SEV_NOTE, "hash", name, "%" PRIu64 " bytes of tensors, lquant wrote %" PRIu64 ": another tool has made this file anew, what it says of lquant is of the former", f->size - at, bytes);
    else if (lq_verify_ok(v, lq_gguf_hash(&v->quiet, f, at, hex), LQ_SEV_ERROR, "hash", name) && strcmp(hex, want))
        lq_verify_find(v, LQ_SEV_ERROR, "hash", name, "its tensors are not those lquant wrote: sha256 %.16s..., the file says %.16s...", hex, want);
}

void lq_verify_gguf(verify *v) {
    for (size_t i = 0; v->src && v->src->gguf && i < v->src->n_weight_files && !v->st; i++) {
        lq_file f;
        lq_gguf *g = NULL;
        if (!lq_verify_ok(v, lq_file_open(&v->quiet, v->src->weight_files[i], &f), LQ_SEV_ERROR, "file", v->src->weight_files[i])) continue;
        if (lq_verify_ok(v, lq_gguf_open(&v->quiet, &f, &g), LQ_SEV_ERROR, "header", lq_path_base(f.path))) gguf_data(v, g, &f);
        lq_gguf_free(&g);
        lq_file_close(&f);
    }
}

/* ---- side files ---- */

static bool has(char **names, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(names[i], name)) return true;
    return false;
}

static void sidecars(verify *v, char **names, size_t n) {
    bool tokenizer = has(names, n, "tokenizer.json") || has(names, n, "tokenizer.model") || (has(names, n, "vocab.json") && has(names, n, "merges.txt"));
    if (!has(names, n, "config.json")) lq_verify_find(v, LQ_SEV_ERROR, "sidecar", "config.json", "missing: no runtime knows what model this is");
    if (!tokenizer) lq_verify_find(v, LQ_SEV_WARNING, "sidecar", "tokenizer.json", "missing: no tokenizer (tokenizer.json, tokenizer.model or vocab.json with merges.txt)");
    else if (!has(names, n, "tokenizer_config.json"))
        lq_verify_find(v, LQ_SEV_NOTE, "sidecar", "tokenizer_config.json", "missing: transformers and vLLM take the tokenizer's class from config.json's model_type, and have no chat template of it");
    if (!has(names, n, "generation_config.json")) lq_verify_find(v, LQ_SEV_NOTE, "sidecar", "generation_config.json", "missing: runtimes use defaults and config.json's end token");
    for (size_t i = 0; i < n; i++)
        if (ends_with(names[i], ".bin") || ends_with(names[i], ".pt") || ends_with(names[i], ".pth"))
            lq_verify_find(v, LQ_SEV_WARNING, "pickle", names[i], "pickle weights beside safetensors; they can run code when loaded");
}

static void load_config(verify *v) {
    char *path = lq_path_join(v->path, "config.json");
    if (path && lq_path_exists(path)) lq_verify_ok(v, lq_json_load_max(&v->quiet, path, 64 << 20, &v->config), LQ_SEV_ERROR, "config", "config.json");
    lq_free(path);
}

void lq_verify_files(verify *v) {
    char **names = NULL;
    size_t n = 0;
    json_t *header;
    if (!v->dir) {
        if (ends_with(v->path, ".safetensors")) one_header(v, lq_path_base(v->path), v->path, &header), json_decref(header);
        return;
    }
    if (!lq_verify_ok(v, lq_dir_list(&v->quiet, v->path, &names, &n), LQ_SEV_ERROR, "file", lq_path_base(v->path))) return;
    load_config(v);
    sidecars(v, names, n);
    safetensors(v, names, n);
    if (!v->st) manifest(v, names, n);
    lq_names_free(&names, n);
}
