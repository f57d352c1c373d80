/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant run: a text continued, as a smoke test of a checkpoint. */
#include "calib/chat.h"
#include "calib/kv.h"
#include "core/verb.h"
#include "eval/generate.h"

#include <string.h>

typedef struct args {
    lq_common common;
    const char *prompt;
    int64_t n, seed;
    double temp;
    int chat;
    lq_kv_opts kv;
} args;

#define OFF(f) offsetof(args, f)
static const lq_opt options[] = {
    {"prompt", "p", LQ_OPT_STRING, OFF(prompt), "TEXT", NULL, NULL, 0, 0, 0, "text to continue"},
    {"n-predict", "n,max-tokens,predict", LQ_OPT_INT, OFF(n), "N", "32", NULL, 1, 1 << 20, 0, "tokens to make at most"},
    {"chat", "cnv", LQ_OPT_SET, OFF(chat), NULL, NULL, NULL, 0, 0, 1, "the prompt is a user's message, through the chat template"},
    {"temp", "temperature", LQ_OPT_REAL, OFF(temp), "X", "0", NULL, 0, 100, 0, "0: always the most likely token; else sample"},
    {"kv", "kv-cache-dtype,cache-type", LQ_OPT_CHOICE, OFF(kv.kind), NULL, "f32", LQ_KV_CHOICES, 0, 0, 0, "type keys and values are stored in"},
    {"kv-scales", NULL, LQ_OPT_SET, OFF(kv.fixed), NULL, NULL, NULL, 0, 0, 1, "--kv int8, fp8: the scales stored with the model, not one per token"},
    {"seed", "s", LQ_OPT_INT, OFF(seed), "N", "0", NULL, 0, 9e15, 0, "of the sampling"},
    {0}};

static void help(const lq_optset *sets) {
    printf("lquant run MODEL -p TEXT [flags]        (also: generate)\n\n"
           "Continues a text: a smoke test of a checkpoint. The text goes to stdout as it is made.\n\n");
    lq_opts_help(stdout, sets);
    printf("\nexamples:\n"
           "  lquant run SmolLM2-4bit -p \"The capital of France is\" -n 32\n"
           "  lquant run SmolLM2-4bit -p \"What is a prime number?\" --chat -n 100\n"
           "  lquant run SmolLM2-4bit -p \"Once upon a time\" --temp 0.8 --seed 7 --json\n");
}

static lq_status chat_prompt(lq_ctx *ctx, const lq_loaded *l, const char *prompt, lq_ids *ids) {
    lq_buf tmpl = {0}, text = {0};
    const char *bos = lq_tokenizer_token(l->tok, lq_tokenizer_bos(l->tok)), *eos = lq_tokenizer_token(l->tok, lq_tokenizer_eos(l->tok));
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", prompt);
    lq_status st = messages ? LQ_OK : lq_fail(ctx, LQ_ERR_USAGE, "the prompt is not UTF-8");
    if (!st) st = lq_chat_template(ctx, l->src, &tmpl);
    if (!st && !tmpl.v) st = lq_fail(ctx, LQ_ERR_UNSUPPORTED, "--chat: the model has no chat template");
    if (!st) st = lq_chat_render(ctx, tmpl.v, tmpl.n, messages, bos ? bos : "", eos ? eos : "", true, &text);
    if (!st) st = lq_tokenizer_encode(ctx, l->tok, text.v ? text.v : "", text.n, false, true, ids);
    json_decref(messages);
    lq_buf_free(&tmpl);
    lq_buf_free(&text);
    return st;
}

static void to_stdout(void *user, const char *text, size_t n) {
    (void)user;
    fwrite(text, 1, n, stdout);
    fflush(stdout);
}

static lq_status show_json(lq_ctx *ctx, const char *model, const args *a, const lq_ids *prompt, const lq_gen *g) {
    json_t *ids = json_array();
    for (size_t i = 0; i < g->ids.n; i++) json_array_append_new(ids, json_integer(g->ids.v[i]));
    json_t *text = json_stringn(g->text.v ? g->text.v : "", g->text.n); /* NULL when the bytes are not UTF-8: null */
    json_t *v = json_pack("{s:i, s:s, s:s, s:I, s:o, s:o, s:s, s:f, s:f, s:f}", "schema", 1, "model", model, "prompt", a->prompt,
                          "prompt_tokens", (json_int_t)prompt->n, "ids", ids, "text", text ? text : json_null(), "stopped",
                          g->stopped ? "end" : "length", "prefill_seconds", g->prefill_seconds, "decode_seconds", g->decode_seconds,
                          "tokens_per_second", g->decode_seconds > 0 ? (double)g->ids.n / g->decode_seconds : 0.0);
    lq_buf out = {0};
    lq_status st = v ? lq_json_dump(ctx, v, &out) : lq_oom(ctx, 1024);
    if (!st && fwrite(out.v, 1, out.n, stdout) != out.n) st = lq_fail(ctx, LQ_ERR_IO, "stdout: cannot write");
    json_decref(v);
    lq_buf_free(&out);
    return st;
}

static lq_status generate(lq_ctx *ctx, const args *a, const char *model) {
    lq_loaded l;
    lq_ids prompt = {0};
    lq_gen g = {0};
    lq_gen_opts o = {.n = (uint32_t)a->n, .temp = a->temp, .seed = (uint64_t)a->seed, .kv = a->kv, .emit = a->common.json ? NULL : to_stdout};
    lq_status st = lq_loaded_open(ctx, model, true, &l);
    if (st) return st;
    if (a->chat) LQ_GO(chat_prompt(ctx, &l, a->prompt, &prompt));
    else LQ_GO(lq_tokenizer_encode(ctx, l.tok, a->prompt, strlen(a->prompt), true, true, &prompt));
    LQ_GO(lq_loaded_read(ctx, &l, a->common.device));
    LQ_GO(lq_generate(ctx, &l, &prompt, &o, &g));
    if (a->common.json) LQ_GO(show_json(ctx, model, a, &prompt, &g));
    else printf("\n");
    lq_log(ctx, LQ_LOG_INFO, "prompt %zu tokens, %.1f tokens/s; made %zu, %.1f tokens/s", prompt.n,
           g.prefill_seconds > 0 ? (double)prompt.n / g.prefill_seconds : 0, g.ids.n, g.decode_seconds > 0 ? (double)g.ids.n / g.decode_seconds : 0);
done:
    lq_gen_free(&g);
    lq_ids_free(&prompt);
    lq_loaded_close(&l);
    return st;
}

static lq_status run(lq_ctx *ctx, const char *name, int argc, char **argv) {
    (void)name;
    args a = {.common.devices = true};
    const char *pos[1] = {NULL};
    size_t n_pos = 0;
    lq_optset sets[] = {{options, &a, "flags"}, {lq_common_options, &a.common, NULL}, {0}};
    lq_status st = LQ_OK;
    LQ_GO(lq_verb_begin(ctx, sets, &a.common, argc, argv, pos, 1, &n_pos, help));
    if (a.common.help) goto done;
    LQ_GO(lq_loaded_device(ctx, a.common.device));
    if (!n_pos) LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "run needs a model: lquant run MODEL -p TEXT"));
    if (!a.prompt) LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "run needs a prompt: -p TEXT"));
    LQ_GO(generate(ctx, &a, pos[0]));
done:
    lq_opts_free(sets);
    return st;
}

const lq_verb lq_verb_run = {"run", "generate", "MODEL -p TEXT", "continue a text, a smoke test", run};
