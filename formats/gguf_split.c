/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A complete GGUF as parts, a tensor where another split model has it: "STEM-00001-of-0000N.gguf" ..., keys in the first, and in each
 *
 *   split.no u16 from 0    split.count u16    split.tensors.count i32, of all parts
 *
 * Names and keys: llama.cpp's llama_split_path and llama-quantize --keep-split. */
#include "formats/gguf_write.h"
#include "formats/nameset.h"

#include <string.h>

enum { PARTS_MAX = 4096 };

typedef struct split {
    lq_ctx *ctx;
    const char *path;
    lq_file file;
    lq_gguf *whole;
    size_t n;
    uint32_t *part;          /* [tensors] */
} split;

char *lq_gguf_part_name(const char *path, size_t i, size_t n) {
    size_t len = strlen(path), stem = len > 5 && !strcmp(path + len - 5, ".gguf") ? len - 5 : len;
    return lq_strf("%.*s-%05zu-of-%05zu.gguf", (int)stem, path, i + 1, n);
}

/* ---- which part ---- */

static lq_status names_of(split *s, const char *path, size_t part) {
    lq_file f;
    lq_gguf *g = NULL;
    LQ_TRY(lq_file_open(s->ctx, path, &f));
    lq_status st = lq_gguf_open(s->ctx, &f, &g);
    lq_nameset *names = st ? NULL : lq_nameset_new();
    if (!st && !names) st = lq_oom(s->ctx, 64);
    for (size_t i = 0; !st && i < lq_gguf_count(g); i++)
        if (lq_nameset_add(names, lq_gguf_tensor_at(g, i)->name, i)) st = lq_oom(s->ctx, 64);
    for (size_t i = 0; !st && i < lq_gguf_count(s->whole); i++)
        if (lq_nameset_find(names, lq_gguf_tensor_at(s->whole, i)->name) >= 0) s->part[i] = (uint32_t)part;
    lq_nameset_free(&names);
    lq_gguf_free(&g);
    lq_file_close(&f);
    return st;
}

static lq_status deal(split *s, char *const *like) {
    if (s->n > PARTS_MAX) return lq_fail(s->ctx, LQ_ERR_UNSUPPORTED, "%zu parts; at most %d are written", s->n, PARTS_MAX);
    if (!(s->part = LQ_NEWN(uint32_t, lq_gguf_count(s->whole) + 1))) return lq_oom(s->ctx, 4 * lq_gguf_count(s->whole));
    for (size_t k = 0; k < s->n; k++) LQ_TRY(names_of(s, like[k], k));
    return LQ_OK;
}

/* ---- one part ---- */

static bool is_ours(const char *key) { return !strncmp(key, "split.", 6) || !strcmp(key, LQ_GGUF_KEY_BYTES) || !strcmp(key, LQ_GGUF_KEY_HASH); }

static lq_status keys_of(const split *s, size_t k, lq_gguf_meta **out) {
    LQ_TRY(lq_gguf_meta_new(s->ctx, 0, out));
    lq_gguf_put_u16(*out, "split.no", (uint16_t)k);
    lq_gguf_put_u16(*out, "split.count", (uint16_t)s->n);
    lq_gguf_put_i32(*out, "split.tensors.count", (int32_t)lq_gguf_count(s->whole));
    for (size_t i = 0; k == 0 && i < lq_gguf_kv_count(s->whole); i++) {
        const lq_gguf_kv *kv = lq_gguf_kv_at(s->whole, i);
        if (!is_ours(lq_gguf_kv_key(kv))) lq_gguf_put_copy(*out, kv);
    }
    (*out)->hashed = true;
    return lq_gguf_meta_check(s->ctx, *out);
}

static lq_status copy_data(const split *s, const lq_gguf_tensor *t, lq_gguf_writer *w, uint64_t to) {
    enum { PIECE = 1 << 20 };
    char *piece = lq_alloc(PIECE);
    lq_status st = piece ? LQ_OK : lq_oom(s->ctx, PIECE);
    for (uint64_t at = 0; at < t->bytes && !st; at += PIECE) {
        size_t n = t->bytes - at < PIECE ? (size_t)(t->bytes - at) : PIECE;
        st = lq_file_read(s->ctx, &s->file, t->offset + at, piece, n);
        if (!st) st = lq_gguf_write(s->ctx, w, to + at, piece, n);
        if (!st) st = lq_check_cancel(s->ctx);
    }
    lq_free(piece);
    return st;
}

static size_t infos_of(const split *s, size_t k, lq_gguf_info *infos) {
    size_t n = 0;
    for (size_t i = 0; i < lq_gguf_count(s->whole); i++) {
        const lq_gguf_tensor *t = lq_gguf_tensor_at(s->whole, i);
        if (s->part[i] != k) continue;
        infos[n] = (lq_gguf_info){.name = t->name, .dtype = t->dtype, .ndim = t->ndim};
        memcpy(infos[n++].ne, t->ne, sizeof t->ne);
    }
    return n;
}

static lq_status write_part(const split *s, size_t k, const char *path) {
    lq_gguf_meta *meta = NULL;
    lq_gguf_writer *w = NULL;
    lq_gguf_info *infos = LQ_NEWN(lq_gguf_info, lq_gguf_count(s->whole) + 1);
    lq_status st = infos ? keys_of(s, k, &meta) : lq_oom(s->ctx, 64);
    size_t n = st ? 0 : infos_of(s, k, infos), at = 0;
    if (!st) st = lq_gguf_create(s->ctx, path, meta, infos, n, &w);
    for (size_t i = 0; !st && i < lq_gguf_count(s->whole); i++)
        if (s->part[i] == k) st = copy_data(s, lq_gguf_tensor_at(s->whole, i), w, infos[at++].offset);
    if (!st) st = lq_gguf_finish(s->ctx, &w);
    lq_gguf_write_abandon(&w);
    lq_gguf_meta_free(&meta);
    lq_free(infos);
    return st;
}

/* ---- all ---- */

static lq_status place(const split *s, size_t k, bool last, bool overwrite) {
    char *name = lq_gguf_part_name(s->path, k, s->n), *partial = name ? lq_strf("%s.partial", name) : NULL;
    lq_status st = partial ? LQ_OK : lq_oom(s->ctx, 256);
    if (!st && last) st = lq_rename(s->ctx, partial, name);
    else if (!st && !overwrite && lq_path_exists(name)) st = lq_fail(s->ctx, LQ_ERR_IO, "%s exists (--overwrite replaces it)", name);
    else if (!st) st = lq_remove_tree(s->ctx, partial);
    if (!st && !last) st = write_part(s, k, partial);
    lq_free(partial);
    lq_free(name);
    return st;
}

lq_status lq_gguf_split_like(lq_ctx *ctx, const char *path, char *const *like, size_t n, bool overwrite) {
    split s = {.ctx = ctx, .path = path, .n = n, .file = {.fd = -1}};
    lq_status st;
    if (n <= 1) return LQ_OK;
    LQ_TRY(lq_file_open(ctx, path, &s.file));
    LQ_GO(lq_gguf_open(ctx, &s.file, &s.whole));
    LQ_GO(deal(&s, like));
    for (size_t k = 0; k < n; k++) LQ_GO(place(&s, k, false, overwrite));
    for (size_t k = n; k-- > 0;) LQ_GO(place(&s, k, true, overwrite));
    st = lq_remove_tree(ctx, path);
done:
    lq_free(s.part);
    lq_gguf_free(&s.whole);
    lq_file_close(&s.file);
    return st;
}
