/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* For tests of checkpoint folders: one matrix written and its stored parts looked at; golden folders that other tools' packers made, read
 * and written again. A golden folder is tests/golden/<path>/{config.json, model.safetensors.zst, weights.safetensors.zst}: the
 * checkpoint, and "<name>" = the peer's dequantized matrix of every "<name>" in the type the peer computes it in. */
#ifndef LQ_TESTS_FORMAT_FOLDER_H
#define LQ_TESTS_FORMAT_FOLDER_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"
#include "formats/safetensors.h"
#include "formats/sink.h"
#include "formats/source.h"

static char dir[64], out_dir[64];
static lq_ctx ctx;

#define GOOD_ST(x)                                                                    \
    do {                                                                              \
        lq_status good_ = (x);                                                        \
        if (good_) fail_msg("%s:%d: %s", __FILE__, __LINE__, ctx.msg);                \
    } while (0)

static inline int fresh_folders(void **state) {
    const char *root = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";
    (void)state;
    ctx = (lq_ctx){0};
    snprintf(dir, sizeof dir, "%s/lq_folder_XXXXXX", root);
    snprintf(out_dir, sizeof out_dir, "%s/lq_folder_XXXXXX", root);
    return mkdtemp(dir) && mkdtemp(out_dir) ? 0 : -1;
}
static inline int remove_folders(void **state) {
    (void)state;
    return (int)lq_remove_tree(NULL, dir) + (int)lq_remove_tree(NULL, out_dir);
}
#define IN_FOLDERS(f) cmocka_unit_test_setup_teardown(f, fresh_folders, remove_folders)

static inline const char *in(const char *folder, const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* -- one matrix written ---------------------------------------------------------------------------------------------- */

static const char module_name[] = "model.layers.0.mlp.up_proj";

/* A matrix of this scheme in `dir`: scales 1, the rest zero until fill (may be NULL) comes. */
static inline void write_one(const char *format, const lq_scheme *s, uint32_t rows, uint32_t cols, void (*fill)(lq_qtensor *), lq_st_file *f) {
    lq_row row = {.slot = {0, LQ_R_UP, -1}, .name = "model.layers.0.mlp.up_proj.weight", .ndim = 2, .shape = {rows, cols}, .linear = true, .quantize = true, .scheme = *s};
    lq_catalog cat = {.rows = &row, .n = 1};
    lq_sink *sink;
    lq_qtensor q;
    GOOD_ST(lq_qtensor_init(&ctx, &q, s, row.slot, rows, cols));
    if (s->scale.parent == LQ_F32) ((float *)q.scale.parent)[0] = 1;
    for (size_t i = 0; i < lq_plane_count(&s->scale, rows, cols); i++) lq_plane_set(&s->scale, &q.scale, i, 1);
    if (fill) fill(&q);
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name(format), dir, &cat, &(lq_sink_opts){0}, &sink));
    GOOD_ST(lq_sink_config(sink, "{}", 2));
    GOOD_ST(lq_sink_put(sink, &q));
    GOOD_ST(lq_sink_close(&sink));
    lq_qtensor_free(&q);
    GOOD_ST(lq_st_open(&ctx, in(dir, "model.safetensors"), f));
}

static inline const lq_st_tensor *stored(const lq_st_file *f, const char *name) {
    for (size_t t = 0; t < f->n; t++)
        if (!strcmp(f->tensors[t].name, name)) return &f->tensors[t];
    return NULL;
}

/* The bytes of the module's part; fails unless type and shape are these. The caller frees. */
static inline void *part(const lq_st_file *f, const char *suffix, lq_dtype dtype, uint32_t ndim, uint64_t d0, uint64_t d1) {
    char name[128];
    snprintf(name, sizeof name, "%s%s", module_name, suffix);
    const lq_st_tensor *t = stored(f, name);
    if (!t) fail_msg("no %s", name);
    if (t->dtype != dtype || t->ndim != ndim || (ndim && t->shape[0] != d0) || (ndim > 1 && t->shape[1] != d1))
        fail_msg("%s is %s [%llu, %llu]", name, lq_dtypes[t->dtype].name, (unsigned long long)t->shape[0], (unsigned long long)t->shape[1]);
    void *v = malloc(t->bytes);
    GOOD_ST(lq_file_read(&ctx, &f->file, t->offset, v, t->bytes));
    return v;
}

/* quantization_config (or another top-level key) of the folder; the caller decrefs. */
static inline json_t *written_config(const char *folder, const char *key) {
    json_t *doc, *q;
    GOOD_ST(lq_json_load(&ctx, in(folder, "config.json"), &doc));
    q = json_incref(json_object_get(doc, key));
    json_decref(doc);
    return q;
}

/* -- golden folders -------------------------------------------------------------------------------------------------- */

static inline void unpack(const char *from, const char *name, const char *to) {
    lq_buf z;
    GOOD_ST(lq_file_slurp(&ctx, in(from, name), 1 << 24, &z));
    unsigned long long n = ZSTD_getFrameContentSize(z.v, z.n);
    assert_true(n < 1 << 26);
    char *v = malloc(n), plain[128];
    assert_int_equal(ZSTD_decompress(v, n, z.v, z.n), n);
    snprintf(plain, sizeof plain, "%.*s", (int)(strlen(name) - 4), name);
    GOOD_ST(lq_write_file(&ctx, in(to, plain), v, n));
    free(v);
    lq_buf_free(&z);
}

static inline void golden_open(const char *path, lq_source **s) {
    char from[400];
    static const char *const beside[] = {"config.json", "hf_quant_config.json", "quant_config.json"};
    snprintf(from, sizeof from, "%s/tests/golden/%s", LQ_SOURCE_ROOT, path);
    lq_remove_tree(NULL, dir);
    lq_remove_tree(NULL, out_dir);
    GOOD_ST(lq_mkdir(&ctx, dir));
    GOOD_ST(lq_mkdir(&ctx, out_dir));
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        lq_buf b;
        if (!lq_path_exists(in(from, beside[i]))) continue;
        GOOD_ST(lq_file_slurp(&ctx, in(from, beside[i]), 1 << 20, &b));
        GOOD_ST(lq_write_file(&ctx, in(dir, beside[i]), b.v, b.n));
        lq_buf_free(&b);
    }
    unpack(from, "model.safetensors.zst", dir);
    unpack(from, "weights.safetensors.zst", out_dir);
    GOOD_ST(lq_source_open(&ctx, dir, s));
}

static inline void compare_floats(const lq_st_file *f, const lq_st_tensor *t, const lq_qtensor *q) {
    size_t unit = lq_dtypes[t->dtype].bytes;
    char *want = malloc(t->bytes), *got = malloc(q->cols * unit);
    float *row = malloc(q->cols * sizeof *row);
    assert_true(t->ndim == 2 && t->shape[0] == q->rows && t->shape[1] == q->cols);
    GOOD_ST(lq_file_read(&ctx, &f->file, t->offset, want, t->bytes));
    for (uint32_t r = 0; r < q->rows; r++) {
        lq_qtensor_decode_row(q, r, row);
        lq_dtype_encode(t->dtype, row, got, q->cols);
        if (memcmp(want + r * q->cols * unit, got, q->cols * unit)) fail_msg("%s: row %u differs", t->name, r);
    }
    free(want);
    free(got);
    free(row);
}

/* Every matrix of the golden folder reads to the floats the peer says. */
static inline void golden_reads(const char *path) {
    lq_source *s;
    lq_st_file f;
    golden_open(path, &s);
    GOOD_ST(lq_st_open(&ctx, in(out_dir, "weights.safetensors"), &f));
    size_t quantized = 0;
    for (size_t i = 0; i < s->n; i++) quantized += s->entries[i].dtype == LQ_NONE;
    assert_int_equal(quantized, f.n);
    for (size_t i = 0; i < f.n; i++) {
        lq_qtensor q;
        long at = lq_source_find(s, f.tensors[i].name);
        if (at < 0) fail_msg("no %s", f.tensors[i].name);
        GOOD_ST(lq_source_read_q(&ctx, s, (size_t)at, &q));
        compare_floats(&f, &f.tensors[i], &q);
        lq_qtensor_free(&q);
    }
    lq_st_close(&f);
    assert_int_equal(unlink(in(out_dir, "weights.safetensors")), 0);
    lq_source_free(&s);
}

static inline void put_again(lq_source *s, lq_sink *sink, const lq_row *r, size_t i) {
    if (r->quantize) {
        lq_qtensor q;
        GOOD_ST(lq_source_read_q(&ctx, s, i, &q));
        q.slot = r->slot;
        GOOD_ST(lq_sink_put(sink, &q));
        lq_qtensor_free(&q);
        return;
    }
    void *v = malloc(s->entries[i].bytes + 1);
    GOOD_ST(lq_source_read(&ctx, s, i, 0, lq_entry_rows(&s->entries[i]), v));
    GOOD_ST(lq_sink_put_fp(sink, r, v, s->entries[i].bytes));
    free(v);
}

static inline void rewrite(lq_source *s, const char *format) {
    lq_row *rows = calloc(s->n, sizeof *rows);
    lq_catalog cat = {.rows = rows, .n = s->n};
    lq_sink *sink;
    for (size_t i = 0; i < s->n; i++) {
        const lq_entry *e = &s->entries[i];
        rows[i] = (lq_row){.slot = {(int32_t)i, e->ndim == 2 ? LQ_R_UP : LQ_R_UNKNOWN, -1}, .name = e->name, .ndim = e->ndim, .linear = e->ndim == 2,
                           .quantize = e->dtype == LQ_NONE, .scheme = e->scheme, .out_dtype = e->dtype};
        memcpy(rows[i].shape, e->shape, sizeof e->shape);
    }
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name(format), out_dir, &cat, &(lq_sink_opts){0}, &sink));
    GOOD_ST(lq_sink_config(sink, "{}", 2));
    for (size_t i = 0; i < s->n; i++) put_again(s, sink, &rows[i], i);
    GOOD_ST(lq_sink_close(&sink));
    free(rows);
}

/* The same tensors: names, types, shapes, bytes; those whose name holds `but` (NULL: none) are not looked at. */
static inline void same_tensors_but(const char *a, const char *b, const char *but) {
    lq_st_file f, g;
    GOOD_ST(lq_st_open(&ctx, in(a, "model.safetensors"), &f));
    GOOD_ST(lq_st_open(&ctx, in(b, "model.safetensors"), &g));
    for (size_t i = 0; i < f.n; i++) {
        const lq_st_tensor *t = &f.tensors[i], *u = stored(&g, t->name);
        if (!u) fail_msg("%s is not written", t->name);
        if (but && strstr(t->name, but)) continue;
        if (t->dtype != u->dtype || t->ndim != u->ndim || memcmp(t->shape, u->shape, t->ndim * sizeof *t->shape)) fail_msg("%s has another type or shape", t->name);
        char *x = malloc(t->bytes + 1), *y = malloc(u->bytes + 1);
        GOOD_ST(lq_file_read(&ctx, &f.file, t->offset, x, t->bytes));
        GOOD_ST(lq_file_read(&ctx, &g.file, u->offset, y, u->bytes));
        if (memcmp(x, y, t->bytes)) fail_msg("%s has other bytes", t->name);
        free(x);
        free(y);
    }
    assert_int_equal(f.n, g.n);
    lq_st_close(&f);
    lq_st_close(&g);
}
static inline void same_tensors(const char *a, const char *b) { same_tensors_but(a, b, NULL); }

/* Read, then written by `format`: byte for byte what the peer stored. */
static inline void golden_is_written_again(const char *path, const char *format) {
    lq_source *s;
    golden_open(path, &s);
    assert_int_equal(unlink(in(out_dir, "weights.safetensors")), 0);
    rewrite(s, format);
    lq_source_free(&s);
    same_tensors(dir, out_dir);
}

/* -- files made by hand ---------------------------------------------------------------------------------------------- */

/* A folder of these tensors, data[i] = the bytes of t[i], and this config.json. */
static inline void write_folder(const lq_st_tensor *t, const void *const *data, size_t n, const char *config) {
    lq_st_writer *w;
    lq_remove_tree(NULL, dir);
    GOOD_ST(lq_mkdir(&ctx, dir));
    GOOD_ST(lq_st_create(&ctx, dir, t, n, 0, &w));
    for (size_t i = 0; i < n; i++) {
        size_t bytes = lq_dtypes[t[i].dtype].bytes;
        for (uint32_t d = 0; d < t[i].ndim; d++) bytes *= t[i].shape[d];
        GOOD_ST(lq_st_put(&ctx, w, t[i].name, data[i], bytes));
    }
    GOOD_ST(lq_st_finish(&ctx, &w));
    GOOD_ST(lq_write_file(&ctx, in(dir, "config.json"), config, strlen(config)));
}

/* Opening the folder, or reading every quantized entry of it, fails with this status and these words. */
static inline void folder_refused(lq_status want, const char *says) {
    lq_source *s = NULL;
    ctx = (lq_ctx){0};
    lq_status st = lq_source_open(&ctx, dir, &s);
    for (size_t i = 0; !st && i < s->n; i++) {
        lq_qtensor q = {0};
        if (s->entries[i].dtype == LQ_NONE) st = lq_source_read_q(&ctx, s, i, &q);
        lq_qtensor_free(&q);
    }
    if (st != want || !strstr(ctx.msg, says)) fail_msg("status %d (expected %d): '%s' lacks '%s'", (int)st, (int)want, ctx.msg, says);
    lq_source_free(&s);
}
#endif
