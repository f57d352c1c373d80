/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Writing safetensors: one file or shards with an index. The layout follows from names, types and shapes alone, so it is fixed before
 * data comes and the same tensors give the same bytes in whatever order they are put.
 *
 * Inside a file: `__metadata__` {"format":"pt"}, tensors by alignment rank then name (as the reference writer orders them), header
 * padded with spaces to a multiple of 8. A shard is created when its first tensor comes; one file is open at a time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/nameset.h"
#include "formats/safetensors.h"

enum { SHARDS_MAX = 99999, NAME_BYTES = 1024 };

typedef struct item { lq_st_tensor t; size_t shard; uint64_t next; bool done; } item; /* next: rows put so far */
typedef struct shard { char name[64]; char *header; size_t header_n; uint64_t size; bool created; } shard;

struct lq_st_writer {
    char *dir;
    item *items;        /* in offset order of the shards, shard after shard */
    size_t n, n_shards;
    shard *shards;
    lq_nameset *names;
    lq_arena *mem;
    lq_out *out;        /* the open shard */
    size_t at;          /* its number */
    uint64_t total;
};

/* The reference writer's order of element types: widest first. */
static int rank(lq_dtype t) {
    static const lq_dtype order[] = {LQ_U64, LQ_I64, LQ_F64, LQ_F32, LQ_U32, LQ_I32, LQ_BF16, LQ_F16, LQ_U16, LQ_I16, LQ_E8M0, LQ_E4M3, LQ_E5M2, LQ_I8, LQ_U8, LQ_BOOL};
    int i = 0;
    while (order[i] != t && order[i] != LQ_BOOL) i++;
    return i;
}

static int by_place(const void *a, const void *b) {
    const item *x = a, *y = b;
    if (x->shard != y->shard) return x->shard < y->shard ? -1 : 1;
    int p = rank(x->t.dtype), q = rank(y->t.dtype);
    return p != q ? p - q : strcmp(x->t.name, y->t.name);
}

static lq_status copy_items(lq_ctx *ctx, lq_st_writer *w, const lq_st_tensor *in) {
    for (size_t i = 0; i < w->n; i++) {
        lq_st_tensor *t = &w->items[i].t;
        size_t len = strlen(in[i].name);
        *t = in[i];
        if (!lq_name_is_sound(t->name, len, NAME_BYTES)) return lq_fail(ctx, LQ_ERR_FORMAT, "'%.200s' cannot be a tensor name", t->name);
        if (!lq_st_dtype_ok(t->dtype)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': safetensors cannot store type %s", t->name, lq_dtypes[t->dtype].name);
        if (t->ndim > LQ_DIMS) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': %u dimensions, at most %d are written", t->name, t->ndim, LQ_DIMS);
        char *copy = lq_arena_alloc(w->mem, len + 1);
        if (!copy) return lq_oom(ctx, len);
        t->name = memcpy(copy, t->name, len);
        t->bytes = lq_dtypes[t->dtype].bytes;
        for (uint32_t k = 0; k < t->ndim; k++)
            if (!lq_mul_ok(t->bytes, t->shape[k], &t->bytes)) return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': the product of its shape overflows", t->name);
        if (!lq_add_ok(w->total, t->bytes, &w->total)) return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': the sizes of the tensors overflow", t->name);
    }
    return LQ_OK;
}

/* Shards fill up in the order given; a tensor larger than a shard has one to itself. */
static void deal(lq_st_writer *w, uint64_t shard_size) {
    uint64_t fill = 0;
    w->n_shards = 1;
    for (size_t i = 0; i < w->n; i++) {
        item *it = &w->items[i];
        if (shard_size && fill && (it->t.bytes > shard_size || fill > shard_size - it->t.bytes)) {
            w->n_shards++;
            fill = 0;
        }
        it->shard = w->n_shards - 1;
        fill += it->t.bytes;
    }
}

static bool add_header(lq_buf *b, const item *from, size_t n) {
    bool ok = lq_buf_addf(b, "{\"__metadata__\":{\"format\":\"pt\"}");
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const lq_st_tensor *t = &from[i].t;
        ok = ok && lq_buf_add(b, ",\"", 2);
        for (const char *c = t->name; *c; c++) ok = ok && (*c != '"' || lq_buf_add(b, "\\", 1)) && lq_buf_add(b, c, 1);
        ok = ok && lq_buf_addf(b, "\":{\"dtype\":\"%s\",\"shape\":[", lq_dtypes[t->dtype].name);
        for (uint32_t k = 0; k < t->ndim; k++) ok = ok && lq_buf_addf(b, "%s%llu", k ? "," : "", (unsigned long long)t->shape[k]);
        ok = ok && lq_buf_addf(b, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at, (unsigned long long)(at + t->bytes));
        at += t->bytes;
    }
    ok = ok && lq_buf_add(b, "}", 1);
    return ok && lq_buf_add(b, "       ", (8 - b->n % 8) % 8);
}

static lq_status lay_out(lq_ctx *ctx, lq_st_writer *w) {
    size_t from = 0;
    for (size_t k = 0; k < w->n_shards; k++) {
        shard *sh = &w->shards[k];
        lq_buf b = {0};
        size_t end = from;
        while (end < w->n && w->items[end].shard == k) end++;
        if (w->n_shards == 1) snprintf(sh->name, sizeof sh->name, "model.safetensors");
        else snprintf(sh->name, sizeof sh->name, "model-%05zu-of-%05zu.safetensors", k + 1, w->n_shards);
        if (!add_header(&b, w->items + from, end - from)) { lq_buf_free(&b); return lq_oom(ctx, 256 * (end - from)); }
        sh->header = b.v;
        sh->header_n = b.n;
        sh->size = 8 + b.n;
        for (; from < end; from++) {
            w->items[from].t.offset = sh->size;
            if (!lq_add_ok(sh->size, w->items[from].t.bytes, &sh->size)) return lq_fail(ctx, LQ_ERR_FORMAT, "the sizes of the tensors overflow");
            lq_status st = lq_nameset_add(w->names, w->items[from].t.name, from);
            if (st == LQ_ERR_FORMAT) return lq_fail(ctx, st, "tensor '%s' is listed twice", w->items[from].t.name);
            if (st) return lq_oom(ctx, 64);
        }
    }
    return LQ_OK;
}

static lq_status create(lq_ctx *ctx, lq_st_writer *w, const lq_st_tensor *in, uint64_t shard_size) {
    LQ_TRY(copy_items(ctx, w, in));
    deal(w, shard_size);
    if (w->n_shards > SHARDS_MAX) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%zu shards; a larger --shard-size is needed (at most %d shards)", w->n_shards, SHARDS_MAX);
    if (!(w->shards = LQ_NEWN(shard, w->n_shards))) return lq_oom(ctx, w->n_shards * sizeof *w->shards);
    if (w->n) qsort(w->items, w->n, sizeof *w->items, by_place);
    return lay_out(ctx, w);
}

lq_status lq_st_create(lq_ctx *ctx, const char *dir, const lq_st_tensor *tensors, size_t n, uint64_t shard_size, lq_st_writer **out) {
    lq_st_writer *w = LQ_NEW(lq_st_writer);
    *out = NULL;
    if (!w) return lq_oom(ctx, sizeof *w);
    w->n = n;
    bool ok = (w->dir = lq_strdup(dir)) && (w->items = LQ_NEWN(item, n)) && (w->names = lq_nameset_new()) && (w->mem = lq_arena_new());
    lq_status st = ok ? create(ctx, w, tensors, shard_size) : lq_oom(ctx, n * sizeof *w->items);
    if (st) lq_st_abandon(&w);
    *out = w;
    return st;
}

static lq_status begin_file(lq_ctx *ctx, lq_st_writer *w, shard *sh, const char *path) {
    uint8_t le[8];
    if (sh->created) return lq_out_append(ctx, path, sh->size, &w->out);
    LQ_TRY(lq_out_create(ctx, path, &w->out));
    sh->created = true;
    for (int i = 0; i < 8; i++) le[i] = (uint8_t)((uint64_t)sh->header_n >> 8 * i);
    LQ_TRY(lq_out_write(ctx, w->out, le, 8));
    return lq_out_write(ctx, w->out, sh->header, sh->header_n);
}

static lq_status use_shard(lq_ctx *ctx, lq_st_writer *w, size_t k) {
    if (w->out && w->at == k) return LQ_OK;
    if (w->out) LQ_TRY(lq_out_close(ctx, &w->out));
    char *path = lq_path_join(w->dir, w->shards[k].name);
    if (!path) return lq_oom(ctx, 256);
    lq_status st = begin_file(ctx, w, &w->shards[k], path);
    w->at = k;
    lq_free(path);
    return st;
}

lq_status lq_st_put_rows(lq_ctx *ctx, lq_st_writer *w, const char *name, uint64_t row0, uint64_t rows, const void *data, size_t bytes) {
    long i = lq_nameset_find(w->names, name);
    if (i < 0) return lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s' was not announced to the writer", name);
    item *it = &w->items[i];
    uint64_t have = it->t.ndim ? it->t.shape[0] : 1, row = have ? it->t.bytes / have : 0, end;
    if (it->done || row0 != it->next || !lq_add_ok(row0, rows, &end) || end > have)
        return lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s': rows %llu to %llu put, %llu of %llu expected next", name, (unsigned long long)row0,
                       (unsigned long long)(row0 + rows), (unsigned long long)it->next, (unsigned long long)have);
    if (bytes != rows * row) return lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s': %zu bytes put, %llu expected", name, bytes, (unsigned long long)(rows * row));
    LQ_TRY(use_shard(ctx, w, it->shard));
    LQ_TRY(lq_out_write_at(ctx, w->out, it->t.offset + row0 * row, data, bytes));
    it->next = end;
    it->done = end == have;
    return LQ_OK;
}

lq_status lq_st_put(lq_ctx *ctx, lq_st_writer *w, const char *name, const void *data, size_t bytes) {
    long i = lq_nameset_find(w->names, name);
    uint64_t rows = i >= 0 && w->items[i].t.ndim ? w->items[i].t.shape[0] : 1;
    return lq_st_put_rows(ctx, w, name, 0, rows, data, bytes);
}

lq_status lq_st_sync(lq_ctx *ctx, lq_st_writer *w) { return w->out ? lq_out_sync(ctx, w->out) : LQ_OK; }

static int by_name(const void *a, const void *b) { return strcmp((*(const item *const *)a)->t.name, (*(const item *const *)b)->t.name); }

/* Sorted names, as the transformers library writes it. */
static lq_status index_text(lq_ctx *ctx, const lq_st_writer *w, lq_buf *text) {
    const item **sorted = LQ_NEWN(const item *, w->n);
    json_t *map = json_object(), *meta = json_object(), *all = json_object();
    lq_status st = sorted && map && meta && all ? LQ_OK : lq_oom(ctx, w->n);
    int bad = st != LQ_OK;
    for (size_t i = 0; !bad && i < w->n; i++) sorted[i] = &w->items[i];
    if (!bad && w->n) qsort(sorted, w->n, sizeof *sorted, by_name);
    for (size_t i = 0; !bad && i < w->n; i++) bad = json_object_set_new(map, sorted[i]->t.name, json_string(w->shards[sorted[i]->shard].name));
    bad = bad || json_object_set_new(meta, "total_size", json_integer((json_int_t)w->total)) || json_object_set(all, "metadata", meta) ||
          json_object_set(all, "weight_map", map);
    if (bad && !st) st = lq_oom(ctx, w->n * 64);
    if (!st) st = lq_json_dump(ctx, all, text);
    json_decref(all);
    json_decref(meta);
    json_decref(map);
    lq_free(sorted);
    return st;
}

static lq_status write_index(lq_ctx *ctx, const lq_st_writer *w) {
    lq_buf text = {0};
    char *path = lq_path_join(w->dir, "model.safetensors.index.json");
    lq_status st = path ? index_text(ctx, w, &text) : lq_oom(ctx, 64);
    if (!st) st = lq_write_file(ctx, path, text.v, text.n);
    lq_buf_free(&text);
    lq_free(path);
    return st;
}

static lq_status finish(lq_ctx *ctx, lq_st_writer *w) {
    for (size_t i = 0; i < w->n; i++) {
        item *it = &w->items[i];
        if (!it->done && it->t.bytes) return lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s' was announced and never put", it->t.name);
    }
    for (size_t k = 0; k < w->n_shards; k++) /* a shard of empty tensors only */
        if (!w->shards[k].created) LQ_TRY(use_shard(ctx, w, k));
    if (w->out) LQ_TRY(lq_out_close(ctx, &w->out));
    if (w->n_shards > 1) LQ_TRY(write_index(ctx, w));
    return lq_dir_sync(ctx, w->dir);
}

lq_status lq_st_finish(lq_ctx *ctx, lq_st_writer **w) {
    lq_status st = finish(ctx, *w);
    lq_st_abandon(w);
    return st;
}

void lq_st_abandon(lq_st_writer **wp) {
    lq_st_writer *w = *wp;
    if (!w) return;
    lq_out_abandon(&w->out);
    for (size_t k = 0; w->shards && k < w->n_shards; k++) lq_free(w->shards[k].header);
    lq_nameset_free(&w->names);
    lq_arena_free(&w->mem);
    lq_free(w->shards);
    lq_free(w->items);
    lq_free(w->dir);
    lq_free(w);
    *wp = NULL;
}
