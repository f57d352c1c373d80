/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A Hugging Face folder, or one .safetensors file: weights in one file, or in the shards that model.safetensors.index.json names.
 *
 * The index is believed about nothing: a shard is a bare file name in the folder, every tensor of the index lies in the shard it
 * names, and every tensor of a shard is in the index. Shards the index does not name are left alone, with a warning. */
#include <stdlib.h>
#include <string.h>

#include "formats/nameset.h"
#include "formats/safetensors.h"
#include "formats/source.h"

static const char index_name[] = "model.safetensors.index.json", single_name[] = "model.safetensors";
enum { SIDECAR_MAX = 256 << 20, SHARDS_MAX = 100000, INDEX_MAX = 32 << 20 };

typedef struct place { uint32_t file; uint64_t offset; } place;
typedef struct folder {
    char *dir;
    lq_file *files;      /* [n_files] in the order of weight_files */
    size_t n_files;
    place *places;       /* [entries] */
    size_t cap;
} folder;

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

static bool is_weight_file(const char *name) {
    static const char *const tails[] = {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".lqt"};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++)
        if (ends_with(name, tails[i])) return true;
    return false;
}

static bool probe(const char *path, const json_t *config) {
    if (!lq_path_is_dir(path)) return ends_with(path, ".safetensors");
    if (config) return true;
    char **names;
    size_t n, found = 0;
    if (lq_dir_list(NULL, path, &names, &n)) return false;
    for (size_t i = 0; i < n; i++) found += is_weight_file(names[i]);
    lq_names_free(&names, n);
    return found > 0;
}

static lq_status add_tensor(lq_ctx *ctx, lq_source *s, const lq_st_tensor *t) {
    folder *f = s->priv;
    lq_entry e = {.name = t->name, .dtype = t->dtype, .ndim = t->ndim, .bytes = t->bytes};
    for (uint32_t i = 0; i < t->ndim; i++) e.shape[i] = t->shape[i];
    if (s->n == f->cap) {
        size_t cap = f->cap * 2 + 64;
        place *more = lq_realloc(f->places, f->cap * sizeof *more, cap * sizeof *more);
        if (!more) return lq_oom(ctx, cap * sizeof *more);
        f->places = more;
        f->cap = cap;
    }
    f->places[s->n] = (place){(uint32_t)f->n_files, t->offset};
    return lq_source_add(ctx, s, &e);
}

/* map: weight_map of the index, or NULL. Takes over the open file. */
static lq_status add_shard(lq_ctx *ctx, lq_source *s, const char *name, const json_t *map) {
    folder *f = s->priv;
    lq_st_file st_file = {.file.fd = -1};
    lq_status st;
    char *path = lq_path_is_dir(s->path) ? lq_path_join(f->dir, name) : lq_strdup(s->path);
    if (!path) return lq_oom(ctx, strlen(name));
    if (!lq_path_exists(path)) { st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: the shard is missing", name); goto done; }
    LQ_GO(lq_st_open(ctx, path, &st_file));
    for (size_t i = 0; i < st_file.n; i++) {
        const char *tensor = st_file.tensors[i].name, *where = map ? json_string_value(json_object_get(map, tensor)) : NULL;
        if (map && !where) { st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: tensor '%s' is not in %s", name, tensor, index_name); goto done; }
        if (map && strcmp(where, name)) { st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: tensor '%s' should lie in %.64s", name, tensor, where); goto done; }
        st = add_tensor(ctx, s, &st_file.tensors[i]);
        if (st) { lq_note(ctx, st, "%s", name); goto done; }
    }
    LQ_GO(lq_source_add_file(ctx, s, true, path));
    lq_file *more = lq_realloc(f->files, f->n_files * sizeof *more, (f->n_files + 1) * sizeof *more);
    if (!more) { st = lq_oom(ctx, sizeof *more); goto done; }
    f->files = more;
    more[f->n_files++] = st_file.file;
    st_file.file = (lq_file){.fd = -1};
done:
    if (st_file.file.path || st_file.mem) lq_st_close(&st_file);
    lq_free(path);
    return st;
}

static int by_name(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* Distinct shard names of the index, sorted; borrowed from map. */
static lq_status shard_names(lq_ctx *ctx, const json_t *map, const char ***names, size_t *n) {
    const char *key;
    json_t *value;
    lq_status st = LQ_OK;
    lq_nameset *seen = lq_nameset_new();
    *n = 0;
    *names = LQ_NEWN(const char *, json_object_size(map) + 1);
    if (!seen || !*names) st = lq_oom(ctx, json_object_size(map));
    json_object_foreach((json_t *)map, key, value) {
        const char *name = json_string_value(value);
        if (st) break;
        if (!name || !lq_name_is_plain(name) || !ends_with(name, ".safetensors")) {
            st = lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%.200s': '%.200s' is no shard name; a bare *.safetensors file name is expected", key, name ? name : "(no string)");
            break;
        }
        lq_status added = lq_nameset_add(seen, name, *n);
        if (added == LQ_ERR_RESOURCE) st = lq_oom(ctx, 64);
        else if (!added) (*names)[(*n)++] = name;
    }
    if (!st && *n > SHARDS_MAX) st = lq_fail(ctx, LQ_ERR_FORMAT, "%zu shards, at most %d are read", *n, SHARDS_MAX);
    if (!st && *n) qsort(*names, *n, sizeof **names, by_name);
    lq_nameset_free(&seen);
    return st;
}

static lq_status check_index(lq_ctx *ctx, lq_source *s, const json_t *map) {
    const char *key;
    json_t *value;
    if (s->n == json_object_size(map)) return LQ_OK;
    LQ_TRY(lq_source_index(ctx, s));
    json_object_foreach((json_t *)map, key, value) {
        if (lq_source_find(s, key) < 0)
            return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%.200s' is missing: %s places it in %s", key, index_name, json_string_value(value));
    }
    return LQ_OK;
}

static lq_status open_sharded(lq_ctx *ctx, lq_source *s) {
    folder *f = s->priv;
    const char **names = NULL;
    size_t n = 0;
    json_t *index = NULL;
    lq_status st = LQ_OK;
    char *path = lq_path_join(f->dir, index_name);
    if (!path) return lq_oom(ctx, sizeof index_name);
    LQ_GO(lq_json_load_max(ctx, path, INDEX_MAX, &index));
    const json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || !json_object_size(map)) { st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: no weight_map object", index_name); goto done; }
    st = shard_names(ctx, map, &names, &n);
    if (st) { lq_note(ctx, st, "%s", index_name); goto done; }
    for (size_t i = 0; i < n; i++) LQ_GO(add_shard(ctx, s, names[i], map));
    st = check_index(ctx, s, map);
done:
    lq_free(names);
    lq_free(path);
    json_decref(index);
    return st;
}

/* Also true of a link that will be refused: the refusal is the better sentence. */
static lq_status has_file(lq_ctx *ctx, const char *dir, const char *name, bool *yes) {
    char *path = lq_path_join(dir, name);
    *yes = path && lq_path_exists(path);
    lq_free(path);
    return path ? LQ_OK : lq_oom(ctx, strlen(name));
}

/* The one weight file of a folder without an index. */
static lq_status find_single(lq_ctx *ctx, const char *dir, char **names, size_t n, const char **out) {
    size_t weights = 0, pickles = 0, ggufs = 0;
    bool usual;
    LQ_TRY(has_file(ctx, dir, single_name, &usual));
    *out = single_name;
    if (usual) return LQ_OK;
    for (size_t i = 0; i < n; i++) {
        pickles += ends_with(names[i], ".bin") || ends_with(names[i], ".pt") || ends_with(names[i], ".pth");
        ggufs += ends_with(names[i], ".gguf");
        if (!ends_with(names[i], ".safetensors")) continue;
        weights++;
        *out = names[i];
    }
    if (weights == 1) return LQ_OK;
    if (weights) return lq_fail(ctx, LQ_ERR_FORMAT, "%zu .safetensors files, but neither %s nor %s", weights, index_name, single_name);
    if (pickles)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "only pickle weights (*.bin, *.pt) here; they can run code when loaded and are not read: convert them to safetensors first");
    if (ggufs) return lq_fail(ctx, LQ_ERR_FORMAT, "the folder holds GGUF files: name one of them");
    return lq_fail(ctx, LQ_ERR_FORMAT, "no .safetensors file here");
}

static bool is_open(const lq_source *s, const char *name) {
    for (size_t i = 0; i < s->n_weight_files; i++)
        if (!strcmp(lq_path_base(s->weight_files[i]), name)) return true;
    return false;
}

/* Everything that travels with the weights; a manifest of an earlier run describes other bytes, dot files belong to the hub. */
static lq_status list_sidecars(lq_ctx *ctx, lq_source *s, char **names, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (ends_with(names[i], ".safetensors") && !is_open(s, names[i]) && lq_path_is_dir(s->path))
            lq_log(ctx, LQ_LOG_WARN, "%s: %s is not part of the model and is ignored", s->path, names[i]);
        if (names[i][0] == '.' || is_weight_file(names[i]) || !strcmp(names[i], "lquant-manifest.json")) continue;
        if (!lq_name_is_plain(names[i])) continue;
        LQ_TRY(lq_source_add_file(ctx, s, false, names[i]));
    }
    return LQ_OK;
}

static lq_status open_folder(lq_ctx *ctx, lq_source *s) {
    folder *f = LQ_NEW(folder);
    char **names = NULL;
    size_t n = 0;
    lq_status st = LQ_OK;
    if (!f) return lq_oom(ctx, sizeof *f);
    s->priv = f;
    if (!(f->dir = lq_source_dir(s))) return lq_oom(ctx, strlen(s->path));
    LQ_GO(lq_dir_list(ctx, f->dir, &names, &n));
    const char *single = lq_path_base(s->path);
    bool dir = lq_path_is_dir(s->path), sharded = false;
    if (dir) LQ_GO(has_file(ctx, f->dir, index_name, &sharded));
    if (dir && !sharded) LQ_GO(find_single(ctx, f->dir, names, n, &single));
    LQ_GO(sharded ? open_sharded(ctx, s) : add_shard(ctx, s, single, NULL));
    if (dir || s->config) st = list_sidecars(ctx, s, names, n);
done:
    lq_names_free(&names, n);
    return st;
}

static lq_status read_rows(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out) {
    const folder *f = s->priv;
    const lq_entry *e = &s->entries[i];
    uint64_t row = lq_dtype_row_bytes(e->dtype, lq_entry_cols(e));
    return lq_file_read(ctx, &f->files[f->places[i].file], f->places[i].offset + row0 * row, out, rows * row);
}

static lq_status read_sidecar(lq_ctx *ctx, lq_source *s, size_t i, lq_buf *out) {
    const folder *f = s->priv;
    char *path = lq_path_join(f->dir, s->sidecars[i]);
    if (!path) return lq_oom(ctx, strlen(s->sidecars[i]));
    lq_status st = lq_file_slurp(ctx, path, SIDECAR_MAX, out);
    lq_free(path);
    return st;
}

static void close_folder(lq_source *s) {
    folder *f = s->priv;
    if (!f) return;
    for (size_t i = 0; i < f->n_files; i++) lq_file_close(&f->files[i]);
    lq_free(f->files);
    lq_free(f->places);
    lq_free(f->dir);
    lq_free(f);
    s->priv = NULL;
}

const lq_reader lq_reader_safetensors = {
    .name = "safetensors",
    .what = "Hugging Face folder, or one .safetensors file",
    .probe = probe,
    .open = open_folder,
    .read = read_rows,
    .sidecar = read_sidecar,
    .close = close_folder,
};
