/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The front door: one table of verbs. */
#define _POSIX_C_SOURCE 200809L
#include "lquant.h"

#include "calib/arch.h"
#include "core/verb.h"
#include "eval/perplexity.h"
#include "quant/legal.h"
#include "quant/recipe.h"

#include <signal.h>
#include <string.h>

static const lq_verb *const verbs[] = {&lq_verb_convert, &lq_verb_llama_quantize, &lq_verb_calibrate, &lq_verb_merge, &lq_verb_eval, &lq_verb_run, &lq_verb_bench, &lq_verb_inspect, &lq_verb_verify, &lq_verb_diff};
enum { N_VERBS = sizeof verbs / sizeof *verbs };

static volatile int stop_asked;
static void on_signal(int sig) {
    if (stop_asked) { /* asked twice: leave at once */
        signal(sig, SIG_DFL);
        raise(sig);
    }
    stop_asked = 1;
}

static void log_line(void *user, lq_level level, const char *line) {
    (void)user;
    fprintf(stderr, "%s%s\n", level == LQ_LOG_WARN ? "lquant: warning: " : "", line);
}

static void help(FILE *out) {
    fprintf(out, "lquant %s: post-training quantization of large language models\n\nlquant VERB [flags] IN [OUT]\n\nquantize:\n", LQ_VERSION);
    for (const lq_method *const *m = lq_methods; *m; m++) fprintf(out, "  %-14s %s\n", (*m)->name, (*m)->what);
    fprintf(out, "\ntransforms, alone or before a method (awq,gptq):\n");
    for (const lq_xform *const *x = lq_xforms; *x; x++) fprintf(out, "  %-14s %s\n", (*x)->name, (*x)->what);
    fprintf(out, "\nother verbs:\n");
    for (int i = 0; i < N_VERBS; i++) fprintf(out, "  %-14s %s\n", verbs[i]->name, verbs[i]->what);
    fprintf(out, "  %-14s %s\n  %-14s %s\n  %-14s %s\n\n", "plan METHOD", "the same as METHOD --dry-run: sizes, what is kept, which runtimes load it", "list", "methods, formats, targets, archs, types, protocols or kernels", "help VERB", "the flags of a verb; also VERB --help");
    fprintf(out, "examples:\n"
                 "  lquant gptq --bits 4 SmolLM2 SmolLM2-4bit\n"
                 "  lquant eval SmolLM2-4bit --base SmolLM2 -f wiki.test.raw --kld\n"
                 "  lquant run SmolLM2-4bit -p \"The capital of France is\" -n 32\n");
}

static void list_archs(void) {
    for (const lq_arch *const *a = lq_archs; *a; a++)
        for (const char *const *t = (*a)->model_types; *t; t++) puts(*t);
}

static void list_kernels(void) {
    const char *used = lq_kernels_best()->name;
    for (const lq_tier *t = lq_tiers; t->name; t++)
        printf("%-12s %s\n", t->name, !strcmp(t->name, used) ? "used" : (lq_cpu_mask() & t->bit) == t->bit ? "yes" : "no");
}

static lq_status list(lq_ctx *ctx, const char *what) {
    if (!strcmp(what, "methods")) {
        for (const lq_method *const *m = lq_methods; *m; m++) printf("%-14s %s (%s)\n", (*m)->name, (*m)->what, (*m)->paper);
        for (const lq_xform *const *x = lq_xforms; *x; x++) printf("%-14s %s (%s)\n", (*x)->name, (*x)->what, (*x)->paper);
    } else if (!strcmp(what, "formats"))
        for (const lq_format *const *f = lq_formats; *f; f++) printf("%-14s %s\n", (*f)->name, (*f)->what);
    else if (!strcmp(what, "types"))
        for (const lq_type *t = lq_types; t->name; t++) printf("%-14s %s\n", t->name, t->what);
    else if (!strcmp(what, "protocols"))
        for (const lq_protocol *p = lq_protocols; p->name; p++) printf("%-14s %s\n", p->name, p->what);
    else if (!strcmp(what, "targets")) lq_legal_print(stdout);
    else if (!strcmp(what, "archs")) list_archs();
    else if (!strcmp(what, "kernels")) list_kernels();
    else return lq_fail(ctx, LQ_ERR_USAGE, "lquant list %s: expected methods, formats, targets, archs, types, protocols or kernels", what);
    return LQ_OK;
}

static bool answers(const lq_verb *v, const char *name) {
    if (!strcmp(v->name, name)) return true;
    const char *p = v->aliases ? strstr(v->aliases, name) : NULL;
    size_t n = strlen(name);
    return p && (p == v->aliases || p[-1] == ',') && (!p[n] || p[n] == ',');
}

static lq_status dispatch(lq_ctx *ctx, int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "--help";
    if (!strcmp(name, "--version")) {
        printf("lquant %s\n", LQ_VERSION);
        return LQ_OK;
    }
    if (!strcmp(name, "help") && argc > 2) {
        char *ask[] = {argv[0], argv[2], (char[]){"--help"}};
        return dispatch(ctx, 3, ask);
    }
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        help(argc > 1 ? stdout : stderr);
        return argc > 1 ? LQ_OK : lq_fail(ctx, LQ_ERR_USAGE, "a verb is missing");
    }
    if (!strcmp(name, "list")) return list(ctx, argc > 2 ? argv[2] : "");
    for (int i = 0; i < N_VERBS; i++)
        if (answers(verbs[i], name)) return verbs[i]->run(ctx, verbs[i]->name, argc - 2, argv + 2);
    if (!strcmp(name, "plan") && argc > 2 && lq_recipe_is(argv[2])) { /* plan RECIPE ...: RECIPE --dry-run ... */
        char *recipe = argv[2];
        argv[2] = (char[]){"--dry-run"};
        return lq_verb_quantize.run(ctx, recipe, argc - 2, argv + 2);
    }
    if (lq_recipe_is(name)) return lq_verb_quantize.run(ctx, name, argc - 2, argv + 2);
    return lq_fail(ctx, LQ_ERR_USAGE, "unknown verb '%s'; lquant --help lists the verbs", name);
}

int main(int argc, char **argv) {
    lq_ctx ctx = {.log = log_line, .level = LQ_LOG_INFO, .cancel = &stop_asked};
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGUSR1, &act, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a size limit is an error sentence, as a full disk is */
    lq_status st = dispatch(&ctx, argc, argv);
    if (!st && fflush(stdout)) st = lq_fail(&ctx, LQ_ERR_IO, "stdout: cannot write");
    if (st) fprintf(stderr, "lquant: %s: %s\n", lq_status_text(st), ctx.msg);
    return st ? (int)st : ctx.answer;
}
