/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A GGUF file as a source: entries are its tensors, dimensions in Hugging Face order; names and values stay GGUF's. */
#include <string.h>

#include "formats/source.h"

typedef struct reader { lq_file file; lq_gguf *gguf; } reader;

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
    for (size_t i = 0; i < lq_gguf_count(r->gguf); i++) {
        const lq_gguf_tensor *t = lq_gguf_tensor_at(r->gguf, i);
        lq_entry e = {.name = t->name, .dtype = t->dtype, .ndim = t->ndim, .bytes = t->bytes};
        for (uint32_t k = 0; k < t->ndim; k++) e.shape[k] = t->ne[t->ndim - 1 - k];
        LQ_TRY(lq_source_add(ctx, s, &e));
    }
    return LQ_OK;
}

static lq_status read_rows(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out) {
    const reader *r = s->priv;
    const lq_entry *e = &s->entries[i];
    uint64_t row = lq_dtype_row_bytes(e->dtype, lq_entry_cols(e));
    return lq_file_read(ctx, &r->file, lq_gguf_tensor_at(r->gguf, i)->offset + row0 * row, out, rows * row);
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
