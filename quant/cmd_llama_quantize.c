/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant quantize: llama-quantize's own command line. IN may be a Hugging Face folder too. */
#include "core/verb.h"
#include "quant/mixture.h"
#include "quant/pipeline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct args {
    lq_common common;
    const char *imatrix, *output_type, *embed_type, *pre, *work_dir;
    lq_strlist tensor_type;
    int pure, requantize, leave_output, no_fallback, dry_run, overwrite, keep_split;
} args;

#define FLAG(name, field, help) {name, NULL, LQ_OPT_SET, offsetof(args, field), NULL, NULL, NULL, 0, 0, 1, help}
static const lq_opt options[] = {
    {"imatrix", NULL, LQ_OPT_STRING, offsetof(args, imatrix), "FILE", NULL, NULL, 0, 0, 0, "importance of columns: llama.cpp's file (GGUF or .dat) or statistics of `lquant calibrate`"},
    {"output-tensor-type", NULL, LQ_OPT_STRING, offsetof(args, output_type), "TYPE", NULL, NULL, 0, 0, 0, "of output.weight"},
    {"token-embedding-type", NULL, LQ_OPT_STRING, offsetof(args, embed_type), "TYPE", NULL, NULL, 0, 0, 0, "of token_embd.weight"},
    {"tensor-type", NULL, LQ_OPT_LIST, offsetof(args, tensor_type), "NAME=TYPE", NULL, NULL, 0, 0, 0, "of tensors whose name a regular expression finds, e.g. attn_q=q8_0; the first that fits counts"},
    FLAG("leave-output-tensor", leave_output, "output.weight is not quantized"),
    FLAG("pure", pure, "one type for all, no mixture"),
    FLAG("allow-requantize", requantize, "quantize what is quantized already"),
    FLAG("no-fallback", no_fallback, "refuse rows that blocks of 256 do not divide"),
    FLAG("keep-split", keep_split, NULL),
    FLAG("dry-run", dry_run, "print the plan and stop"),
    FLAG("overwrite", overwrite, "replace OUT once the new file is complete"),
    {"pre", NULL, LQ_OPT_STRING, offsetof(args, pre), "NAME", NULL, NULL, 0, 0, 0, "llama.cpp's pre-tokenizer when a folder's tokenizer is not recognised"},
    {0}};

typedef struct command { const char *in, *out, *type; char made[64]; } command;

static bool is_number(const char *s) { return *s && !s[strspn(s, "0123456789")]; }

/* IN [OUT] TYPE [THREADS] */
static lq_status positions(lq_ctx *ctx, const char **pos, size_t n, args *a, command *c) {
    if (n > 2 && is_number(pos[n - 1]) && lq_mixture_by_name(pos[n - 2])) {
        a->common.threads = (int64_t)strtol(pos[n - 1], NULL, 10);
        n--;
    }
    if (n < 2 || n > 3) return lq_fail(ctx, LQ_ERR_USAGE, "lquant quantize [flags] IN [OUT.gguf] TYPE [THREADS]: %zu arguments", n);
    c->in = pos[0];
    c->type = pos[n - 1];
    const lq_mixture *m = lq_mixture_by_name(c->type);
    if (!m && strcmp(c->type, "COPY")) return lq_fail(ctx, LQ_ERR_USAGE, "unknown type '%s'; lquant quantize --help lists them (IQ1, IQ2 and IQ3 are read, not written)", c->type);
    snprintf(c->made, sizeof c->made, "ggml-model-%s.gguf", m ? m->name : "COPY");
    c->out = n == 3 ? pos[1] : c->made;
    return LQ_OK;
}

/* attn_q=q8_0 as lq_plan_opts says it; the first of llama-quantize's rules wins, the last of ours. */
static lq_status rules(lq_ctx *ctx, const args *a, lq_strlist *out) {
    for (size_t i = a->tensor_type.n; i-- > 0;) {
        const char *rule = a->tensor_type.v[i], *eq = strrchr(rule, '=');
        const lq_mixture *m = eq ? lq_mixture_by_name(eq + 1) : NULL;
        if (!m || (m->only && m->number < 10)) return lq_fail(ctx, LQ_ERR_USAGE, "--tensor-type %s: expected NAME=TYPE", rule);
        const char *name = m->base == LQ_F32 ? "f32" : m->base == LQ_F16 ? "f16" : m->base == LQ_BF16 ? "bf16" : lq_dtypes[m->base].name;
        char *text = lq_strf("%.*s=%s", (int)(eq - rule), rule, name);
        const char **more = text ? lq_realloc(out->v, out->n * sizeof *more, (out->n + 1) * sizeof *more) : NULL;
        if (!more) return lq_free(text), lq_oom(ctx, 64);
        out->v = more;
        out->v[out->n++] = text;
    }
    return LQ_OK;
}

/* Nothing is quantized: that is a conversion. */
static lq_status floats(lq_ctx *ctx, const args *a, const command *c, lq_dtype t) {
    char *argv[12];
    int n = 0;
    argv[n++] = (char *)"--format";
    argv[n++] = (char *)"gguf";
    if (t != LQ_NONE) argv[n++] = (char *)"--dtype";
    if (t != LQ_NONE) argv[n++] = (char *)(t == LQ_F32 ? "f32" : t == LQ_F16 ? "f16" : "bf16");
    if (a->overwrite) argv[n++] = (char *)"--overwrite";
    if (a->pre) argv[n++] = (char *)"--pre", argv[n++] = (char *)a->pre;
    argv[n++] = (char *)c->in;
    argv[n++] = (char *)c->out;
    return lq_verb_convert.run(ctx, "convert", n, argv);
}

static void print_plan(void *user, const lq_plan *plan) {
    const lq_run *run = user;
    if (run->opts.dry_run) lq_plan_print(plan, stdout);
}

static void fill(lq_run *run, const args *a, const command *c) {
    lq_plan_opts *p = &run->plan_opts;
    run->in = c->in;
    run->out = c->out;
    run->on_plan = print_plan;
    run->user = run;
    run->opts.format = "gguf";
    run->opts.pre = a->pre;
    run->opts.stats = a->imatrix;
    run->opts.overwrite = a->overwrite;
    run->opts.dry_run = a->dry_run;
    p->mixture = c->type;
    p->output_type = a->output_type;
    p->embed_type = a->embed_type;
    p->pure = a->pure;
    p->leave_output = a->leave_output;
    p->no_fallback = a->no_fallback;
    p->no_requantize = !a->requantize;
}

static lq_status quantize(lq_ctx *ctx, const args *a, const command *c) {
    lq_run run = {0};
    json_t *report = NULL;
    lq_optset sets[LQ_RUN_SETS + 1];
    LQ_TRY(lq_recipe_parse(ctx, "rtn:search:signed-scales", &run.recipe));
    lq_status st = lq_opts_defaults(ctx, sets + lq_run_sets(&run, sets));
    fill(&run, a, c);
    if (!st) st = rules(ctx, a, &run.plan_opts.tensor_type);
    if (!st) st = lq_pipeline_run(ctx, &run, &report);
    if (!st && a->common.json) {
        char *text = report ? json_dumps(report, JSON_INDENT(2)) : NULL;
        if (text) puts(text);
        free(text);
    } else if (!st && !a->dry_run) {
        printf("%s: %.4f bits per weight, %.1f s, peak memory %.0f MB\n", c->out, json_real_value(json_object_get(report, "bits_per_weight")),
               json_real_value(json_object_get(report, "seconds")), (double)json_integer_value(json_object_get(report, "peak_memory")) / 1e6);
    }
    json_decref(report);
    for (size_t i = 0; i < run.plan_opts.tensor_type.n; i++) lq_free((char *)run.plan_opts.tensor_type.v[i]);
    run.plan_opts.tensor_type.n = 0;
    lq_opts_free(sets);
    lq_recipe_free(&run.recipe);
    return st;
}

static void help(const char *name, const lq_optset *sets) {
    printf("lquant %s [flags] IN [OUT.gguf] TYPE [THREADS]\n  llama-quantize's command line; IN: a GGUF or a Hugging Face folder\n\n", name);
    lq_opts_help(stdout, sets);
    printf("\ntypes:");
    for (const lq_mixture *m = lq_mixtures; m->name; m++) printf(" %s", m->name);
    printf(" COPY\n  Q3_K, Q4_K, Q5_K are Q3_K_M, Q4_K_M, Q5_K_M, and llama.cpp's numbers are understood\n"
           "\nexamples:\n  lquant quantize model-f16.gguf model-q4.gguf Q4_K_M 8\n  lquant quantize --imatrix smol.imatrix.gguf SmolLM2 smol.gguf IQ4_XS\n");
}

static lq_status run_quantize(lq_ctx *ctx, const char *name, int argc, char **argv) {
    args a = {0};
    command c = {0};
    const char *pos[5];
    size_t n;
    const lq_optset sets[] = {{options, &a, "quantize"}, {lq_common_options, &a.common, NULL}, {0}};
    lq_status st;
    LQ_TRY(lq_opts_defaults(ctx, sets));
    LQ_GO(lq_opts_parse(ctx, sets, argc, argv, pos, 4, &n));
    if (a.common.help) {
        help(name, sets);
        goto done;
    }
    LQ_GO(positions(ctx, pos, n, &a, &c));
    LQ_GO(lq_common_apply(ctx, &a.common));
    if (a.keep_split) LQ_GO(lq_fail(ctx, LQ_ERR_UNSUPPORTED, "--keep-split: one file is written"));
    const lq_mixture *m = lq_mixture_by_name(c.type);
    st = m && lq_dtypes[m->base].block > 1 ? quantize(ctx, &a, &c) : floats(ctx, &a, &c, m ? m->base : LQ_NONE);
done:
    lq_opts_free(sets);
    return st;
}

const lq_verb lq_verb_llama_quantize = {"quantize", NULL, "IN [OUT.gguf] TYPE [THREADS]", "llama-quantize's command line: mixtures of a GGUF", run_quantize};
