/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant inspect: what a checkpoint holds, from its headers. */
#include "core/verb.h"
#include "eval/histogram.h"
#include "eval/inspect.h"

typedef struct args {
    lq_common common;
    int summary, histogram;
} args;

static const lq_opt options[] = {
    {"summary", NULL, LQ_OPT_SET, offsetof(args, summary), NULL, NULL, NULL, 0, 0, 1, "no line per tensor"},
    {"histogram", NULL, LQ_OPT_SET, offsetof(args, histogram), NULL, NULL, NULL, 0, 0, 1, "how scales and codes are spread, by type (reads every quantized tensor)"},
    {0}};

static void help(const lq_optset *sets) {
    printf("lquant inspect PATH [flags]        (also: show, dump)\n\n"
           "Names, shapes, types, bits per weight, configuration and provenance of a model, from headers alone (but\n"
           "--histogram).\n\n");
    lq_opts_help(stdout, sets);
    printf("\nexamples:\n"
           "  lquant inspect SmolLM2-4bit\n"
           "  lquant inspect m.gguf --summary\n"
           "  lquant inspect SmolLM2-4bit --json | jq .bits_per_weight\n");
}

static lq_status inspect(lq_ctx *ctx, const args *a, const char *path) {
    lq_source *src = NULL;
    lq_model *m = NULL;
    json_t *v = NULL, *scales = NULL;
    lq_buf out = {0};
    lq_status st;
    LQ_GO(lq_source_open(ctx, path, &src));
    if (lq_model_open(ctx, src, true, &m)) lq_log(ctx, LQ_LOG_WARN, "%s", ctx->msg); /* a file of tensors is worth showing too */
    LQ_GO(lq_inspect_json(ctx, src, m, &v));
    if (a->histogram) LQ_GO(lq_histogram_json(ctx, src, &scales));
    if (a->histogram && a->common.json && json_object_set(v, "histogram", scales)) LQ_GO(lq_oom(ctx, 256));
    LQ_GO(a->common.json ? lq_json_dump(ctx, v, &out) : lq_inspect_text(ctx, v, !a->summary, &out));
    if (a->histogram && !a->common.json) LQ_GO(lq_histogram_text(ctx, scales, &out));
    if (fwrite(out.v, 1, out.n, stdout) != out.n) st = lq_fail(ctx, LQ_ERR_IO, "stdout: cannot write");
done:
    lq_buf_free(&out);
    json_decref(v);
    json_decref(scales);
    lq_model_free(&m);
    lq_source_free(&src);
    return st;
}

static lq_status run(lq_ctx *ctx, const char *name, int argc, char **argv) {
    (void)name;
    args a = {0};
    const char *pos[1] = {NULL};
    size_t n_pos = 0;
    lq_optset sets[] = {{options, &a, "flags"}, {lq_common_options, &a.common, NULL}, {0}};
    lq_status st = LQ_OK;
    LQ_GO(lq_verb_begin(ctx, sets, &a.common, argc, argv, pos, 1, &n_pos, help));
    if (a.common.help) goto done;
    if (!n_pos) LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "inspect needs a path: lquant inspect PATH"));
    LQ_GO(inspect(ctx, &a, pos[0]));
done:
    lq_opts_free(sets);
    return st;
}

const lq_verb lq_verb_inspect = {"inspect", "show,dump", "PATH", "what a model or checkpoint holds", run};
