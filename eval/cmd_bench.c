/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant bench: how fast a model runs here. */
#include "calib/held.h"
#include "calib/kv.h"
#include "core/thread.h"
#include "core/verb.h"
#include "eval/bench.h"
#include "eval/loaded.h"

#include <stdlib.h>
#include <string.h>

typedef struct args {
    lq_common common;
    const char *ctx, *batch;
    int64_t steps, prompts, seed;
    int ggml;
    lq_kv_opts kv;
} args;

#define OFF(f) offsetof(args, f)
static const lq_opt options[] = {
    {"ctx", "ctx-size,c,p,n-prompt", LQ_OPT_STRING, OFF(ctx), "N,N", "1024", NULL, 0, 0, 0, "tokens of the prompt; decoding goes on from there"},
    {"batch", "b", LQ_OPT_STRING, OFF(batch), "N,N", "1,4", NULL, 0, 0, 0, "sequences decoded at once"},
    {"n-gen", "n,steps", LQ_OPT_INT, OFF(steps), "N", "32", NULL, 1, 1 << 16, 0, "decoding steps timed"},
    {"repetitions", "r", LQ_OPT_INT, OFF(prompts), "N", "3", NULL, 1, 1 << 16, 0, "prompts timed"},
    {"kv", "kv-cache-dtype,cache-type", LQ_OPT_CHOICE, OFF(kv.kind), NULL, "f32", LQ_KV_CHOICES, 0, 0, 0, "type keys and values are stored in"},
    {"kv-scales", NULL, LQ_OPT_SET, OFF(kv.fixed), NULL, NULL, NULL, 0, 0, 1, "--kv int8, fp8: the scales stored with the model, not one per token"},
    {"activations", NULL, LQ_OPT_CHOICE, OFF(ggml), NULL, "as-stored", "as-stored|ggml", 0, 0, 0, "ggml: round what a GGUF's blocks multiply, as llama.cpp's CPU kernels do"},
    {"seed", "s", LQ_OPT_INT, OFF(seed), "N", "0", NULL, 0, 9e15, 0, "of the token ids"},
    {0}};

static void help(const lq_optset *sets) {
    printf("lquant bench MODEL [flags]\n\n"
           "Time to the first token, tokens per second of prompts and of decoding, and how much of the bandwidth memory\n"
           "gives in the same run the weights, keys and values take. least: the fastest repetition. ms: of a decoding step,\n"
           "half of them and 99 of a hundred take no longer. On a device the time by class is that of its own clock; one whose\n"
           "kernels may begin early decodes both ways (ahead).\n\n");
    lq_opts_help(stdout, sets);
    printf("\nexamples:\n"
           "  lquant bench SmolLM2-4bit\n"
           "  lquant bench SmolLM2-4bit --ctx 1024,8000 --batch 1,2,4,8 --json > b.json\n"
           "  lquant bench m.gguf --ctx 64 --kv int8 -t 1\n"
           "  lquant bench m.gguf --activations ggml\n");
}

/* "1,2,4" */
static lq_status numbers(lq_ctx *ctx, const char *flag, const char *text, uint32_t most, uint32_t *out, uint32_t *n) {
    const char *at = text;
    for (*n = 0; *n < LQ_BENCH_MOST; at++) {
        char *end;
        unsigned long v = *at >= '0' && *at <= '9' ? strtoul(at, &end, 10) : 0;
        if (!v || v > most) break;
        out[(*n)++] = (uint32_t)v;
        at = end;
        if (!*at) return LQ_OK;
        if (*at != ',') break;
    }
    return lq_fail(ctx, LQ_ERR_USAGE, "--%s %s: expected numbers from 1 to %u with commas between them, at most %d", flag, text, most, LQ_BENCH_MOST);
}

static lq_status settle(lq_ctx *ctx, const args *a, lq_bench_opts *o) {
    *o = (lq_bench_opts){.steps = (uint32_t)a->steps, .prompts = (uint32_t)a->prompts, .seed = (uint64_t)a->seed, .kv = a->kv};
    LQ_TRY(numbers(ctx, "ctx", a->ctx, 1 << 20, o->ctx, &o->n_ctx));
    return numbers(ctx, "batch", a->batch, LQ_BATCH, o->batch, &o->n_batch);
}

static void show_share(const char *name, double part, double whole) { printf("  %s %4.1f%%", name, whole > 0 ? 100 * part / whole : 0.0); }

static void show_row(const lq_bench_row *r) {
    char joules[32] = "-", share[32] = "-";
    double all = r->head;
    for (int i = 0; i < LQ_CLOCKS; i++) all += r->clock[i];
    if (r->joules >= 0) snprintf(joules, sizeof joules, "%.3f", r->joules);
    if (r->bandwidth > 0) snprintf(share, sizeof share, "%.1f%%", 100 * r->bandwidth);
    if (r->decode) printf("decode %6u  batch %3u  %9.2f %9.2f  %8.2f %8.2f  %9.2f  %7s  %8s", r->ctx, r->batch, lq_bench_rate(r, r->least), lq_bench_rate(r, r->median), 1e3 * r->median, 1e3 * r->most, (double)r->bytes / r->batch / 1e6, share, joules);
    else printf("prompt %6u  first %5.2fs %8.2f %9.2f  %8s %8s  %9s  %7s  %8s", r->ctx, r->least, lq_bench_rate(r, r->least), lq_bench_rate(r, r->median), "-", "-", "-", "-", joules);
    if (all <= 0) printf("  -");
    if (r->kernels) printf(", %u kernels a step", r->kernels);
    if (r->ahead) printf(", ahead");
    if (all > 0) show_share(" linear", r->clock[LQ_CLOCK_LINEAR], all);
    if (all > 0) show_share("attention", r->clock[LQ_CLOCK_ATTENTION], all);
    if (all > 0) show_share("other", r->clock[LQ_CLOCK_OTHER], all);
    if (all > 0) show_share("head", r->head, all);
    printf("\n");
}

static const char *kernels_of(const lq_model *m) { return m->held ? m->held->d->name : m->k->name; }

static void show(const lq_bench *b, const lq_loaded *l, const char *model) {
    printf("%s: %s, %d threads, kernels %s, %.1f MB of weights a step\n", model, l->m->arch->name, lq_threads(), kernels_of(l->m), (double)b->weights / 1e6);
    printf("%-25s %9s %9s  %8s %8s  %9s  %7s  %8s   time by class\n", "tokens/s", "least", "median", "ms p50", "p99", "MB/token", "of read", "J/token");
    for (uint32_t i = 0; i < b->n; i++) show_row(&b->row[i]);
    if (!l->m->held) printf("read bandwidth %.2f GB/s (touching every line %.2f, memchr %.2f)", b->read / 1e9, b->loop[0] / 1e9, b->loop[1] / 1e9);
    if (l->m->held) printf("device %s reads %.2f GB/s, copies %.2f (both ways)", l->m->held->d->name, b->loop[0] / 1e9, b->loop[1] / 1e9);
    if (b->load[0] >= 0) printf("; load average %.2f %.2f %.2f", b->load[0], b->load[1], b->load[2]);
    printf("\n");
}

static json_t *row_json(const lq_bench_row *r) {
    json_t *v = json_pack("{s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:o, s:{s:f, s:f, s:f, s:f}}", "kind", r->decode ? "decode" : "prompt", "ctx",
                          (json_int_t)r->ctx, "batch", (json_int_t)r->batch, "repetitions", (json_int_t)r->reps, "seconds_least", r->least, "seconds_median", r->median, "seconds_p99", r->most,
                          "tokens_per_second_best", lq_bench_rate(r, r->least), "tokens_per_second_median", lq_bench_rate(r, r->median), "joules_per_token",
                          r->joules < 0 ? json_null() : json_real(r->joules), "seconds_by_class", "linear", r->clock[LQ_CLOCK_LINEAR], "attention", r->clock[LQ_CLOCK_ATTENTION],
                          "other", r->clock[LQ_CLOCK_OTHER], "head", r->head);
    if (v && r->ahead) json_object_set_new(v, "ahead", json_true());
    if (v && r->decode) {
        json_object_set_new(v, "bytes_per_token", json_real((double)r->bytes / r->batch));
        if (r->kernels) json_object_set_new(v, "kernels_per_step", json_integer(r->kernels));
        json_object_set_new(v, "bandwidth_share", r->bandwidth > 0 ? json_real(r->bandwidth) : json_null());
    } else if (v) json_object_set_new(v, "first_token_seconds", json_real(r->least));
    return v;
}

static lq_status show_json(lq_ctx *ctx, const lq_bench *b, const lq_loaded *l, const char *model, bool ggml) {
    json_t *rows = json_array(), *load = json_array();
    for (uint32_t i = 0; i < b->n; i++) json_array_append_new(rows, row_json(&b->row[i]));
    for (int i = 0; i < 3 && b->load[0] >= 0; i++) json_array_append_new(load, json_real(b->load[i]));
    json_t *v = json_pack("{s:i, s:s, s:s, s:i, s:s, s:I, s:f, s:f, s:f, s:o, s:o}", "schema", 1, "model", model, "arch", l->m->arch->name, "threads", lq_threads(), "kernels",
                          kernels_of(l->m), "weight_bytes_per_step", (json_int_t)b->weights, "read_bandwidth", b->read, "read_touch", b->loop[0], "read_memchr", b->loop[1],
                          "load_average", load, "rows", rows);
    lq_buf out = {0};
    if (v && l->m->held) {
        json_object_del(v, "read_touch");
        json_object_del(v, "read_memchr");
        json_object_set_new(v, "device_read", json_real(b->loop[0]));
        json_object_set_new(v, "device_copy", json_real(b->loop[1]));
    }
    if (v && ggml) json_object_set_new(v, "activations", json_string("ggml"));
    lq_status st = v ? lq_json_dump(ctx, v, &out) : lq_oom(ctx, 1024);
    if (!st && fwrite(out.v, 1, out.n, stdout) != out.n) st = lq_fail(ctx, LQ_ERR_IO, "stdout: cannot write");
    json_decref(v);
    lq_buf_free(&out);
    return st;
}

static lq_status measure(lq_ctx *ctx, const args *a, const lq_bench_opts *o, const char *model) {
    lq_loaded l;
    lq_bench *b = LQ_NEW(lq_bench);
    if (!b) return lq_oom(ctx, sizeof *b);
    lq_status st = lq_loaded_open(ctx, model, false, &l);
    if (!st) {
        if (a->ggml) st = lq_model_round_like_ggml(ctx, l.m);
        if (!st) st = lq_loaded_read(ctx, &l, a->common.device);
        if (!st) st = lq_bench_run(ctx, l.m, o, b);
        if (!st && a->common.json) st = show_json(ctx, b, &l, model, a->ggml);
        else if (!st) show(b, &l, model);
        lq_loaded_close(&l);
    }
    lq_free(b);
    return st;
}

static lq_status run(lq_ctx *ctx, const char *name, int argc, char **argv) {
    (void)name;
    args a = {.common.devices = true};
    lq_bench_opts o;
    const char *pos[1] = {NULL};
    size_t n_pos = 0;
    lq_optset sets[] = {{options, &a, "flags"}, {lq_common_options, &a.common, NULL}, {0}};
    lq_status st = LQ_OK;
    LQ_GO(lq_verb_begin(ctx, sets, &a.common, argc, argv, pos, 1, &n_pos, help));
    if (a.common.help) goto done;
    LQ_GO(lq_loaded_device(ctx, a.common.device));
    if (!n_pos) LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "bench needs a model: lquant bench MODEL"));
    LQ_GO(settle(ctx, &a, &o));
    LQ_GO(measure(ctx, &a, &o, pos[0]));
done:
    lq_opts_free(sets);
    return st;
}

const lq_verb lq_verb_bench = {"bench", NULL, "MODEL", "tokens per second, and how much of memory's bandwidth that is", run};
