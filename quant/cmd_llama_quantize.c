/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant quantize: llama-quantize's own command line. IN may be a Hugging Face folder too. */
#include "core/verb.h"
#include "quant/mixture.h"
#include "formats/gguf_write.h"
#include "quant/pipeline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct args {
    lq_common common;
    const char *imatrix, *output_type, *embed_type, *pre, *type_file, *prune;
    lq_strlist tensor_type, override_kv, include, exclude;
    int64_t buffer;
    int pure, requantize, leave_output, no_fallback, dry_run, overwrite, keep_split, resume;
} args;

#define FLAG(name, field, help) {name, NULL, LQ_OPT_SET, offsetof(args, field), NULL, NULL, NULL, 0, 0, 1, help}
static const lq_opt options[] = {
    {"imatrix", NULL, LQ_OPT_STRING, offsetof(args, imatrix), "FILE", NULL, NULL, 0, 0, 0, "importance of columns: llama.cpp's file (GGUF or .dat) or `lquant calibrate`'s"},
    {"output-tensor-type", NULL, LQ_OPT_STRING, offsetof(args, output_type), "TYPE", NULL, NULL, 0, 0, 0, "of output.weight"},
    {"token-embedding-type", NULL, LQ_OPT_STRING, offsetof(args, embed_type), "TYPE", NULL, NULL, 0, 0, 0, "of token_embd.weight"},
    {"tensor-type", NULL, LQ_OPT_LIST, offsetof(args, tensor_type), "NAME=TYPE", NULL, NULL, 0, 0, 0, "of tensors whose name a regular expression finds, e.g. attn_q=q8_0; the first counts"},
    {"tensor-type-file", NULL, LQ_OPT_STRING, offsetof(args, type_file), "FILE", NULL, NULL, 0, 0, 0, "such rules from a file, between spaces or lines; behind those of the command line"},
    {"include-weights", NULL, LQ_OPT_LIST, offsetof(args, include), "NAME", NULL, NULL, 0, 0, 0, "the importance matrix is used for tensors whose name holds it alone"},
    {"exclude-weights", NULL, LQ_OPT_LIST, offsetof(args, exclude), "NAME", NULL, NULL, 0, 0, 0, "... for all but those"},
    {"override-kv", NULL, LQ_OPT_LIST, offsetof(args, override_kv), "KEY=TYPE:VALUE", NULL, NULL, 0, 0, 0, "another value of a metadata key; TYPE: int, float, bool, str; repeatable"},
    {"prune-layers", NULL, LQ_OPT_STRING, offsetof(args, prune), "L0,L1", NULL, NULL, 0, 0, 0, NULL},
    {"max-buffer-size", NULL, LQ_OPT_INT, offsetof(args, buffer), "MIB", NULL, NULL, 1, 1 << 30, 0, NULL},
    FLAG("leave-output-tensor", leave_output, "output.weight is not quantized"),
    FLAG("pure", pure, "one type for all, no mixture"),
    FLAG("allow-requantize", requantize, "quantize what is quantized already"),
    FLAG("no-fallback", no_fallback, "refuse rows that blocks of 256 do not divide"),
    FLAG("keep-split", keep_split, "in parts as IN is: OUT-00001-of-0000N.gguf ..."),
    FLAG("dry-run", dry_run, "print the plan and stop"),
    {"resume", NULL, LQ_OPT_CHOICE, offsetof(args, resume), NULL, "auto", "auto|never|only", 0, 0, 0, "continue an interrupted run"},
    FLAG("overwrite", overwrite, "replace OUT once the new file is complete"),
    {"pre", NULL, LQ_OPT_STRING, offsetof(args, pre), "NAME", NULL, NULL, 0, 0, 0, "llama.cpp's pre-tokenizer when a folder's tokenizer is not recognised"},
    {0}};

typedef struct command { const char *in, *out, *type; char made[4096]; } command;

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
    snprintf(c->made, sizeof c->made, "%.*sggml-model-%s.gguf", (int)(lq_path_base(c->in) - c->in), c->in, m ? m->name : "COPY"); /* beside IN, as there */
    c->out = n == 3 ? pos[1] : c->made;
    return LQ_OK;
}

static bool push(lq_strlist *list, char *text) {
    const char **more = text ? lq_realloc(list->v, list->n * sizeof *more, (list->n + 1) * sizeof *more) : NULL;
    if (!more) return lq_free(text), false;
    list->v = more;
    list->v[list->n++] = text;
    return true;
}

static void free_texts(lq_strlist *list) {
    for (size_t i = 0; i < list->n; i++) lq_free((char *)list->v[i]);
    lq_free(list->v);
    *list = (lq_strlist){0};
}

/* attn_q=q8_0 as lq_plan_opts says it. */
static lq_status add_rule(lq_ctx *ctx, const char *rule, lq_strlist *out) {
    const char *eq = strrchr(rule, '=');
    const lq_mixture *m = eq ? lq_mixture_by_name(eq + 1) : NULL;
    if (!m || (m->only && m->number < 10)) return lq_fail(ctx, LQ_ERR_USAGE, "--tensor-type %s: expected NAME=TYPE", rule);
    const char *name = m->base == LQ_F32 ? "f32" : m->base == LQ_F16 ? "f16" : m->base == LQ_BF16 ? "bf16" : lq_dtypes[m->base].name;
    return push(out, lq_strf("%.*s=%s", (int)(eq - rule), rule, name)) ? LQ_OK : lq_oom(ctx, 64);
}

static lq_status rules_of_file(lq_ctx *ctx, const char *path, lq_strlist *out) {
    lq_buf text;
    LQ_TRY(lq_file_slurp(ctx, path, 1 << 24, &text));
    lq_status st = LQ_OK;
    for (const char *p = text.v + strspn(text.v, " \t\r\n"); *p && !st; p += strspn(p, " \t\r\n")) {
        size_t n = strcspn(p, " \t\r\n");
        if (!push(out, lq_strf("%.*s", (int)n, p))) st = lq_oom(ctx, n);
        p += n;
    }
    lq_buf_free(&text);
    return st;
}

/* The first of llama-quantize's rules wins, the last of ours. */
static lq_status rules(lq_ctx *ctx, const args *a, lq_strlist *out) {
    lq_strlist more = {0};
    lq_status st = a->type_file ? rules_of_file(ctx, a->type_file, &more) : LQ_OK;
    for (size_t i = more.n; i-- > 0 && !st;) st = add_rule(ctx, more.v[i], out);
    for (size_t i = a->tensor_type.n; i-- > 0 && !st;) st = add_rule(ctx, a->tensor_type.v[i], out);
    free_texts(&more);
    return st;
}

/* Nothing is quantized: that is a conversion. */
static lq_status floats(lq_ctx *ctx, const args *a, const command *c, lq_dtype t) {
    char **argv = LQ_NEWN(char *, 12 + 2 * a->override_kv.n);
    int n = 0;
    if (!argv) return lq_oom(ctx, 64);
    argv[n++] = (char *)"--format";
    argv[n++] = (char *)"gguf";
    if (t != LQ_NONE) argv[n++] = (char *)"--dtype";
    if (t != LQ_NONE) argv[n++] = (char *)(t == LQ_F32 ? "f32" : t == LQ_F16 ? "f16" : "bf16");
    if (a->overwrite) argv[n++] = (char *)"--overwrite";
    if (a->pre) argv[n++] = (char *)"--pre", argv[n++] = (char *)a->pre;
    for (size_t i = 0; i < a->override_kv.n; i++) argv[n++] = (char *)"--override-kv", argv[n++] = (char *)a->override_kv.v[i];
    argv[n++] = (char *)c->in;
    argv[n++] = (char *)c->out;
    lq_status st = lq_verb_convert.run(ctx, "convert", n, argv);
    lq_free(argv);
    return st;
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
    run->opts.override_kv = a->override_kv;
    run->opts.include = a->include;
    run->opts.exclude = a->exclude;
    run->opts.stats = a->imatrix;
    run->opts.overwrite = a->overwrite;
    run->opts.dry_run = a->dry_run;
    run->opts.resume = a->resume;
    p->mixture = c->type;
    p->output_type = a->output_type;
    p->embed_type = a->embed_type;
    p->pure = a->pure;
    p->leave_output = a->leave_output;
    p->no_fallback = a->no_fallback;
    p->no_requantize = !a->requantize;
    p->requantize = a->requantize;
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
    free_texts(&run.plan_opts.tensor_type);
    run.opts.override_kv = run.opts.include = run.opts.exclude = (lq_strlist){0}; /* borrowed */
    lq_opts_free(sets);
    lq_recipe_free(&run.recipe);
    return st;
}

/* ---- --keep-split ---- */

/* The files IN lies in; one that is not split, a folder: none. */
static lq_status parts_of(lq_ctx *ctx, const char *in, lq_source **src, size_t *n) {
    LQ_TRY(lq_source_open(ctx, in, src));
    *n = (*src)->gguf && (*src)->n_weight_files > 1 ? (*src)->n_weight_files : 0;
    if (!*n) lq_log(ctx, LQ_LOG_INFO, "--keep-split: %s is in one part, and so is the result", in);
    return LQ_OK;
}

/* Before any work: names that are taken. */
static lq_status names_free(lq_ctx *ctx, const args *a, const command *c, size_t n) {
    for (size_t i = 0; i < n && !a->overwrite; i++) {
        char *name = lq_gguf_part_name(c->out, i, n);
        if (!name) return lq_oom(ctx, 256);
        bool taken = lq_path_exists(name);
        if (taken) lq_fail(ctx, LQ_ERR_IO, "%s exists (--overwrite replaces it)", name);
        lq_free(name);
        if (taken) return LQ_ERR_IO;
    }
    return LQ_OK;
}

static lq_status work(lq_ctx *ctx, const args *a, const command *c) {
    const lq_mixture *m = lq_mixture_by_name(c->type);
    lq_source *src = NULL;
    size_t n = 0;
    lq_status st = LQ_OK;
    if (a->keep_split) LQ_GO(parts_of(ctx, c->in, &src, &n));
    LQ_GO(names_free(ctx, a, c, n));
    LQ_GO(m && lq_dtypes[m->base].block > 1 ? quantize(ctx, a, c) : floats(ctx, a, c, m ? m->base : LQ_NONE));
    if (n && !a->dry_run) st = lq_gguf_split_like(ctx, c->out, src->weight_files, n, a->overwrite);
done:
    lq_source_free(&src);
    return st;
}

static void help(const char *name, const lq_optset *sets) {
    printf("lquant %s [flags] IN [OUT.gguf] TYPE [THREADS]\n  llama-quantize's command line; IN: a GGUF or a Hugging Face folder\n\n", name);
    lq_opts_help(stdout, sets);
    printf("\ntypes:");
    for (const lq_mixture *m = lq_mixtures; m->name; m++) printf("%s %s", (m - lq_mixtures) % 16 ? "" : "\n ", m->name);
    printf(" COPY\n  Q3_K, Q4_K, Q5_K are Q3_K_M, Q4_K_M, Q5_K_M, and llama.cpp's numbers are understood\n"
           "\nexamples:\n  lquant quantize model-f16.gguf model-q4.gguf Q4_K_M 8\n  lquant quantize --imatrix smol.imatrix.gguf SmolLM2 smol.gguf IQ4_XS\n"
           "  lquant quantize --tensor-type attn_v=q6_k --output-tensor-type q8_0 SmolLM2 smol.gguf Q4_K_S\n");
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
    if (a.prune) LQ_GO(lq_fail(ctx, LQ_ERR_UNSUPPORTED, "--prune-layers: lquant leaves no block of a model out"));
    st = work(ctx, &a, &c);
done:
    lq_opts_free(sets);
    return st;
}

const lq_verb lq_verb_llama_quantize = {"quantize", NULL, "IN [OUT.gguf] TYPE [THREADS]", "llama-quantize's command line: mixtures of a GGUF", run_quantize};
