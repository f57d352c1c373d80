/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The method verbs: lquant gptq --bits 4 IN OUT, and every recipe in a verb's place. */
#include "core/verb.h"
#include "quant/pipeline.h"

#include <string.h>

typedef struct args { lq_common common; lq_run run; } args;

static void say_part(const char *name, const char *what, const char *paper) {
    bool wide = strlen(name) + strlen(what) + strlen(paper) > 110; /* a terminal of 120 */
    printf("  %s: %s%s(%s)\n", name, what, wide ? "\n    " : " ", paper);
}

/* The usual flags; with -v all of them. */
static void help(const char *name, const lq_optset *sets, const lq_recipe *r, bool all) {
    printf("lquant %s [flags] IN OUT\n", name);
    for (uint32_t i = 0; i < r->n_xforms; i++) say_part(r->xform[i].x->name, r->xform[i].x->what, r->xform[i].x->paper);
    say_part(r->method->name, r->method->what, r->method->paper);
    putchar('\n');
    uint32_t more = all ? 0 : lq_opts_help_short(stdout, sets);
    if (all) lq_opts_help(stdout, sets);
    if (more) printf("  %u more flags: lquant %s --help -v\n", more, name);
    printf("\nexamples:\n"
           "  lquant %s --bits 4 SmolLM2 SmolLM2-4bit\n"
           "  lquant %s --bits 3 --group-size 64 -f calib.txt --nsamples 128 SmolLM2 SmolLM2-3bit\n"
           "  lquant %s --bits 4 --tensor-type 'down_proj=int8' --dry-run SmolLM2 out\n",
           name, name, name);
}

static void print_plan(void *user, const lq_plan *plan) {
    const args *a = user;
    if (a->run.opts.dry_run && !a->common.json) lq_plan_print(plan, stdout);
}

static void print_result(const args *a, const json_t *report) {
    if (a->common.json) {
        char *text = report ? json_dumps(report, JSON_INDENT(2)) : NULL;
        if (text) puts(text);
        free(text);
        return;
    }
    if (a->run.opts.dry_run) return;
    const json_t *err = json_object_get(report, "mean_rel_err");
    printf("%s: %.3f bits per weight", a->run.out, json_real_value(json_object_get(report, "bits_per_weight")));
    if (json_real_value(err) > 0) printf(", mean relative output error %.5f", json_real_value(err));
    printf(", %.1f s, peak memory %.0f MB\n", json_real_value(json_object_get(report, "seconds")),
           (double)json_integer_value(json_object_get(report, "peak_memory")) / 1e6);
}

static lq_status parse(lq_ctx *ctx, const char *name, int argc, char **argv, args *a, const lq_optset *sets, uint32_t own, bool *stop) {
    const char *pos[2];
    size_t n;
    LQ_TRY(lq_opts_defaults(ctx, sets + own)); /* the recipe's own defaults were set with it */
    LQ_TRY(lq_opts_parse(ctx, sets, argc, argv, pos, 2, &n));
    if ((*stop = a->common.help)) {
        help(name, sets, &a->run.recipe, a->common.level == LQ_LOG_DEBUG);
        return LQ_OK;
    }
    if (n < 2 && !(a->run.opts.dry_run && n == 1)) return lq_fail(ctx, LQ_ERR_USAGE, "lquant %s [flags] IN OUT: %s is missing (--help lists the flags)", name, n ? "OUT" : "IN");
    a->run.in = pos[0];
    a->run.out = n > 1 ? pos[1] : NULL;
    return lq_common_apply(ctx, &a->common);
}

static lq_status run_quantize(lq_ctx *ctx, const char *name, int argc, char **argv) {
    args a = {0};
    json_t *report = NULL;
    bool stop = false;
    LQ_TRY(lq_recipe_parse(ctx, name, &a.run.recipe));
    lq_optset sets[LQ_RUN_SETS + 2];
    uint32_t own = lq_run_sets(&a.run, sets), end = own;
    while (sets[end].table) end++;
    sets[end] = (lq_optset){lq_common_options, &a.common, NULL};
    sets[end + 1] = (lq_optset){0};
    a.run.on_plan = print_plan;
    a.run.user = &a;
    lq_status st = parse(ctx, name, argc, argv, &a, sets, own, &stop);
    if (!st && !stop) {
        st = lq_pipeline_run(ctx, &a.run, &report);
        if (!st || a.common.json) print_result(&a, report);
    }
    json_decref(report);
    lq_opts_free(sets);
    lq_recipe_free(&a.run.recipe);
    return st;
}

const lq_verb lq_verb_quantize = {"METHOD", NULL, "IN OUT", "quantize with a method of `lquant list methods`", run_quantize};
