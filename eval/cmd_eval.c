/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant eval: perplexity and divergence of whatever the readers read. */
#include "calib/kv.h"
#include "core/verb.h"
#include "eval/report.h"

#include <stdlib.h>
#include <string.h>

typedef struct args {
    lq_common common;
    const char *file, *base, *protocol;
    int64_t ctx, chunks, kld_chunks;
    int bos, kld, decode, ggml;
    lq_kv_opts kv;
} args;

#define OFF(f) offsetof(args, f)
static const lq_opt options[] = {
    {"file", "f,text", LQ_OPT_STRING, OFF(file), "TEXT", NULL, NULL, 0, 0, 0, "text to score (plain, or zstd)"},
    {"protocol", "p", LQ_OPT_STRING, OFF(protocol), "NAME", "gptq-2048", NULL, 0, 0, 0, "how it is cut and scored, see below"},
    {"ctx", "ctx-size,seqlen,c", LQ_OPT_INT, OFF(ctx), "N", NULL, NULL, 2, 1 << 20, 0, "tokens of a chunk [the protocol's]"},
    {"chunks", "nsamples,n", LQ_OPT_INT, OFF(chunks), "N", NULL, NULL, 1, 1 << 30, 0, "score the first N chunks [all]"},
    {"base", NULL, LQ_OPT_STRING, OFF(base), "MODEL|RESULT", NULL, NULL, 0, 0, 0, "compare: a model, or a former --json"},
    {"kld", "kl-divergence", LQ_OPT_SET, OFF(kld), NULL, NULL, NULL, 0, 0, 1, "KL divergence from --base MODEL, top-1 agreement"},
    {"kld-chunks", NULL, LQ_OPT_INT, OFF(kld_chunks), "N", NULL, NULL, 1, 1 << 30, 0, "compare with --base on the first N chunks only [all]"},
    {"bos", NULL, LQ_OPT_CHOICE, OFF(bos), NULL, "auto", "auto|always|never", 0, 0, 0, "text begins with BOS; auto: as the tokenizer does"},
    {"decode", NULL, LQ_OPT_SET, OFF(decode), NULL, NULL, NULL, 0, 0, 1, "token by token: KV cache and GEMV"},
    {"activations", NULL, LQ_OPT_CHOICE, OFF(ggml), NULL, "as-stored", "as-stored|ggml", 0, 0, 0, "ggml: round what a GGUF's blocks multiply, as llama.cpp's CPU kernels do"},
    {"kv", "kv-cache-dtype,cache-type", LQ_OPT_CHOICE, OFF(kv.kind), NULL, "f32", LQ_KV_CHOICES, 0, 0, 0, "type keys and values are stored in"},
    {"kv-scales", NULL, LQ_OPT_SET, OFF(kv.fixed), NULL, NULL, NULL, 0, 0, 1, "--kv int8, fp8: the scales stored with the model, not one per token"},
    {0}};

static void help(const lq_optset *sets) {
    printf("lquant eval MODEL -f TEXT [flags]        (also: perplexity, ppl)\n\n");
    printf("Perplexity of a model on a text by a named protocol, with its standard error. MODEL: a Hugging Face\n"
           "folder, a GGUF, a quantized checkpoint or an .lqt; quantized ones run on their packed codes.\n\n");
    lq_opts_help(stdout, sets);
    printf("\nprotocols:\n");
    for (const lq_protocol *p = lq_protocols; p->name; p++) printf("  %-14s %s\n", p->name, p->what);
    printf("\nexamples:\n"
           "  lquant eval SmolLM2 -f wikitext-2-raw-test.txt\n"
           "  lquant eval SmolLM2-4bit -f wikitext-2-raw-test.txt --base SmolLM2 --kld\n"
           "  lquant eval m.gguf -f wiki.test.raw --protocol llamacpp-512 --chunks 20 --json > r.json\n");
}

/* A row of lq_protocols, or its stem with another length ("gptq-256"), which then is --ctx unless that is given. */
static lq_status settle_protocol(lq_ctx *ctx, args *a, const lq_protocol **out) {
    *out = lq_protocol_find(a->protocol);
    for (const lq_protocol *p = lq_protocols; p->name && !*out; p++) {
        size_t n = strlen(p->stem);
        char *end = NULL;
        if (strncmp(a->protocol, p->stem, n) || a->protocol[n] != '-') continue;
        long long ctx_n = strtoll(a->protocol + n + 1, &end, 10);
        if (*end || ctx_n < 2 || ctx_n > 1 << 20) continue;
        if (!a->ctx) a->ctx = ctx_n;
        *out = p;
    }
    return *out ? LQ_OK : lq_fail(ctx, LQ_ERR_USAGE, "--protocol %s: expected gptq-2048, gptq-max, llamacpp-512, or another length, gptq-256", a->protocol);
}

static lq_status check(lq_ctx *ctx, const args *a, size_t n_pos) {
    if (n_pos < 1) return lq_fail(ctx, LQ_ERR_USAGE, "eval needs a model: lquant eval MODEL -f TEXT");
    if (!a->file) return lq_fail(ctx, LQ_ERR_USAGE, "eval needs a text: -f TEXT");
    if (a->kld && !a->base) return lq_fail(ctx, LQ_ERR_USAGE, "--kld needs --base MODEL");
    if (a->kld && lq_eval_is_result(a->base)) return lq_fail(ctx, LQ_ERR_USAGE, "--kld needs a model as base, %s is a result", a->base);
    if (a->kld_chunks && !a->kld) return lq_fail(ctx, LQ_ERR_USAGE, "--kld-chunks needs --kld");
    return LQ_OK;
}

typedef struct work {
    lq_ctx *ctx;
    const args *a;
    const lq_protocol *protocol;
    lq_loaded model, base;
    lq_eval_text text;
    lq_eval_plan plan;
    lq_ppl ppl, base_ppl;
    lq_kld kld;
    lq_eval_result r;
} work;

/* A base model must see the ids the model sees. */
static lq_status same_ids(work *w, const char *path) {
    lq_eval_text t;
    LQ_TRY(lq_eval_text_load(w->ctx, w->base.tok, w->plan.protocol, path, w->a->bos, w->base.m->par.vocab, &t));
    bool same = t.ids.n == w->text.ids.n && !memcmp(t.ids.v, w->text.ids.v, t.ids.n * sizeof *t.ids.v);
    lq_eval_text_free(&t);
    return same ? LQ_OK : lq_fail(w->ctx, LQ_ERR_USAGE, "--base %s: not comparable: its tokenizer gives other ids", w->a->base);
}

static lq_status prepare(work *w, const char *model) {
    const args *a = w->a;
    const lq_protocol *p = w->protocol;
    LQ_TRY(lq_loaded_open(w->ctx, model, true, &w->model));
    if (a->ggml) LQ_TRY(lq_model_round_like_ggml(w->ctx, w->model.m));
    LQ_TRY(lq_eval_text_load(w->ctx, w->model.tok, p, a->file, a->bos, w->model.m->par.vocab, &w->text));
    LQ_TRY(lq_eval_plan_make(w->ctx, p, &w->text, (uint32_t)a->ctx, (uint32_t)a->chunks, w->model.m->par.max_ctx, &w->plan));
    w->plan.both = (uint32_t)a->kld_chunks;
    lq_log(w->ctx, LQ_LOG_INFO, "%s: %zu tokens, %u chunks of %u, %llu predictions scored", w->plan.name, w->text.ids.n, w->plan.chunks,
           w->plan.ctx, (unsigned long long)w->plan.tokens);
    if (!a->base) return LQ_OK;
    if (lq_eval_is_result(a->base)) return lq_eval_base_read(w->ctx, a->base, &w->plan, &w->text, &w->base_ppl);
    LQ_TRY(lq_loaded_open(w->ctx, a->base, true, &w->base));
    return same_ids(w, a->file);
}

static lq_status measure(work *w) {
    const args *a = w->a;
    LQ_TRY(lq_loaded_read(w->ctx, &w->model, a->common.device));
    if (a->kld) LQ_TRY(lq_loaded_read(w->ctx, &w->base, a->common.device));
    w->r.load_seconds = w->model.seconds;
    double start = lq_now();
    if (a->kld) LQ_TRY(lq_ppl_run(w->ctx, w->model.m, &a->kv, &w->text, &w->plan, a->decode, &w->ppl, w->base.m, &w->base_ppl, &w->kld));
    else LQ_TRY(lq_ppl_run(w->ctx, w->model.m, &a->kv, &w->text, &w->plan, a->decode, &w->ppl, NULL, NULL, NULL));
    w->r.seconds = lq_now() - start;
    w->r.weight = lq_weight_of(w->model.m);
    lq_loaded_close(&w->model); /* one model in memory at a time */
    if (a->base && !a->kld && w->base.m) {
        LQ_TRY(lq_loaded_read(w->ctx, &w->base, a->common.device));
        LQ_TRY(lq_ppl_run(w->ctx, w->base.m, NULL, &w->text, &w->plan, a->decode, &w->base_ppl, NULL, NULL, NULL));
    }
    return LQ_OK;
}

static lq_status show(work *w, const char *model) {
    lq_eval_result *r = &w->r;
    lq_buf out = {0};
    json_t *v = NULL;
    r->model = model;
    r->plan = &w->plan;
    r->text = &w->text;
    r->ppl = &w->ppl;
    r->decode = w->a->decode;
    r->ggml = w->a->ggml;
    r->kld = w->a->kld ? &w->kld : NULL;
    if ((r->base = w->a->base)) {
        r->base_nll = w->base_ppl.nll;
        r->base_ppl = w->base_ppl.ppl;
        r->base_ppl_stderr = w->base_ppl.ppl_stderr;
        r->diff = lq_paired_diff(w->ppl.chunk_nll, w->base_ppl.chunk_nll, w->base_ppl.chunks);
    }
    lq_status st = w->a->common.json ? lq_eval_json(w->ctx, r, &v) : lq_eval_lines(w->ctx, r, &out);
    if (!st && v) st = lq_json_dump(w->ctx, v, &out);
    if (!st && fwrite(out.v, 1, out.n, stdout) != out.n) st = lq_fail(w->ctx, LQ_ERR_IO, "stdout: cannot write");
    if (!st)
        lq_log(w->ctx, LQ_LOG_INFO, "%.1f s, %.0f tokens/s, %.1f MB of weights, %.3f bits per weight, peak memory %.0f MB", r->seconds,
               (double)w->plan.chunks * (w->plan.ctx - 1) / r->seconds, (double)r->weight.bytes / 1e6, r->weight.bpw, (double)lq_peak_rss() / 1e6);
    json_decref(v);
    lq_buf_free(&out);
    return st;
}

static lq_status run(lq_ctx *ctx, const char *name, int argc, char **argv) {
    (void)name;
    args a = {.common.devices = true};
    work w = {.ctx = ctx, .a = &a};
    const char *pos[1] = {NULL};
    size_t n_pos = 0;
    lq_optset sets[] = {{options, &a, "flags"}, {lq_common_options, &a.common, NULL}, {0}};
    lq_status st = LQ_OK;
    LQ_GO(lq_verb_begin(ctx, sets, &a.common, argc, argv, pos, 1, &n_pos, help));
    if (a.common.help) goto done;
    LQ_GO(lq_loaded_device(ctx, a.common.device));
    LQ_GO(check(ctx, &a, n_pos));
    LQ_GO(settle_protocol(ctx, &a, &w.protocol));
    LQ_GO(prepare(&w, pos[0]));
    LQ_GO(measure(&w));
    LQ_GO(show(&w, pos[0]));
done:
    lq_loaded_close(&w.model);
    lq_loaded_close(&w.base);
    lq_eval_text_free(&w.text);
    lq_ppl_free(&w.ppl);
    lq_ppl_free(&w.base_ppl);
    lq_opts_free(sets);
    return st;
}

const lq_verb lq_verb_eval = {"eval", "perplexity,ppl", "MODEL -f TEXT", "perplexity and divergence of a model on a text", run};
