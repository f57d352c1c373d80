/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A GGUF file as a source: entries are its tensors, dimensions in Hugging Face order; names and values stay GGUF's. "<x>.scale" beside an
 * NVFP4 "<x>.weight" (one F32, or one for each matrix of a stack: llama.cpp) is part of the latter's entry. */
#include <math.h>
#include <string.h>

#include "formats/nameset.h"
#include "formats/source.h"

typedef struct reader {
    lq_file file;
    lq_gguf *gguf;
    uint32_t *tensor;   /* [entries] their place in the file's table */
    lq_nameset *names;
    lq_arena *mem;
} reader;

static bool probe(const char *path, const json_t *config) {
    (void)config;
    lq_file f;
    char magic[4] = {0};
    size_t n = strlen(path);
    if (n > 5 && !strcmp(path + n - 5, ".gguf")) return !lq_path_is_dir(path);
    if (lq_path_is_dir(path) || lq_file_open(NULL, path, &f)) return false;
    bool mine = !lq_file_read(NULL, &f, 0, magic, 4) && !memcmp(magic, "GGUF", 4);
    lq_file_close(&f);
    return mine;
}

static lq_status refuse_parts(lq_ctx *ctx, const lq_gguf *g) {
    const lq_gguf_kv *count = lq_gguf_find(g, "split.count"), *no = lq_gguf_find(g, "split.no");
    if (!count || lq_gguf_num(count, 0) <= 1) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "this is part %.0f of %.0f of a split GGUF; join the parts first (llama-gguf-split --merge)",
                   lq_gguf_num(no, 0) + 1, lq_gguf_num(count, 0));
}

/* The tensor that is called like this one but for its ending; -1: none, or this has another ending. */
static long sibling(const reader *r, const char *name, const char *ending, const char *other) {
    size_t n = strlen(name), m = strlen(ending);
    char text[128];
    if (n <= m || strcmp(name + n - m, ending) || n + strlen(other) >= sizeof text) return -1;
    memcpy(text, name, n - m);
    strcpy(text + n - m, other);
    return lq_nameset_find(r->names, text);
}

static lq_status read_scale(lq_ctx *ctx, reader *r, const lq_gguf_tensor *w, const lq_gguf_tensor *t, lq_entry *e) {
    uint64_t want = w->ndim > 2 ? w->ne[2] : 1;
    if (t->dtype != LQ_F32 || t->bytes != 4 * want)
        return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': %s of %llu bytes, expected F32 of %llu", t->name, lq_dtypes[t->dtype].name, (unsigned long long)t->bytes, (unsigned long long)(4 * want));
    if (w->dtype != LQ_NVFP4)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': a scale beside '%s' of type %s; one is read beside NVFP4", t->name, w->name, lq_dtypes[w->dtype].name);
    float *v = lq_arena_alloc(r->mem, (size_t)t->bytes);
    if (!v) return lq_oom(ctx, (size_t)t->bytes);
    LQ_TRY(lq_file_read(ctx, &r->file, t->offset, v, (size_t)t->bytes));
    for (uint64_t i = 0; i < want; i++)
        if (!isfinite(v[i])) return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': scale %llu is not finite", t->name, (unsigned long long)i);
    e->block_scale = v;
    return LQ_OK;
}

static lq_status add_tensor(lq_ctx *ctx, lq_source *s, reader *r, size_t i) {
    const lq_gguf_tensor *t = lq_gguf_tensor_at(r->gguf, i);
    lq_entry e = {.name = t->name, .dtype = t->dtype, .ndim = t->ndim, .bytes = t->bytes};
    if (sibling(r, t->name, ".scale", ".weight") >= 0) return LQ_OK;
    for (uint32_t k = 0; k < t->ndim; k++) e.shape[k] = t->ne[t->ndim - 1 - k];
    long scale = sibling(r, t->name, ".weight", ".scale");
    if (scale >= 0) LQ_TRY(read_scale(ctx, r, t, lq_gguf_tensor_at(r->gguf, (size_t)scale), &e));
    r->tensor[s->n] = (uint32_t)i;
    return lq_source_add(ctx, s, &e);
}

static lq_status open_gguf(lq_ctx *ctx, lq_source *s) {
    reader *r = LQ_NEW(reader);
    if (!r) return lq_oom(ctx, sizeof *r);
    s->priv = r;
    r->file.fd = -1;
    LQ_TRY(lq_file_open(ctx, s->path, &r->file));
    LQ_TRY(lq_gguf_open(ctx, &r->file, &r->gguf));
    LQ_TRY(refuse_parts(ctx, r->gguf));
    s->gguf = r->gguf;
    LQ_TRY(lq_source_add_file(ctx, s, true, s->path));
    r->mem = lq_arena_new();
    r->tensor = LQ_NEWN(uint32_t, lq_gguf_count(r->gguf) + 1);
    r->names = lq_nameset_new();
    if (!r->mem || !r->tensor || !r->names) return lq_oom(ctx, lq_gguf_count(r->gguf) * sizeof *r->tensor);
    for (size_t i = 0; i < lq_gguf_count(r->gguf); i++)
        if (lq_nameset_add(r->names, lq_gguf_tensor_at(r->gguf, i)->name, i)) return lq_oom(ctx, lq_gguf_count(r->gguf));
    for (size_t i = 0; i < lq_gguf_count(r->gguf); i++) LQ_TRY(add_tensor(ctx, s, r, i));
    return LQ_OK;
}

static lq_status read_rows(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out) {
    const reader *r = s->priv;
    const lq_entry *e = &s->entries[i];
    uint64_t row = lq_dtype_row_bytes(e->dtype, lq_entry_cols(e));
    return lq_file_read(ctx, &r->file, lq_gguf_tensor_at(r->gguf, r->tensor[i])->offset + row0 * row, out, rows * row);
}

static lq_status no_sidecar(lq_ctx *ctx, lq_source *s, size_t i, lq_buf *out) {
    (void)s, (void)i, (void)out;
    return lq_fail(ctx, LQ_ERR_INTERNAL, "a GGUF file has no sidecars");
}

static void close_gguf(lq_source *s) {
    reader *r = s->priv;
    if (!r) return;
    lq_gguf_free(&r->gguf);
    lq_file_close(&r->file);
    lq_arena_free(&r->mem);
    lq_nameset_free(&r->names);
    lq_free(r->tensor);
    lq_free(r);
    s->priv = NULL;
    s->gguf = NULL;
}

const lq_reader lq_reader_gguf = {
    .name = "gguf",
    .what = "GGUF v2 or v3 file",
    .probe = probe,
    .open = open_gguf,
    .read = read_rows,
    .sidecar = no_sidecar,
    .close = close_gguf,
};
