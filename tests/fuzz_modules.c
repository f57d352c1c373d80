/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Quantized safetensors folders, every reader of formats/modules.h (GPTQ's has a target of its own), and verify over them. An input is
 *
 *     text of config.json, 0, one line "<name> <dtype> <d0> <d1> ..." per tensor, 0, the tensors' bytes one after another
 *
 * and the container around it is always sound (fuzz_safetensors breaks that one): edits reach the readers. Seeds are what the writers make
 * of a small matrix in every type they accept, a new row of lq_formats too; tests/golden/fuzz/modules has hostile ones. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/num.h"
#include "core/thread.h"
#include "eval/verify.h"
#include "formats/safetensors.h"
#include "formats/sink.h"
#include "formats/source.h"
#include "quant/method.h"
#include "quant/types.h"

enum { TENSORS = 24, ELEMENTS = 1 << 16, ROWS = 32, COLS = 64, SEEDS = 512 };
static const char module[] = "model.layers.0.mlp.up_proj.weight";
static char dir[64];

typedef struct seed { const lq_format *format; const lq_method *method; lq_scheme scheme; } seed;
static seed seeds[SEEDS];
static size_t n_seeds;

/* Else our own seed does not work: the test is wrong. */
#define must(ok) ((ok) ? (void)0 : (fprintf(stderr, "%s:%d: seed %zu\n", __FILE__, __LINE__, n_seeds), abort()))

static const char *in(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}
static void remove_dir(void) { lq_remove_tree(NULL, dir); }

static void start(void) {
    if (*dir) return;
    snprintf(dir, sizeof dir, "%s/lq_fuzz_XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    must(mkdtemp(dir) != NULL);
    atexit(remove_dir);
    lq_threads_set(1);
}

static void empty_dir(void) {
    must(!lq_remove_tree(NULL, dir) && !lq_mkdir(NULL, dir));
}

/* -- an input as a folder -------------------------------------------------------------------------------------------- */

static lq_dtype dtype_of(const char *name) {
    for (int t = 0; t < LQ_DTYPE_N; t++)
        if (lq_dtypes[t].name && !strcmp(lq_dtypes[t].name, name)) return (lq_dtype)t;
    return LQ_NONE;
}

/* One line; its name stays in `line`. */
static bool tensor_of(char *line, lq_st_tensor *t) {
    char *rest = NULL, *name = strtok_r(line, " ", &rest), *type = strtok_r(NULL, " ", &rest), *d;
    if (!name || !type) return false;
    *t = (lq_st_tensor){.name = name, .dtype = dtype_of(type)};
    if (!lq_st_dtype_ok(t->dtype) || lq_dtypes[t->dtype].block != 1) return false;
    t->bytes = lq_dtypes[t->dtype].bytes;
    while (t->ndim < LQ_DIMS && (d = strtok_r(NULL, " ", &rest))) {
        unsigned long long v = strtoull(d, NULL, 10);
        if (v > ELEMENTS || t->bytes * v > ELEMENTS) return false;
        t->bytes *= t->shape[t->ndim++] = v;
    }
    return true;
}

static size_t tensors_of(char *lines, lq_st_tensor t[TENSORS]) {
    size_t n = 0;
    char *rest = NULL;
    for (char *line = strtok_r(lines, "\n", &rest); line && n < TENSORS; line = strtok_r(NULL, "\n", &rest)) n += tensor_of(line, &t[n]);
    return n;
}

/* The data begins anew where it ends too soon. */
static void take(const uint8_t *data, size_t n, size_t *at, uint8_t *out, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) out[i] = n ? data[(*at)++ % n] : 0;
}

static bool write_tensors(char *lines, const uint8_t *data, size_t n) {
    lq_st_tensor t[TENSORS];
    lq_st_writer *w;
    size_t at = 0, count = tensors_of(lines, t);
    if (!count || lq_st_create(NULL, dir, t, count, 0, &w)) return false;
    for (size_t i = 0; i < count; i++) {
        uint8_t *part = malloc(t[i].bytes + 1);
        take(data, n, &at, part, t[i].bytes);
        lq_status st = lq_st_put(NULL, w, t[i].name, part, t[i].bytes);
        free(part);
        if (st) return lq_st_abandon(&w), false;
    }
    return !lq_st_finish(NULL, &w);
}

static bool write_folder(const uint8_t *p, size_t n) {
    const uint8_t *lines = memchr(p, 0, n), *data = lines ? memchr(lines + 1, 0, n - (size_t)(lines + 1 - p)) : NULL;
    if (!data) return false;
    empty_dir();
    char *text = lq_strndup((const char *)lines + 1, (size_t)(data - lines) - 1);
    bool ok = text && !lq_write_file(NULL, in("config.json"), p, (size_t)(lines - p)) && write_tensors(text, data + 1, n - (size_t)(data + 1 - p));
    lq_free(text);
    return ok;
}

/* -- reading --------------------------------------------------------------------------------------------------------- */

static bool read_q(lq_source *s, size_t i) {
    lq_qtensor q;
    lq_ctx ctx = {0};
    if (lq_source_read_q(&ctx, s, i, &q)) return false;
    float *row = malloc((size_t)q.cols * sizeof *row);
    lq_qtensor_decode_row(&q, q.rows - 1, row);
    free(row);
    lq_qtensor_free(&q);
    return true;
}

static size_t read_folder(void) {
    lq_source *s;
    lq_ctx ctx = {0};
    size_t quantized = 0;
    if (lq_source_open(&ctx, dir, &s)) return 0;
    for (size_t i = 0; i < s->n; i++)
        if (s->entries[i].dtype == LQ_NONE) quantized += read_q(s, i);
    lq_source_free(&s);
    return quantized;
}

static void verify_folder(void) {
    lq_verified v;
    lq_ctx ctx = {0};
    if (!lq_verify(&ctx, dir, true, &v)) lq_verified_free(&v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
size_t fuzz_seed(size_t i, uint8_t *out, size_t cap);
extern const int fuzz_mutants;
const int fuzz_mutants = 60; /* of each of more than a hundred seeds */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    start();
    if (!write_folder(data, n)) return 0;
    read_folder();
    verify_folder();
    return 0;
}

/* -- seeds ----------------------------------------------------------------------------------------------------------- */

static void add_seed(const lq_format *f, const lq_method *m, const lq_scheme *s) {
    for (size_t i = 0; i < n_seeds; i++)
        if (seeds[i].format == f && lq_scheme_eq(&seeds[i].scheme, s)) return;
    must(n_seeds < SEEDS);
    if (!f->accept(NULL, s, ROWS, COLS)) seeds[n_seeds++] = (seed){f, m, *s};
}

static void list_seeds(void) {
    static const int64_t groups[] = {-1, 32, 64};
    const lq_method *rtn = lq_method_by_name("rtn"), *tables = lq_method_by_name("squeezellm");
    for (const lq_format *const *f = lq_formats; *f; f++)
        for (const lq_type *t = lq_types; t->name && !(*f)->ext && (*f)->quant_config && strncmp((*f)->name, "gptq", 4); t++)
            for (size_t g = 0; g < 3 && !t->keep; g++)
                for (int asym = 0; asym < 2; asym++) {
                    lq_type_defaults d = {.group = groups[g], .asym = asym};
                    lq_want w;
                    if (lq_type_parse(NULL, t->name, &d, &w)) continue;
                    bool table = w.scheme.grid.kind == LQ_GRID_LUT && w.scheme.grid.bias == LQ_LUT_DATA;
                    w.scheme.sparse = table && g ? 50 : 0;
                    w.scheme.extra |= w.scheme.sparse ? LQ_X_OUTLIERS : 0;
                    add_seed(*f, table ? tables : rtn, &w.scheme);
                }
}

static void quantize(const seed *s, lq_qtensor *q) {
    static float w[ROWS * COLS];
    lq_rng rng;
    lq_outcome o;
    lq_ctx ctx = {0};
    lq_rng_seed(&rng, 5, 1);
    for (size_t i = 0; i < ROWS * COLS; i++) w[i] = 0.05f * lq_rng_normal(&rng);
    void *opts = calloc(1, s->method->opts_size + 1);
    must(!lq_opts_defaults(&ctx, (lq_optset[]){{s->method->opts, opts, NULL}, {0}}));
    lq_weights in_w = {.slot = {0, LQ_R_UP, -1}, .name = module, .rows = ROWS, .cols = COLS, .w = w};
    must(!s->method->quantize(&ctx, opts, &in_w, &s->scheme, NULL, q, &o));
    if (s->scheme.act.kind == LQ_ACT_STATIC) q->act_scale = 0.03125f;
    free(opts);
}

static void write_seed(const seed *s) {
    lq_row rows[] = {{.slot = {0, LQ_R_UP, -1}, .name = (char *)(uintptr_t)module, .dtype = LQ_BF16, .ndim = 2, .shape = {ROWS, COLS}, .linear = true, .quantize = true, .scheme = s->scheme},
                     {.slot = {0, LQ_R_ATTN_NORM, -1}, .name = "model.layers.0.input_layernorm.weight", .dtype = LQ_BF16, .out_dtype = LQ_BF16, .ndim = 1, .shape = {4}}};
    lq_catalog cat = {.rows = rows, .n = 2};
    lq_qtensor q;
    lq_sink *sink;
    quantize(s, &q);
    empty_dir();
    must(!lq_sink_open(NULL, s->format, dir, &cat, &(lq_sink_opts){0}, &sink));
    must(!lq_sink_config(sink, "{}", 2) && !lq_sink_put(sink, &q) && !lq_sink_put_fp(sink, &rows[1], (uint16_t[4]){0}, 8) && !lq_sink_close(&sink));
    lq_qtensor_free(&q);
}

/* The folder as an input. */
static size_t pack_folder(uint8_t *out, size_t cap) {
    lq_buf b = {0}, config;
    lq_st_file f;
    must(!lq_file_slurp(NULL, in("config.json"), 1 << 20, &config) && lq_buf_add(&b, config.v, config.n) && lq_buf_add(&b, "", 1));
    must(!lq_st_open(NULL, in("model.safetensors"), &f));
    for (size_t i = 0; i < f.n; i++) {
        must(lq_buf_addf(&b, "%s %s", f.tensors[i].name, lq_dtypes[f.tensors[i].dtype].name));
        for (uint32_t d = 0; d < f.tensors[i].ndim; d++) must(lq_buf_addf(&b, " %llu", (unsigned long long)f.tensors[i].shape[d]));
        must(lq_buf_add(&b, "\n", 1));
    }
    must(lq_buf_add(&b, "", 1));
    for (size_t i = 0; i < f.n; i++) {
        uint8_t *part = malloc(f.tensors[i].bytes + 1);
        must(!lq_file_read(NULL, &f.file, f.tensors[i].offset, part, f.tensors[i].bytes) && lq_buf_add(&b, part, f.tensors[i].bytes));
        free(part);
    }
    lq_st_close(&f);
    must(b.n <= cap);
    memcpy(out, b.v, b.n);
    size_t n = b.n;
    lq_buf_free(&config);
    lq_buf_free(&b);
    return n;
}

size_t fuzz_seed(size_t i, uint8_t *out, size_t cap) {
    start();
    if (!n_seeds) list_seeds();
    if (i >= n_seeds) return 0;
    write_seed(&seeds[i]);
    size_t n = pack_folder(out, cap);
    must(write_folder(out, n) && read_folder() == 1);
    return n;
}
