/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* For tests of formats stored as a quantized safetensors folder: one matrix written, its parts as bytes, changed, written back, read. */
#ifndef LQ_TESTS_FOLDER_TEST_H
#define LQ_TESTS_FOLDER_TEST_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "core/num.h"
#include "core/pack.h"
#include "formats/safetensors.h"
#include "formats/sink.h"
#include "formats/source.h"

#define MODULE "model.layers.0.mlp.up_proj"
enum { PARTS_MAX = 160 };
typedef struct part { char name[160]; lq_st_tensor t; uint8_t *data; } part; /* t.name: name */
typedef struct parts { part v[PARTS_MAX]; size_t n; lq_buf config; } parts;

static char dir[64];
static lq_ctx ctx;

#define OK(x)                                                             \
    do {                                                                  \
        lq_status ok_st_ = (x);                                           \
        if (ok_st_) fail_msg("%s: %s", lq_status_text(ok_st_), ctx.msg); \
    } while (0)

static inline int fresh_folder(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "%s/lq_folder_XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    ctx = (lq_ctx){0};
    return mkdtemp(dir) ? 0 : -1;
}
static inline int remove_folder(void **state) {
    (void)state;
    return (int)lq_remove_tree(NULL, dir);
}
static inline const char *in(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* -- the tensors of a folder ----------------------------------------------------------------------------------------- */

static inline void parts_read(parts *p, const char *folder) {
    char path[512];
    lq_st_file f;
    *p = (parts){.n = 0};
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    OK(lq_st_open(&ctx, path, &f));
    for (size_t i = 0; i < f.n; i++) {
        part *x = &p->v[p->n++];
        assert_true(p->n < PARTS_MAX);
        snprintf(x->name, sizeof x->name, "%s", f.tensors[i].name);
        x->t = f.tensors[i];
        x->t.name = x->name;
        x->data = malloc(x->t.bytes + 1);
        OK(lq_file_read(&ctx, &f.file, f.tensors[i].offset, x->data, x->t.bytes));
    }
    lq_st_close(&f);
    snprintf(path, sizeof path, "%s/config.json", folder);
    OK(lq_file_slurp(&ctx, path, 1 << 20, &p->config));
}

static inline void parts_write(const parts *p) { /* into `dir`, emptied */
    lq_st_tensor t[PARTS_MAX];
    lq_st_writer *w;
    OK(lq_remove_tree(NULL, dir));
    OK(lq_mkdir(&ctx, dir));
    for (size_t i = 0; i < p->n; i++) t[i] = p->v[i].t, t[i].name = p->v[i].name;
    OK(lq_st_create(&ctx, dir, t, p->n, 0, &w));
    for (size_t i = 0; i < p->n; i++) OK(lq_st_put(&ctx, w, p->v[i].name, p->v[i].data, p->v[i].t.bytes));
    OK(lq_st_finish(&ctx, &w));
    OK(lq_write_file(&ctx, in("config.json"), p->config.v, p->config.n));
}

static inline void parts_free(parts *p) {
    for (size_t i = 0; i < p->n; i++) free(p->v[i].data);
    lq_buf_free(&p->config);
    p->n = 0;
}

static inline part *part_of(parts *p, const char *suffix) { /* of MODULE; NULL: absent */
    char name[160];
    snprintf(name, sizeof name, "%s%s", MODULE, suffix);
    for (size_t i = 0; i < p->n; i++)
        if (!strcmp(p->v[i].name, name)) return &p->v[i];
    return NULL;
}

static inline void part_drop(parts *p, const char *suffix) {
    part *x = part_of(p, suffix);
    assert_non_null(x);
    free(x->data);
    memmove(x, x + 1, (size_t)(p->v + p->n - x - 1) * sizeof *x);
    p->n--;
}

/* Another type, shape and content; data NULL: zeros. */
static inline void part_set(parts *p, const char *suffix, lq_dtype dtype, uint32_t ndim, uint64_t d0, uint64_t d1, const void *data) {
    part *x = part_of(p, suffix);
    if (!x) {
        x = &p->v[p->n++];
        *x = (part){.data = NULL};
        snprintf(x->name, sizeof x->name, "%s%s", MODULE, suffix);
    }
    x->t = (lq_st_tensor){.name = x->name, .dtype = dtype, .ndim = ndim, .shape = {d0, d1}, .bytes = lq_dtypes[dtype].bytes};
    for (uint32_t i = 0; i < ndim; i++) x->t.bytes *= x->t.shape[i];
    free(x->data);
    x->data = calloc(1, x->t.bytes + 1);
    if (data) memcpy(x->data, data, x->t.bytes);
}

/* `from` in config.json or in a part of text becomes `to`, of any length. */
static inline void config_replace(parts *p, const char *from, const char *to) {
    lq_buf b = {0};
    assert_true(lq_buf_add(&p->config, "", 1));
    char *at = strstr(p->config.v, from);
    if (!at) fail_msg("no %s in %s", from, p->config.v);
    assert_true(lq_buf_add(&b, p->config.v, (size_t)(at - p->config.v)) && lq_buf_addf(&b, "%s%s", to, at + strlen(from)));
    lq_buf_free(&p->config);
    p->config = b;
}

static inline void text_replace(parts *p, const char *suffix, const char *from, const char *to) {
    part *x = part_of(p, suffix);
    char text[8192] = "", *at;
    assert_true(x && x->t.bytes < 4000 && strlen(to) < 4000);
    memcpy(text, x->data, x->t.bytes);
    if (!(at = strstr(text, from))) fail_msg("no %s in %s", from, text);
    memmove(at + strlen(to), at + strlen(from), strlen(at + strlen(from)) + 1);
    memcpy(at, to, strlen(to));
    part_set(p, suffix, LQ_U8, 1, strlen(text), 0, text);
}

/* -- one matrix ------------------------------------------------------------------------------------------------------ */

static inline void random_codes(lq_qtensor *q, uint64_t seed) {
    lq_rng rng;
    lq_rng_seed(&rng, seed, 1);
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) lq_code_put(q->codes + r * q->row_bytes, q->sch.grid.bits, c, lq_rng_below(&rng, 1u << q->sch.grid.bits));
}

/* Written into `dir` under MODULE. */
static inline lq_status put_one(const char *format, const lq_qtensor *q, lq_dtype source) {
    lq_row row = {.slot = q->slot, .name = MODULE ".weight", .dtype = source, .ndim = 2, .shape = {q->rows, q->cols}, .linear = true, .quantize = true, .scheme = q->sch};
    lq_catalog cat = {.rows = &row, .n = 1};
    lq_sink *sink;
    OK(lq_remove_tree(NULL, dir));
    OK(lq_mkdir(&ctx, dir));
    LQ_TRY(lq_sink_open(&ctx, lq_format_by_name(format), dir, &cat, &(lq_sink_opts){0}, &sink));
    lq_status st = lq_sink_config(sink, "{}", 2);
    if (!st) st = lq_sink_put(sink, q);
    if (!st) return lq_sink_close(&sink);
    lq_sink_abandon(&sink);
    return st;
}

/* The matrix MODULE of `dir`. */
static inline lq_status get_one(lq_qtensor *q) {
    lq_source *s;
    *q = (lq_qtensor){.rows = 0};
    LQ_TRY(lq_source_open(&ctx, dir, &s));
    long at = lq_source_find(s, MODULE ".weight");
    lq_status st = at < 0 ? LQ_ERR_INTERNAL : lq_source_read_q(&ctx, s, (size_t)at, q);
    lq_source_free(&s);
    return st;
}

static inline void round_trip(const char *format, const lq_qtensor *q, lq_dtype source) {
    lq_qtensor back;
    char name[64];
    OK(put_one(format, q, source));
    OK(get_one(&back));
    if (!lq_qtensor_eq(q, &back)) fail_msg("%s of %u x %u reads differently", lq_scheme_name(&q->sch, name, sizeof name), q->rows, q->cols);
    lq_qtensor_free(&back);
}

/* The folder as `p` has it is refused with a sentence that says all of `words` (separated by |). */
static inline void refused(const parts *p, lq_status want, const char *words) {
    lq_qtensor q;
    char list[256];
    snprintf(list, sizeof list, "%s", words);
    parts_write(p);
    ctx = (lq_ctx){0};
    lq_status st = get_one(&q);
    if (!st) lq_qtensor_free(&q);
    if (st != want) fail_msg("expected status %d for '%s', got %d %s", (int)want, words, (int)st, ctx.msg);
    for (char *w = strtok(list, "|"); w; w = strtok(NULL, "|"))
        if (!strstr(ctx.msg, w)) fail_msg("no '%s' in: %s", w, ctx.msg);
    ctx = (lq_ctx){0};
}

/* -- golden folders -------------------------------------------------------------------------------------------------- */

static inline void unpack_file(const char *from, const char *to) {
    lq_buf b;
    OK(lq_file_slurp(&ctx, from, 1 << 20, &b));
    unsigned long long n = ZSTD_getFrameContentSize(b.v, b.n);
    assert_true(n < 1 << 22);
    char *v = malloc((size_t)n + 1);
    assert_int_equal(ZSTD_decompress(v, (size_t)n, b.v, b.n), n);
    OK(lq_write_file(&ctx, to, v, (size_t)n));
    free(v);
    lq_buf_free(&b);
}

/* tests/golden/<where>/{config.json, model.safetensors.zst} unpacked into `dir`, "want.<module>" and others of `aside` moved out of it. */
static inline void golden(const char *where, parts *all) {
    char path[512];
    lq_buf b;
    OK(lq_remove_tree(NULL, dir));
    OK(lq_mkdir(&ctx, dir));
    snprintf(path, sizeof path, LQ_SOURCE_ROOT "/tests/golden/%s/config.json", where);
    OK(lq_file_slurp(&ctx, path, 1 << 20, &b));
    OK(lq_write_file(&ctx, in("config.json"), b.v, b.n));
    lq_buf_free(&b);
    snprintf(path, sizeof path, LQ_SOURCE_ROOT "/tests/golden/%s/model.safetensors.zst", where);
    unpack_file(path, in("model.safetensors"));
    parts_read(all, dir);
}
#endif
