/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Which reader opens a path, and what all readers share: entries, name lookup, row arithmetic, sidecars. */
#include "formats/source.h"

#include <stdlib.h>
#include <string.h>

#include "formats/gguf_blocks.h"
#include "formats/nameset.h"
#include "formats/qcodec.h"

enum { CONFIG_MAX = 4 << 20 };

/* Readers that look at the content or the config come first, the plain folder last. */
const lq_reader *const lq_readers[] = {
    &lq_reader_gguf,
    &lq_reader_lqt,
    &lq_reader_gptq,
    &lq_reader_ct,
    &lq_reader_awq,
    &lq_reader_fp8,
    &lq_reader_mlx,
    &lq_reader_modelopt,
    &lq_reader_bnb,
    &lq_reader_bitnet,
    &lq_reader_squeezellm,
    &lq_reader_safetensors,
    NULL,
};

uint64_t lq_entry_rows(const lq_entry *e) {
    if (!e->ndim || (e->ndim == 1 && lq_dtypes[e->dtype].block > 1)) return 1;
    uint64_t n = 1;
    for (uint32_t i = 0; i + 1 < e->ndim || i == 0; i++) n *= e->shape[i];
    return n;
}

uint64_t lq_entry_q_bytes(const lq_entry *e) {
    return e->q_bytes ? e->q_bytes : lq_scheme_bytes(&e->scheme, (uint32_t)e->shape[0], (uint32_t)e->shape[1]);
}

uint64_t lq_entry_cols(const lq_entry *e) {
    if (e->ndim == 1 && lq_dtypes[e->dtype].block > 1) return e->shape[0];
    return e->ndim < 2 ? 1 : e->shape[e->ndim - 1];
}

lq_status lq_source_add(lq_ctx *ctx, lq_source *s, const lq_entry *e) {
    if (s->n == s->cap) {
        size_t cap = s->cap * 2 + 64;
        lq_entry *more = lq_realloc(s->entries, s->n * sizeof *more, cap * sizeof *more);
        if (!more) return lq_oom(ctx, cap * sizeof *more);
        s->entries = more;
        s->cap = cap;
    }
    char *name = lq_strdup(e->name);
    if (!name) return lq_oom(ctx, strlen(e->name));
    s->entries[s->n] = *e;
    lq_gguf_scheme(e->dtype, &s->entries[s->n].scheme);
    s->entries[s->n++].name = name;
    return LQ_OK;
}

lq_status lq_source_index(lq_ctx *ctx, lq_source *s) {
    lq_nameset *set = lq_nameset_new();
    lq_status st = set ? LQ_OK : lq_oom(ctx, s->n);
    for (size_t i = 0; !st && i < s->n; i++) {
        st = lq_nameset_add(set, s->entries[i].name, i);
        if (st == LQ_ERR_RESOURCE) lq_oom(ctx, s->n);
        else if (st) lq_fail(ctx, st, "tensor '%s' is stored twice", s->entries[i].name);
    }
    if (st) lq_nameset_free(&set);
    else {
        lq_nameset *old = s->index;
        lq_nameset_free(&old);
        s->index = set;
    }
    return st;
}

long lq_source_find(const lq_source *s, const char *name) { return lq_nameset_find(s->index, name); }

lq_status lq_source_add_file(lq_ctx *ctx, lq_source *s, bool weights, const char *name) {
    char ***list = weights ? &s->weight_files : &s->sidecars;
    size_t *n = weights ? &s->n_weight_files : &s->n_sidecars;
    char *copy = lq_strdup(name);
    char **more = copy ? lq_realloc(*list, *n * sizeof **list, (*n + 1) * sizeof **list) : NULL;
    if (!more) {
        lq_free(copy);
        return lq_oom(ctx, strlen(name));
    }
    *list = more;
    more[(*n)++] = copy;
    return LQ_OK;
}

lq_status lq_source_inherit(lq_ctx *ctx, lq_source *s, const lq_source *raw) {
    for (size_t i = 0; i < raw->n_sidecars; i++) LQ_TRY(lq_source_add_file(ctx, s, false, raw->sidecars[i]));
    for (size_t i = 0; i < raw->n_weight_files; i++) LQ_TRY(lq_source_add_file(ctx, s, true, raw->weight_files[i]));
    return LQ_OK;
}

lq_status lq_source_read(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out) {
    const lq_entry *e = &s->entries[i];
    uint64_t have = lq_entry_rows(e), end;
    if (e->dtype == LQ_NONE) return lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s' is quantized and read as plain", e->name);
    if (!lq_add_ok(row0, rows, &end) || end > have)
        return lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s': rows %llu to %llu wanted, it has %llu", e->name, (unsigned long long)row0,
                       (unsigned long long)end, (unsigned long long)have);
    if (!rows || !e->bytes) return LQ_OK;
    lq_status st = s->reader->read(ctx, s, i, row0, rows, out);
    return st ? lq_note(ctx, st, "tensor '%s'", e->name) : LQ_OK;
}

enum { SLAB = 1 << 20 };

static lq_status unpack_slab(lq_ctx *ctx, const lq_entry *e, const char *slab, uint32_t r0, uint32_t n, const uint32_t *place, lq_qtensor *q) {
    size_t bytes = lq_dtype_row_bytes(e->dtype, q->cols);
    for (uint32_t r = r0; r < r0 + n; r++) LQ_TRY(lq_gguf_unpack_row(ctx, e->dtype, slab + (r - r0) * bytes, q, place ? place[r] : r));
    return LQ_OK;
}

static lq_status read_rows(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, const uint32_t *place, lq_qtensor *q) {
    const lq_entry *e = &s->entries[i];
    size_t bytes = lq_dtype_row_bytes(e->dtype, q->cols);
    uint32_t per = bytes < SLAB ? (uint32_t)(SLAB / bytes) : 1;
    char *slab = lq_alloc((per < q->rows ? per : q->rows) * bytes);
    lq_status st = slab ? LQ_OK : lq_oom(ctx, per * bytes);
    for (uint32_t r = 0; r < q->rows && !st; r += per) {
        uint32_t n = q->rows - r < per ? q->rows - r : per;
        st = lq_source_read(ctx, s, i, row0 + r, n, slab);
        if (!st && (st = unpack_slab(ctx, e, slab, r, n, place, q))) lq_note(ctx, st, "tensor '%s'", e->name);
    }
    lq_free(slab);
    return st;
}

lq_status lq_source_read_blocks(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint32_t rows, const uint32_t *order, lq_qtensor *out) {
    const lq_entry *e = &s->entries[i];
    uint64_t cols = lq_entry_cols(e), each = e->ndim > 2 ? e->shape[e->ndim - 2] : lq_entry_rows(e); /* rows of a matrix */
    *out = (lq_qtensor){0};
    if (!e->scheme.grid.bits || !rows || !cols || cols > UINT32_MAX || (e->block_scale && rows > each))
        return lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s': %u rows of blocks of type %s", e->name, rows, lq_dtypes[e->dtype].name);
    LQ_TRY(lq_qtensor_init(ctx, out, &e->scheme, (lq_slot){0}, rows, (uint32_t)cols));
    if (e->dtype == LQ_NVFP4) *(float *)out->scale.parent = e->block_scale ? e->block_scale[row0 / each] : 1;
    uint32_t *place = order ? LQ_NEWN(uint32_t, rows) : NULL;
    lq_status st = order && !place ? lq_oom(ctx, rows * sizeof *place) : LQ_OK;
    for (uint32_t r = 0; place && r < rows; r++) place[order[r]] = r;
    if (!st) st = read_rows(ctx, s, i, row0, place, out);
    if (!st && (st = lq_qtensor_check(ctx, out, LQ_ERR_FORMAT))) lq_note(ctx, st, "tensor '%s'", e->name);
    lq_free(place);
    if (st) lq_qtensor_free(out);
    return st;
}

lq_status lq_source_read_q(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    const lq_entry *e = &s->entries[i];
    *out = (lq_qtensor){0};
    if (e->dtype != LQ_NONE && e->scheme.grid.bits && lq_entry_rows(e) <= UINT32_MAX) return lq_source_read_blocks(ctx, s, i, 0, (uint32_t)lq_entry_rows(e), NULL, out);
    if (e->dtype != LQ_NONE || !s->reader->read_q)
        return lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s' is plain and read as quantized", e->name);
    lq_status st = s->reader->read_q(ctx, s, i, out);
    return st ? lq_note(ctx, st, "tensor '%s'", e->name) : LQ_OK;
}

lq_status lq_source_sidecar(lq_ctx *ctx, lq_source *s, const char *name, lq_buf *out) {
    *out = (lq_buf){0};
    for (size_t i = 0; i < s->n_sidecars; i++)
        if (!strcmp(s->sidecars[i], name)) return s->reader->sidecar(ctx, s, i, out);
    return LQ_OK;
}

lq_status lq_source_manifest(lq_ctx *ctx, lq_source *s, lq_buf *out) {
    *out = (lq_buf){0};
    if (s->reader->manifest) return s->reader->manifest(ctx, s, out);
    char *path = lq_path_is_dir(s->path) ? lq_path_join(s->path, "lquant-manifest.json") : lq_strf("%s.manifest.json", s->path);
    if (!path) return lq_oom(ctx, strlen(s->path));
    lq_status st = lq_path_exists(path) ? lq_file_slurp(ctx, path, LQ_JSON_MAX, out) : LQ_OK;
    lq_free(path);
    return st;
}

/* A plain reader must not take packed codes for weights: whatever no quantized reader claimed is refused by its name. */
static lq_status refuse_unknown_method(lq_ctx *ctx, const json_t *config) {
    static const char *const keys[] = {"quantization_config", "compression_config", "quantization"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *q = json_object_get(config, keys[i]);
        if (!q || json_is_null(q)) continue;
        const char *method = json_string_value(json_object_get(q, "quant_method")), *mode = json_string_value(json_object_get(q, "quantization_mode"));
        if (method && mode && !strcmp(method, "bitnet") && !strcmp(mode, "online")) continue; /* plain weights, rounded as the model runs */
        if (!method) method = i == 2 ? "mlx" : i == 1 ? "compressed-tensors" : "(not named)";
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "the model is already quantized by '%.64s' (%s in config.json), which lquant does not read", method, keys[i]);
    }
    return LQ_OK;
}

static lq_status no_reader(lq_ctx *ctx, const char *path) {
    static const char *const pickles[] = {".bin", ".pt", ".pth", ".ckpt"};
    size_t n = strlen(path);
    for (size_t i = 0; i < sizeof pickles / sizeof *pickles; i++) {
        size_t m = strlen(pickles[i]);
        if (n > m && !strcmp(path + n - m, pickles[i]))
            return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "pickle files can run code when they are loaded and are not read; convert it to safetensors first");
    }
    if (lq_path_is_dir(path)) return lq_fail(ctx, LQ_ERR_FORMAT, "the folder holds neither *.safetensors nor config.json");
    return lq_fail(ctx, LQ_ERR_FORMAT, "neither a GGUF file nor a safetensors file nor a model folder");
}

/* config.json of the folder, or beside a .safetensors file; none is fine. */
static lq_status load_config(lq_ctx *ctx, lq_source *s) {
    static const char tail[] = ".safetensors";
    size_t len = strlen(s->path), m = sizeof tail - 1;
    if (!lq_path_is_dir(s->path) && (len < m || strcmp(s->path + len - m, tail))) return LQ_OK;
    char *dir = lq_source_dir(s), *path = dir ? lq_path_join(dir, "config.json") : NULL;
    lq_status st = path ? LQ_OK : lq_oom(ctx, strlen(s->path));
    if (!st && lq_path_exists(path)) st = lq_json_load_max(ctx, path, CONFIG_MAX, &s->config);
    if (!st && s->config && !json_is_object(s->config)) st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: not a JSON object", path);
    lq_free(path);
    lq_free(dir);
    return st;
}

char *lq_source_dir(const lq_source *s) {
    if (lq_path_is_dir(s->path)) return lq_strdup(s->path);
    const char *base = lq_path_base(s->path);
    return base == s->path ? lq_strdup(".") : lq_strndup(s->path, base - s->path > 1 ? (size_t)(base - s->path) - 1 : 1);
}

static lq_status open_with(lq_ctx *ctx, lq_source *s, const lq_reader *reader) {
    LQ_TRY(load_config(ctx, s));
    for (size_t i = 0; !reader && lq_readers[i]; i++)
        if (lq_readers[i]->probe(s->path, s->config)) {
            reader = lq_readers[i];
            if (reader == &lq_reader_safetensors) LQ_TRY(refuse_unknown_method(ctx, s->config));
        }
    if (!reader) return no_reader(ctx, s->path);
    s->reader = reader;
    LQ_TRY(reader->open(ctx, s));
    return lq_source_index(ctx, s);
}

lq_status lq_source_open_as(lq_ctx *ctx, const lq_reader *reader, const char *path, lq_source **out) {
    *out = NULL;
    lq_source *s = LQ_NEW(lq_source);
    if (!s || !(s->path = lq_strdup(path))) {
        lq_free(s);
        return lq_oom(ctx, strlen(path));
    }
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--) s->path[n - 1] = 0;
    lq_status st = lq_path_exists(path) ? open_with(ctx, s, reader) : lq_fail(ctx, LQ_ERR_FORMAT, "no such file or folder");
    if (st) {
        if (ctx && strncmp(ctx->msg, path, strlen(path))) lq_note(ctx, st, "%s", path); /* sentences about a file have it already */
        lq_source_free(&s);
    }
    *out = s;
    return st;
}

lq_status lq_source_open(lq_ctx *ctx, const char *path, lq_source **out) { return lq_source_open_as(ctx, NULL, path, out); }

void lq_source_free(lq_source **sp) {
    lq_source *s = *sp;
    if (!s) return;
    if (s->reader) s->reader->close(s);
    lq_nameset *index = s->index;
    lq_nameset_free(&index);
    for (size_t i = 0; i < s->n; i++) lq_free((char *)s->entries[i].name);
    lq_free(s->entries);
    lq_names_free(&s->sidecars, s->n_sidecars);
    lq_names_free(&s->weight_files, s->n_weight_files);
    json_decref(s->config);
    lq_free(s->path);
    lq_free(s);
    *sp = NULL;
}
