/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What test_matrix and test_format_matrix share: a folder in memory with a model in it, runs of the pipeline, logits of what came out. */
#ifndef LQ_TESTS_MATRIX_H
#define LQ_TESTS_MATRIX_H
#include "eval/loaded.h"
#include "golden_forward.h"
#include "quant/pipeline.h"

#include <dirent.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct refusal {
    const char *model, *recipe; /* fnmatch patterns: folder of tests/golden/forward or format, recipe with its flags */
    const char *says;           /* part of the sentence lquant prints */
    const char *why;
} refusal;

typedef struct tally { unsigned works, refused, wrong; } tally;

static char matrix_dir[] = "/dev/shm/lquant_matrix_XXXXXX"; /* every run syncs its files: in memory where there is such a folder */

static inline void matrix_open(void) {
    char path[64];
    if (access("/dev/shm", W_OK)) strcpy(matrix_dir, "/tmp/lquant_matrix_XXXXXX");
    assert_non_null(mkdtemp(matrix_dir));
    snprintf(path, sizeof path, "%s/in", matrix_dir);
    assert_int_equal(lq_mkdir(NULL, path), LQ_OK);
}

static inline void matrix_close(void) { assert_int_equal(lq_remove_tree(NULL, matrix_dir), LQ_OK); }

static inline void copy_file(const char *from, const char *name, const char *as) {
    char path[600];
    lq_buf b;
    snprintf(path, sizeof path, "%s/%s", from, name);
    assert_int_equal(lq_text_load(NULL, path, &b), LQ_OK);
    snprintf(path, sizeof path, "%s/in/%s", matrix_dir, as);
    unlink(path);
    assert_int_equal(lq_write_file(NULL, path, b.v, b.n), LQ_OK);
    lq_buf_free(&b);
}

static inline void copy_golden(const char *model, const char *tokenizer) {
    char from[512];
    snprintf(from, sizeof from, GOLDEN "%s", model);
    copy_file(from, "config.json", "config.json");
    copy_file(from, "model.safetensors", "model.safetensors");
    copy_file(LQ_SOURCE_ROOT "/tests/cli", tokenizer, "tokenizer.json");
}

/* "DIR/out" or "DIR/out.gguf", as the format wants it. */
static inline const char *matrix_out(const char *format, char buf[64]) {
    const lq_format *f = lq_format_by_name(format);
    assert_non_null(f);
    snprintf(buf, 64, "%s/out%s", matrix_dir, f->ext ? f->ext : "");
    return buf;
}

static unsigned matrix_plans; /* runs that got past their plan */

static inline void count_plan(void *user, const lq_plan *p) {
    (void)user, (void)p;
    matrix_plans++;
}

/* `lquant TEXT --format FORMAT FLAGS DIR/in DIR/out`: reads back what it wrote and compares every code. */
static inline lq_status quantize(lq_ctx *ctx, const char *text, const char *format, const char *const *flags) {
    char in[64], out[64];
    snprintf(in, sizeof in, "%s/in", matrix_dir);
    char *argv[28] = {"--calib", "random", "--nsamples", "8", "--seqlen", "40", "--resume", "never", "--overwrite", "--format", (char *)(uintptr_t)format};
    int argc = 11;
    for (; *flags; flags++) argv[argc++] = (char *)(uintptr_t)*flags;
    argv[argc++] = in;
    argv[argc++] = (char *)(uintptr_t)matrix_out(format, out);
    lq_run run = {.on_plan = count_plan};
    json_t *report = NULL;
    LQ_TRY(lq_recipe_parse(ctx, text, &run.recipe));
    lq_optset sets[LQ_RUN_SETS + 1];
    const char *pos[2];
    size_t n;
    uint32_t own = lq_run_sets(&run, sets); /* the recipe's, set by its parser */
    lq_status st = lq_opts_defaults(ctx, sets + own);
    if (!st) st = lq_opts_parse(ctx, sets, argc, argv, pos, 2, &n);
    if (!st) {
        run.in = pos[0];
        run.out = pos[1];
        st = lq_pipeline_run(ctx, &run, &report);
    }
    json_decref(report);
    lq_opts_free(sets);
    lq_recipe_free(&run.recipe);
    return st;
}

/* logits [n][vocab] of a model whose tensors are loaded, `step` tokens at a time. */
static inline lq_status logits_in_steps(lq_ctx *ctx, const lq_model *m, const int32_t *ids, uint32_t n, uint32_t step, float *logits) {
    lq_state *s = NULL;
    float *hidden = LQ_NEWN(float, (size_t)n * m->par.hidden);
    lq_status st = lq_state_new(ctx, m, n, &s);
    for (uint32_t t = 0; t < n && !st; t += step) {
        uint32_t k = n - t < step ? n - t : step;
        st = lq_forward(ctx, s, ids + t, k, hidden);
        if (!st) st = lq_logits(ctx, m, hidden, k, logits + (size_t)t * m->par.vocab);
    }
    lq_state_free(&s);
    lq_free(hidden);
    return st;
}

/* Worst |got - want| in parts of the largest |want|. */
static inline double logits_off(const float *got, const float *want, size_t n) {
    double worst = 0, top = 0;
    for (size_t i = 0; i < n; i++) {
        top = fmax(top, fabs((double)want[i]));
        worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
    }
    return top > 0 ? worst / top : worst;
}

/* Packed matrices say what plain C says of the codes where they lie; a token's NLL is off by at most twice what a logit is. With this machine's
 * kernels, in one go (`all`) and token by token (`each`): to rounding. Rounded activations may then fall on the other side of a half, and a
 * router choose another expert, so where there are some, single tokens run in plain C on both sides, and plain C must give the very bits
 * of more tokens than go through GEMV. */
static inline lq_status packed_agrees(lq_ctx *ctx, const char *path, const int32_t *ids, uint32_t n, const float *all, const float *each, bool rounds) {
    lq_loaded l;
    lq_kernels plain;
    uint32_t steps[] = {n, 1, n};
    LQ_TRY(lq_loaded_open(ctx, path, false, &l));
    const lq_kernels *best = l.m->k;
    size_t count = (size_t)n * l.m->par.vocab;
    float *got = LQ_NEWN(float, count);
    lq_kernels_init(&plain, 0);
    lq_status st = lq_model_load_all(ctx, l.m, LQ_LOAD_PACKED);
    for (int i = 0; i < (rounds ? 3 : 2) && !st; i++) {
        double limit = rounds ? 0.05 : 1e-4;
        const float *want = steps[i] == 1 ? each : all;
        l.m->k = i == 2 || (rounds && steps[i] == 1) ? &plain : best;
        st = logits_in_steps(ctx, l.m, ids, n, steps[i], got);
        double off = st ? 0 : logits_off(got, want, count);
        if (!st && !(off < limit)) st = lq_fail(ctx, LQ_ERR_QUALITY, "packed, %u tokens at a time: logits are off by %g", steps[i], off);
        if (!st && i == 2 && n > 8 && memcmp(got, want, count * sizeof *got)) st = lq_fail(ctx, LQ_ERR_QUALITY, "packed, in plain C: logits are off by %g", off);
    }
    lq_free(got);
    lq_loaded_close(&l);
    return st;
}

/* *logits [n][vocab] of the model at path on the codes as they lie; the caller frees. A logit that is not finite is LQ_ERR_QUALITY. Packed it
 * gives the same. */
static inline lq_status logits_at(lq_ctx *ctx, const char *path, const int32_t *ids, uint32_t n, size_t *count, float **out) {
    lq_loaded l;
    lq_kernels plain;
    float *logits = NULL, *each = NULL;
    bool rounds = false;
    *count = 0;
    *out = NULL;
    lq_kernels_init(&plain, 0);
    lq_status st = lq_loaded_open(ctx, path, false, &l);
    if (!st) {
        l.m->k = &plain;
        st = lq_model_load_all(ctx, l.m, LQ_LOAD_STORED);
    }
    if (!st) {
        *count = (size_t)n * l.m->par.vocab;
        logits = LQ_NEWN(float, *count);
        each = LQ_NEWN(float, *count);
        st = logits_in_steps(ctx, l.m, ids, n, n, logits);
        if (!st) st = logits_in_steps(ctx, l.m, ids, n, 1, each);
        for (size_t i = 0; i < l.m->cat.n; i++) rounds |= l.m->cat.rows[i].scheme.act.kind != 0;
        rounds |= l.m->par.master;
    }
    for (size_t i = 0; i < *count && !st; i++)
        if (!isfinite(logits[i])) st = lq_fail(ctx, LQ_ERR_QUALITY, "logit %zu is not finite", i);
    lq_loaded_close(&l);
    if (!st) st = packed_agrees(ctx, path, ids, n, logits, each, rounds);
    lq_free(each);
    if (st) lq_note(ctx, st, "written, but does not run");
    else *out = logits;
    if (st) lq_free(logits);
    return st;
}

/* The row of an array (model NULL ends) that knows this refusal. */
static inline bool refusal_known(const refusal *list, const char *model, const char *cell, const char *message) {
    for (; list->model; list++)
        if (!fnmatch(list->model, model, 0) && !fnmatch(list->recipe, cell, 0) && strstr(message, list->says)) return true;
    return false;
}

/* One folder for each architecture: the first of its name, and those whose tables have another form. fn is called with them in order. */
static inline bool stands_for_more(const char *model) {
    static const char *const forms[] = {"opt_350m", "falcon_40b", "gemma3_kinds", "gpt_neox_serial", "mixtral_stacked", "qwen2", "qwen3_moe", NULL};
    for (const char *const *f = forms; *f; f++)
        if (!strcmp(*f, model)) return true;
    return false;
}

static inline int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static inline size_t each_architecture(void (*fn)(const char *model, tally *t), tally *t) {
    DIR *d = opendir(GOLDEN);
    char *names[256];
    const lq_arch *seen[256];
    size_t n = 0, n_seen = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) && n < 256;)
        if (e->d_name[0] != '.') names[n++] = lq_strdup(e->d_name);
    closedir(d);
    qsort(names, n, sizeof *names, by_name);
    for (size_t i = 0; i < n; i++) {
        fixture f;
        open_golden(&f, names[i]);
        bool fresh = true;
        for (size_t k = 0; k < n_seen; k++) fresh = fresh && seen[k] != f.m->arch;
        if (fresh) seen[n_seen++] = f.m->arch;
        close_golden(&f);
        if (fresh || stands_for_more(names[i])) fn(names[i], t);
    }
    for (size_t i = 0; i < n; i++) lq_free(names[i]);
    return n_seen;
}
#endif
