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

static void list_methods(void) {
    for (const lq_method *const *m = lq_methods; *m; m++) printf("%-14s %s (%s)\n", (*m)->name, (*m)->what, (*m)->paper);
    for (const lq_xform *const *x = lq_xforms; *x; x++) printf("%-14s %s (%s)\n", (*x)->name, (*x)->what, (*x)->paper);
}

static void list_formats(void) {
    for (const lq_format *const *f = lq_formats; *f; f++) printf("%-14s %s\n", (*f)->name, (*f)->what);
}

static void list_types(void) {
    for (const lq_type *t = lq_types; t->name; t++) printf("%-14s %s\n", t->name, t->what);
}

static void list_protocols(void) {
    for (const lq_protocol *p = lq_protocols; p->name; p++) printf("%-14s %s\n", p->name, p->what);
}

static void list_targets(void) { lq_legal_print(stdout); }

static const struct list { const char *name, *what; void (*print)(void); } lists[] = {
    {"methods", "methods and transforms, with their papers", list_methods},
    {"formats", "what --format takes", list_formats},
    {"targets", "what --target takes, and what each runtime refuses", list_targets},
    {"archs", "model_type of the architectures that are run and calibrated", list_archs},
    {"types", "what --scheme and --tensor-type take", list_types},
    {"protocols", "what eval --protocol takes", list_protocols},
    {"kernels", "tiers of instruction sets, and which is used here", list_kernels},
    {NULL, NULL, NULL}};

static void list_help(void) {
    printf("lquant list WHAT\n\n");
    for (const struct list *l = lists; l->name; l++) printf("  %-14s %s\n", l->name, l->what);
    printf("\nexamples:\n  lquant list methods\n  lquant list types\n  lquant list targets\n");
}

static void plan_help(void) {
    printf("lquant plan METHOD [flags] IN [OUT]\n\nThe plan of `lquant METHOD`, from headers alone: sizes, what is kept, which runtimes load it. The same as\n"
           "METHOD --dry-run; the flags are the method's (lquant METHOD --help).\n\nexamples:\n  lquant plan gptq --bits 4 SmolLM2 out\n  lquant plan awq,gptq --bits 3 --group-size 64 SmolLM2 out\n"
           "  lquant plan rtn --scheme FP8 --target vllm SmolLM2 out\n");
}

static bool asks_help(const char *arg) { return !strcmp(arg, "--help") || !strcmp(arg, "-h"); }

static lq_status list(lq_ctx *ctx, const char *what) {
    if (asks_help(what)) return list_help(), LQ_OK;
    for (const struct list *l = lists; l->name; l++)
        if (!strcmp(what, l->name)) return l->print(), LQ_OK;
    return lq_fail(ctx, LQ_ERR_USAGE, "lquant list %s: expected methods, formats, targets, archs, types, protocols or kernels", what);
}

/* RECIPE ...: RECIPE --dry-run ... */
static lq_status plan(lq_ctx *ctx, int argc, char **argv) {
    char *recipe = argc > 0 ? argv[0] : NULL;
    if (recipe && asks_help(recipe)) return plan_help(), LQ_OK;
    if (!recipe || !lq_recipe_is(recipe))
        return lq_fail(ctx, LQ_ERR_USAGE, "lquant plan %s: expected a method, as in lquant plan gptq --bits 4 IN OUT; lquant list methods names them", recipe ? recipe : "");
    argv[0] = (char[]){"--dry-run"};
    return lq_verb_quantize.run(ctx, recipe, argc, argv);
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
    if (asks_help(name) || !strcmp(name, "help")) {
        help(argc > 1 ? stdout : stderr);
        return argc > 1 ? LQ_OK : lq_fail(ctx, LQ_ERR_USAGE, "a verb is missing");
    }
    if (!strcmp(name, "list")) return list(ctx, argc > 2 ? argv[2] : "");
    for (int i = 0; i < N_VERBS; i++)
        if (answers(verbs[i], name)) return verbs[i]->run(ctx, verbs[i]->name, argc - 2, argv + 2);
    if (!strcmp(name, "plan")) return plan(ctx, argc - 2, argv + 2);
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
