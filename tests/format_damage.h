/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* For tests of formats stored as a quantized safetensors folder: one matrix written, read back, and refused after its stored tensors
 * (pieces) were changed. */
#ifndef LQ_TESTS_FORMAT_DAMAGE_H
#define LQ_TESTS_FORMAT_DAMAGE_H
#include "format_folder.h"

#define MODULE "model.layers.0.mlp.up_proj"
enum { PIECES_MAX = 160 };
typedef struct piece { char name[160]; lq_st_tensor t; uint8_t *data; } piece; /* t.name: name */
typedef struct pieces { piece v[PIECES_MAX]; size_t n; lq_buf config; } pieces;

/* -- the tensors of a folder ----------------------------------------------------------------------------------------- */

static inline void pieces_read(pieces *p, const char *folder) {
    char path[512];
    lq_st_file f;
    *p = (pieces){.n = 0};
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    GOOD_ST(lq_st_open(&ctx, path, &f));
    for (size_t i = 0; i < f.n; i++) {
        piece *x = &p->v[p->n++];
        assert_true(p->n < PIECES_MAX);
        snprintf(x->name, sizeof x->name, "%s", f.tensors[i].name);
        x->t = f.tensors[i];
        x->t.name = x->name;
        x->data = malloc(x->t.bytes + 1);
        GOOD_ST(lq_file_read(&ctx, &f.file, f.tensors[i].offset, x->data, x->t.bytes));
    }
    lq_st_close(&f);
    snprintf(path, sizeof path, "%s/config.json", folder);
    GOOD_ST(lq_file_slurp(&ctx, path, 1 << 20, &p->config));
}

static inline void pieces_write(const pieces *p) { /* into `dir`, emptied */
    lq_st_tensor t[PIECES_MAX];
    lq_st_writer *w;
    GOOD_ST(lq_remove_tree(NULL, dir));
    GOOD_ST(lq_mkdir(&ctx, dir));
    for (size_t i = 0; i < p->n; i++) t[i] = p->v[i].t, t[i].name = p->v[i].name;
    GOOD_ST(lq_st_create(&ctx, dir, t, p->n, 0, &w));
    for (size_t i = 0; i < p->n; i++) GOOD_ST(lq_st_put(&ctx, w, p->v[i].name, p->v[i].data, p->v[i].t.bytes));
    GOOD_ST(lq_st_finish(&ctx, &w));
    GOOD_ST(lq_write_file(&ctx, in(dir, "config.json"), p->config.v, p->config.n));
}

static inline void pieces_free(pieces *p) {
    for (size_t i = 0; i < p->n; i++) free(p->v[i].data);
    lq_buf_free(&p->config);
    p->n = 0;
}

static inline piece *piece_of(pieces *p, const char *suffix) { /* of MODULE; NULL: absent */
    char name[160];
    snprintf(name, sizeof name, "%s%s", MODULE, suffix);
    for (size_t i = 0; i < p->n; i++)
        if (!strcmp(p->v[i].name, name)) return &p->v[i];
    return NULL;
}

static inline void piece_drop(pieces *p, const char *suffix) {
    piece *x = piece_of(p, suffix);
    assert_non_null(x);
    free(x->data);
    memmove(x, x + 1, (size_t)(p->v + p->n - x - 1) * sizeof *x);
    p->n--;
}

/* Another type, shape and content; data NULL: zeros. */
static inline void piece_set(pieces *p, const char *suffix, lq_dtype dtype, uint32_t ndim, uint64_t d0, uint64_t d1, const void *data) {
    piece *x = piece_of(p, suffix);
    if (!x) {
        x = &p->v[p->n++];
        *x = (piece){.data = NULL};
        snprintf(x->name, sizeof x->name, "%s%s", MODULE, suffix);
    }
    x->t = (lq_st_tensor){.name = x->name, .dtype = dtype, .ndim = ndim, .shape = {d0, d1}, .bytes = lq_dtypes[dtype].bytes};
    for (uint32_t i = 0; i < ndim; i++) x->t.bytes *= x->t.shape[i];
    free(x->data);
    x->data = calloc(1, x->t.bytes + 1);
    if (data) memcpy(x->data, data, x->t.bytes);
}

/* `from` in config.json or in a piece of text becomes `to`, of any length. */
static inline void config_replace(pieces *p, const char *from, const char *to) {
    lq_buf b = {0};
    assert_true(lq_buf_add(&p->config, "", 1));
    char *at = strstr(p->config.v, from);
    if (!at) fail_msg("no %s in %s", from, p->config.v);
    assert_true(lq_buf_add(&b, p->config.v, (size_t)(at - p->config.v)) && lq_buf_addf(&b, "%s%s", to, at + strlen(from)));
    lq_buf_free(&p->config);
    p->config = b;
}

static inline void text_replace(pieces *p, const char *suffix, const char *from, const char *to) {
    piece *x = piece_of(p, suffix);
    char text[8192] = "", *at;
    assert_true(x && x->t.bytes < 4000 && strlen(to) < 4000);
    memcpy(text, x->data, x->t.bytes);
    if (!(at = strstr(text, from))) fail_msg("no %s in %s", from, text);
    memmove(at + strlen(to), at + strlen(from), strlen(at + strlen(from)) + 1);
    memcpy(at, to, strlen(to));
    piece_set(p, suffix, LQ_U8, 1, strlen(text), 0, text);
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
    LQ_TRY(lq_remove_tree(&ctx, dir));
    LQ_TRY(lq_mkdir(&ctx, dir));
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
    GOOD_ST(put_one(format, q, source));
    GOOD_ST(get_one(&back));
    if (!lq_qtensor_eq(q, &back)) fail_msg("%s of %u x %u reads differently", lq_scheme_name(&q->sch, name, sizeof name), q->rows, q->cols);
    lq_qtensor_free(&back);
}

/* The folder as `p` has it is refused with a sentence that says all of `words` (separated by |). */
static inline void refused(const pieces *p, lq_status want, const char *words) {
    lq_qtensor q;
    char list[256];
    snprintf(list, sizeof list, "%s", words);
    pieces_write(p);
    ctx = (lq_ctx){0};
    lq_status st = get_one(&q);
    if (!st) lq_qtensor_free(&q);
    if (st != want) fail_msg("expected status %d for '%s', got %d %s", (int)want, words, (int)st, ctx.msg);
    for (char *w = strtok(list, "|"); w; w = strtok(NULL, "|"))
        if (!strstr(ctx.msg, w)) fail_msg("no '%s' in: %s", w, ctx.msg);
    ctx = (lq_ctx){0};
}
#endif
