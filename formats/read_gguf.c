/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A GGUF file as a source: entries are its tensors, dimensions in Hugging Face order; names and values stay GGUF's. "<x>.scale" beside an
 * NVFP4 "<x>.weight" (one F32, or one for each matrix of a stack: llama.cpp) is part of the latter's entry; beside another type (llama-quantize leaves
 * it there) it makes the entry floats, the product of both.
 *
 * A split model is N files "<stem>-00001-of-0000N.gguf" with split.count, split.no (from 0) and split.tensors.count; metadata stands in the
 * first (llama-gguf-split). Any of them opens all. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "formats/nameset.h"
#include "formats/source.h"

enum { PARTS_MAX = 4096, TAIL = 20 }; /* length of "-00001-of-00002.gguf" */

typedef struct part { lq_file file; lq_gguf *gguf; } part;
typedef struct place { uint32_t part, tensor; } place;
typedef struct reader {
    part *parts;
    uint32_t n_parts;
    place *places;      /* [all tensors] of all parts, in order */
    size_t n_places;
    uint32_t *tensor;   /* [entries] their place */
    const float **times; /* [entries] what the floats of each matrix are multiplied with; NULL: they are as stored */
    bool told;
    lq_nameset *names;  /* to a place */
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

static double number(const lq_gguf *g, const char *key) {
    const lq_gguf_kv *kv = lq_gguf_find(g, key);
    return kv ? lq_gguf_num(kv, 0) : -1;
}

static lq_status open_part(lq_ctx *ctx, part *p, const char *path) {
    LQ_TRY(lq_file_open(ctx, path, &p->file));
    return lq_gguf_open(ctx, &p->file, &p->gguf);
}

/* A part is what its name says and belongs to as many as the others say. */
static lq_status check_part(lq_ctx *ctx, const part *p, uint32_t no, uint32_t count) {
    double has_no = number(p->gguf, "split.no"), has = number(p->gguf, "split.count");
    if (has_no == no && has == count) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_FORMAT, "%s: says it is part %.0f of %.0f, expected %u of %u", p->file.path, has_no + 1, has, no + 1, count);
}

/* Opens the parts of a split model: the file that was given is one of them. */
static lq_status open_split(lq_ctx *ctx, reader *r, const char *path, uint32_t count) {
    size_t stem = strlen(path) > TAIL ? strlen(path) - TAIL : 0;
    unsigned no, of;
    int end = 0;
    bool named = stem && sscanf(path + stem, "-%5u-of-%5u.gguf%n", &no, &of, &end) == 2 && end == TAIL && of == count;
    if (!named) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "part %.0f of %u of a split GGUF has another name than ...-000NN-of-%05u.gguf, the others cannot be found",
                               number(r->parts[0].gguf, "split.no") + 1, count, count);
    part *parts = lq_calloc(count, sizeof *parts);
    if (!parts) return lq_oom(ctx, count * sizeof *parts);
    lq_gguf_free(&r->parts[0].gguf);
    lq_file_close(&r->parts[0].file);
    lq_free(r->parts);
    r->parts = parts;
    r->n_parts = count;
    for (uint32_t i = 0; i < count; i++) parts[i].file.fd = -1;
    for (uint32_t i = 0; i < count; i++) {
        char *name = lq_strf("%.*s-%05u-of-%05u.gguf", (int)stem, path, i + 1, count);
        lq_status st = name ? open_part(ctx, &parts[i], name) : lq_oom(ctx, stem);
        lq_free(name);
        LQ_TRY(st);
        LQ_TRY(check_part(ctx, &parts[i], i, count));
    }
    return LQ_OK;
}

static lq_status open_parts(lq_ctx *ctx, reader *r, const char *path) {
    r->parts = lq_calloc(1, sizeof *r->parts);
    if (!r->parts) return lq_oom(ctx, sizeof *r->parts);
    r->parts->file.fd = -1;
    r->n_parts = 1;
    LQ_TRY(open_part(ctx, r->parts, path));
    double count = number(r->parts->gguf, "split.count");
    if (count > PARTS_MAX) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a model in %.0f parts; at most %d are read", count, PARTS_MAX);
    return count > 1 ? open_split(ctx, r, path, (uint32_t)count) : LQ_OK;
}

static lq_status list_tensors(lq_ctx *ctx, reader *r) {
    size_t n = 0;
    for (uint32_t k = 0; k < r->n_parts; k++) n += lq_gguf_count(r->parts[k].gguf);
    double told = number(r->parts->gguf, "split.tensors.count");
    if (told >= 0 && told != (double)n) return lq_fail(ctx, LQ_ERR_FORMAT, "the parts hold %zu tensors, split.tensors.count is %.0f", n, told);
    r->places = LQ_NEWN(place, n + 1);
    r->tensor = LQ_NEWN(uint32_t, n + 1);
    r->times = LQ_NEWN(const float *, n + 1);
    r->names = lq_nameset_new();
    r->mem = lq_arena_new();
    if (!r->mem || !r->tensor || !r->times || !r->places || !r->names) return lq_oom(ctx, n * sizeof *r->places);
    for (uint32_t k = 0; k < r->n_parts; k++)
        for (uint32_t i = 0; i < lq_gguf_count(r->parts[k].gguf); i++) {
            const char *name = lq_gguf_tensor_at(r->parts[k].gguf, i)->name;
            lq_status st = lq_nameset_add(r->names, name, r->n_places);
            if (st) return st == LQ_ERR_RESOURCE ? lq_oom(ctx, n) : lq_fail(ctx, st, "tensor '%s' is in two parts", name);
            r->places[r->n_places++] = (place){k, i};
        }
    return LQ_OK;
}

static const lq_gguf_tensor *tensor_at(const reader *r, size_t i) { return lq_gguf_tensor_at(r->parts[r->places[i].part].gguf, r->places[i].tensor); }
static const lq_file *file_of(const reader *r, size_t i) { return &r->parts[r->places[i].part].file; }

/* The tensor that is called like this one but for its ending; -1: none, or this has another ending. */
static long sibling(const reader *r, const char *name, const char *ending, const char *other) {
    size_t n = strlen(name), m = strlen(ending);
    char text[128];
    if (n <= m || strcmp(name + n - m, ending) || n + strlen(other) >= sizeof text) return -1;
    memcpy(text, name, n - m);
    strcpy(text + n - m, other);
    return lq_nameset_find(r->names, text);
}

static lq_status read_scale(lq_ctx *ctx, reader *r, const lq_gguf_tensor *w, size_t i, const float **out) {
    const lq_gguf_tensor *t = tensor_at(r, i);
    uint64_t want = w->ndim > 2 ? w->ne[2] : 1;
    if (t->dtype != LQ_F32 || t->bytes != 4 * want)
        return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': %s of %llu bytes, expected F32 of %llu", t->name, lq_dtypes[t->dtype].name, (unsigned long long)t->bytes, (unsigned long long)(4 * want));
    if (!lq_dtype_is_weight(w->dtype)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': a scale beside '%s' of type %s", t->name, w->name, lq_dtypes[w->dtype].name);
    float *v = lq_arena_alloc(r->mem, (size_t)t->bytes);
    if (!v) return lq_oom(ctx, (size_t)t->bytes);
    LQ_TRY(lq_file_read(ctx, file_of(r, i), t->offset, v, (size_t)t->bytes));
    for (uint64_t k = 0; k < want; k++)
        if (!isfinite(v[k])) return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': scale %llu is not finite", t->name, (unsigned long long)k);
    *out = v;
    return LQ_OK;
}

/* The values are the blocks' times a number: floats. */
static void multiplied(lq_ctx *ctx, reader *r, const float *v, size_t at, lq_entry *e) {
    const lq_dtype_info *t = &lq_dtypes[e->dtype];
    if (!r->told) lq_log(ctx, LQ_LOG_INFO, "tensors with a scale of their own beside %s are read as floats", t->name);
    r->told = true;
    r->times[at] = v;
    e->bytes = e->bytes / t->bytes * t->block * 4;
    e->dtype = LQ_F32;
}

static lq_status add_tensor(lq_ctx *ctx, lq_source *s, reader *r, size_t i) {
    const lq_gguf_tensor *t = tensor_at(r, i);
    const float *v = NULL;
    lq_entry e = {.name = t->name, .dtype = t->dtype, .ndim = t->ndim, .bytes = t->bytes};
    if (sibling(r, t->name, ".scale", ".weight") >= 0) return LQ_OK;
    for (uint32_t k = 0; k < t->ndim; k++) e.shape[k] = t->ne[t->ndim - 1 - k];
    long scale = sibling(r, t->name, ".weight", ".scale");
    if (scale >= 0) LQ_TRY(read_scale(ctx, r, t, (size_t)scale, &v));
    if (v && t->dtype != LQ_NVFP4) multiplied(ctx, r, v, s->n, &e);
    else e.block_scale = v;
    r->tensor[s->n] = (uint32_t)i;
    return lq_source_add(ctx, s, &e);
}

static lq_status open_gguf(lq_ctx *ctx, lq_source *s) {
    reader *r = LQ_NEW(reader);
    if (!r) return lq_oom(ctx, sizeof *r);
    s->priv = r;
    LQ_TRY(open_parts(ctx, r, s->path));
    s->gguf = r->parts->gguf;
    LQ_TRY(list_tensors(ctx, r));
    for (uint32_t k = 0; k < r->n_parts; k++) LQ_TRY(lq_source_add_file(ctx, s, true, r->n_parts > 1 ? r->parts[k].file.path : s->path));
    for (size_t i = 0; i < r->n_places; i++) LQ_TRY(add_tensor(ctx, s, r, i));
    return LQ_OK;
}

static lq_status read_multiplied(lq_ctx *ctx, const lq_source *s, size_t i, uint64_t row0, uint64_t rows, float *out) {
    const reader *r = s->priv;
    const lq_entry *e = &s->entries[i];
    const lq_gguf_tensor *t = tensor_at(r, r->tensor[i]);
    uint64_t cols = lq_entry_cols(e), bytes = lq_dtype_row_bytes(t->dtype, cols), each = e->ndim > 2 ? e->shape[e->ndim - 2] : lq_entry_rows(e);
    void *row = lq_alloc((size_t)bytes);
    lq_status st = row ? LQ_OK : lq_oom(ctx, (size_t)bytes);
    for (uint64_t k = row0; k < row0 + rows && !st; k++, out += cols) {
        st = lq_file_read(ctx, file_of(r, r->tensor[i]), t->offset + k * bytes, row, (size_t)bytes);
        if (!st) lq_dtype_decode(t->dtype, row, out, (size_t)cols);
        for (uint64_t c = 0; c < cols && !st; c++) out[c] *= r->times[i][k / each];
    }
    lq_free(row);
    return st;
}

static lq_status read_rows(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out) {
    const reader *r = s->priv;
    const lq_entry *e = &s->entries[i];
    if (r->times[i]) return read_multiplied(ctx, s, i, row0, rows, out);
    uint64_t row = lq_dtype_row_bytes(e->dtype, lq_entry_cols(e));
    return lq_file_read(ctx, file_of(r, r->tensor[i]), tensor_at(r, r->tensor[i])->offset + row0 * row, out, rows * row);
}

static lq_status no_sidecar(lq_ctx *ctx, lq_source *s, size_t i, lq_buf *out) {
    (void)s, (void)i, (void)out;
    return lq_fail(ctx, LQ_ERR_INTERNAL, "a GGUF file has no sidecars");
}

/* A key of the first part. */
static lq_status manifest(lq_ctx *ctx, lq_source *s, lq_buf *out) {
    size_t n = 0;
    const char *text = lq_gguf_str(lq_gguf_find(s->gguf, "lquant.manifest"), 0, &n);
    *out = (lq_buf){0};
    return !text || lq_buf_add(out, text, n) ? LQ_OK : lq_oom(ctx, n);
}

static void close_gguf(lq_source *s) {
    reader *r = s->priv;
    if (!r) return;
    for (uint32_t k = 0; k < r->n_parts; k++) {
        lq_gguf_free(&r->parts[k].gguf);
        lq_file_close(&r->parts[k].file);
    }
    lq_free(r->parts);
    lq_free(r->places);
    lq_arena_free(&r->mem);
    lq_nameset_free(&r->names);
    lq_free(r->tensor);
    lq_free(r->times);
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
    .manifest = manifest,
    .close = close_gguf,
};
