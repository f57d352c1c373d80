/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant verify: what a runtime would choke on, one line each. */
#include "core/verb.h"
#include "eval/verify.h"

#include <inttypes.h>

typedef struct args {
    lq_common common;
    int headers;
} args;

static const lq_opt options[] = {
    {"headers-only", NULL, LQ_OPT_SET, offsetof(args, headers), NULL, NULL, NULL, 0, 0, 1, "headers, configuration and side files; no tensor is read"},
    {0}};

static void help(const lq_optset *sets) {
    printf("lquant verify PATH [flags]\n\n"
           "Everything a runtime would choke on in a checkpoint, anybody's, in any format that is read: headers, index,\n"
           "hashes, configuration against tensors, token ids, side files; every block is decoded. One line per finding;\n"
           "exit 3 when one is an error, else 0.\n\n");
    lq_opts_help(stdout, sets);
    printf("\nexamples:\n"
           "  lquant verify SmolLM2-4bit\n"
           "  lquant verify model.gguf --json | jq '.findings[].text'\n"
           "  lquant verify --headers-only Llama-70B-AWQ && vllm serve Llama-70B-AWQ\n");
}

static void print_text(const lq_verified *o, const char *path) {
    for (size_t i = 0; i < o->n; i++) printf("%-7s  %-12s %s: %s\n", lq_severities[o->v[i].severity], o->v[i].code, o->v[i].where, o->v[i].text);
    printf("%s: %s, %zu tensors, %zu quantized, %" PRIu64 " weights decoded; %zu errors, %zu warnings, %zu notes\n", path, *o->format ? o->format : "not readable", o->tensors,
           o->quantized, o->weights, o->count[LQ_SEV_ERROR], o->count[LQ_SEV_WARNING], o->count[LQ_SEV_NOTE]);
}

static lq_status verify_path(lq_ctx *ctx, const args *a, const char *path) {
    lq_verified o;
    json_t *v = NULL;
    lq_buf text = {0};
    lq_status st;
    LQ_GO(lq_verify(ctx, path, !a->headers, &o));
    if (a->common.json) {
        v = lq_verified_json(&o, path);
        if (!v) LQ_GO(lq_oom(ctx, 1024));
        LQ_GO(lq_json_dump(ctx, v, &text));
        if (fwrite(text.v, 1, text.n, stdout) != text.n) LQ_GO(lq_fail(ctx, LQ_ERR_IO, "stdout: cannot write"));
    } else {
        print_text(&o, path);
    }
    if (o.count[LQ_SEV_ERROR]) st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: %zu errors", path, o.count[LQ_SEV_ERROR]);
done:
    lq_buf_free(&text);
    json_decref(v);
    lq_verified_free(&o);
    return st;
}

static lq_status run(lq_ctx *ctx, const char *name, int argc, char **argv) {
    (void)name;
    args a = {0};
    const char *pos[1] = {NULL};
    size_t n = 0;
    lq_optset sets[] = {{options, &a, "flags"}, {lq_common_options, &a.common, NULL}, {0}};
    LQ_TRY(lq_verb_begin(ctx, sets, &a.common, argc, argv, pos, 1, &n, help));
    if (a.common.help) return LQ_OK;
    if (!n) return lq_fail(ctx, LQ_ERR_USAGE, "verify needs a path: lquant verify PATH");
    return verify_path(ctx, &a, pos[0]);
}

const lq_verb lq_verb_verify = {"verify", "check", "PATH", "what a runtime would choke on in a checkpoint", run};
