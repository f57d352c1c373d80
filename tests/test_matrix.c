/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Method x architecture: every recipe on a golden model of every architecture either works - the plan stands, the checkpoint is
 * written, read back bit for bit by the pipeline, and the model in it runs to finite logits - or is refused before work starts for
 * a reason in recipe_refusals.h. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "eval/loaded.h"
#include "golden_forward.h"
#include "recipe_refusals.h"
#include "quant/pipeline.h"

#include <dirent.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct recipe { const char *text, *flags[3]; } recipe; /* beside every method of the registry on its own type */
static const recipe more[] = {
    {"gptq", {"--scheme", "NF4"}},   {"gptq", {"--scheme", "FP8"}},      {"gptq", {"--asym"}},
    {"rtn", {"--scheme", "W8A8"}},   {"gptq", {"--rotate", "hadamard"}}, {"rtn", {"--rotate", "heads"}},
    {"awq", {NULL}},                 {"smoothquant", {NULL}},            {"awq,gptq", {NULL}},
    {"smoothquant,gptq", {"--scheme", "W8A8"}},
};
static const char *const insists[] = {"ternary", "binary"}; /* methods that want --force on an ordinary model */

static char dir[] = "/dev/shm/lquant_matrix_XXXXXX"; /* every run syncs its files: in memory where there is such a folder */
typedef struct tally { unsigned works, refused, wrong; } tally;

static void copy_file(const char *from, const char *name, const char *as) {
    char path[600];
    lq_buf b;
    snprintf(path, sizeof path, "%s/%s", from, name);
    assert_int_equal(lq_text_load(NULL, path, &b), LQ_OK);
    snprintf(path, sizeof path, "%s/in/%s", dir, as);
    unlink(path);
    assert_int_equal(lq_write_file(NULL, path, b.v, b.n), LQ_OK);
    lq_buf_free(&b);
}

static lq_status quantize(lq_ctx *ctx, const char *text, const char *const *flags) {
    char in[64], out[64];
    snprintf(in, sizeof in, "%s/in", dir);
    snprintf(out, sizeof out, "%s/out.lqt", dir);
    char *argv[24] = {"--format", "lqt", "--calib", "random", "--nsamples", "8", "--seqlen", "40", "--resume", "never", "--overwrite"};
    int argc = 11;
    for (; *flags; flags++) argv[argc++] = (char *)(uintptr_t)*flags;
    argv[argc++] = in;
    argv[argc++] = out;
    lq_run run = {0};
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

static void runs(const fixture *f, const char *cell) {
    char path[64];
    lq_ctx ctx = {0};
    lq_loaded l;
    lq_state *s;
    uint32_t d = f->m->par.hidden, vocab = f->m->par.vocab;
    float *hidden = LQ_NEWN(float, (size_t)f->n * d), *logits = LQ_NEWN(float, (size_t)f->n * vocab);
    snprintf(path, sizeof path, "%s/out.lqt", dir);
    lq_status st = lq_loaded_open(&ctx, path, false, &l);
    if (!st) st = lq_loaded_read(&ctx, &l);
    if (!st) st = lq_state_new(&ctx, l.m, f->n, &s);
    if (!st) st = lq_forward(&ctx, s, f->ids, f->n, hidden);
    if (!st) st = lq_logits(&ctx, l.m, hidden, f->n, logits);
    if (st) fail_msg("%s: written, but does not run: %s", cell, ctx.msg);
    for (size_t i = 0; i < (size_t)f->n * vocab; i++)
        if (!isfinite(logits[i])) fail_msg("%s: logit %zu is not finite", cell, i);
    lq_state_free(&s);
    lq_loaded_close(&l);
    lq_free(hidden);
    lq_free(logits);
}

static const refusal *known(const char *model, const char *cell, const char *message) {
    for (const refusal *r = refusals; r->model; r++)
        if (!fnmatch(r->model, model, 0) && !fnmatch(r->recipe, cell, 0) && strstr(message, r->says)) return r;
    return NULL;
}

static void one(const fixture *f, const char *model, const char *text, const char *const *flags, tally *t) {
    char cell[160];
    lq_ctx ctx = {0};
    size_t at = (size_t)snprintf(cell, sizeof cell, "%s", text);
    for (const char *const *p = flags; *p; p++) at += (size_t)snprintf(cell + at, sizeof cell - at, " %s", *p);
    lq_status st = quantize(&ctx, text, flags);
    if (!st) {
        runs(f, cell);
        t->works++;
        return;
    }
    t->refused++;
    if (st == LQ_ERR_UNSUPPORTED && known(model, cell, ctx.msg)) return;
    print_error("%s on %s: status %d: %s\n", cell, model, (int)st, ctx.msg);
    t->wrong++;
}

static void every_recipe(const char *model, tally *t) {
    fixture f;
    char from[512];
    snprintf(from, sizeof from, GOLDEN "%s", model);
    copy_file(from, "config.json", "config.json");
    copy_file(from, "model.safetensors", "model.safetensors");
    copy_file(LQ_SOURCE_ROOT "/tests/cli", "letters.json", "tokenizer.json");
    open_golden(&f, model);
    for (const lq_method *const *m = lq_methods; *m; m++) {
        const char *flags[2] = {NULL};
        for (size_t i = 0; i < sizeof insists / sizeof *insists; i++)
            if (!strcmp((*m)->name, insists[i])) flags[0] = "--force";
        one(&f, model, (*m)->name, flags, t);
    }
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        const char *flags[4] = {more[i].flags[0], more[i].flags[1], more[i].flags[2]};
        one(&f, model, more[i].text, flags, t);
    }
    close_golden(&f);
}

/* One folder for each architecture: the first of its name, and those whose tables have another form. */
static bool stands_for_more(const char *model) {
    static const char *const forms[] = {"opt_350m", "falcon_40b", "gemma3_kinds", "gpt_neox_serial", "mixtral_stacked", "qwen2", "qwen3_moe", NULL};
    for (const char *const *f = forms; *f; f++)
        if (!strcmp(*f, model)) return true;
    return false;
}

static int in_order(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void every_recipe_on_every_architecture_works_or_is_refused_for_a_known_reason(void **state) {
    (void)state;
    DIR *d = opendir(GOLDEN);
    char *names[256], path[64];
    const lq_arch *seen[256];
    size_t n = 0, n_seen = 0;
    tally t = {0};
    assert_non_null(d);
    if (access("/dev/shm", W_OK)) strcpy(dir, "/tmp/lquant_matrix_XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/in", dir);
    assert_int_equal(lq_mkdir(NULL, path), LQ_OK);
    for (struct dirent *e; (e = readdir(d)) && n < 256;)
        if (e->d_name[0] != '.') names[n++] = lq_strdup(e->d_name);
    closedir(d);
    qsort(names, n, sizeof *names, in_order);
    for (size_t i = 0; i < n; i++) {
        fixture f;
        open_golden(&f, names[i]);
        bool fresh = true;
        for (size_t k = 0; k < n_seen; k++) fresh = fresh && seen[k] != f.m->arch;
        if (fresh) seen[n_seen++] = f.m->arch;
        close_golden(&f);
        if (fresh || stands_for_more(names[i])) every_recipe(names[i], &t);
    }
    for (size_t i = 0; i < n; i++) lq_free(names[i]);
    assert_int_equal(lq_remove_tree(NULL, dir), LQ_OK);
    print_message("%zu architectures: %u cells work, %u are refused\n", n_seen, t.works, t.refused);
    assert_int_equal(t.wrong, 0);
    assert_true(t.works >= 85 * (t.works + t.refused) / 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_recipe_on_every_architecture_works_or_is_refused_for_a_known_reason)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
