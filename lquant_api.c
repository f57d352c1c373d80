/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The public functions, over the rooms below. */
#include "lquant.h"

#include "core/thread.h"
#include "eval/loaded.h"
#include "eval/perplexity.h"
#include "quant/pipeline.h"

#include <string.h>

struct lquant {
    lq_ctx ctx;
    volatile int cancel;
    void (*log)(void *, int, const char *);
    void *user;
};
struct lquant_model { lq_loaded loaded; };

const char *lquant_version(void) { return LQ_VERSION; }

lquant *lquant_new(void) {
    lquant *s = LQ_NEW(lquant);
    if (s) s->ctx.cancel = &s->cancel;
    return s;
}
void lquant_free(lquant **s) {
    lq_free(*s);
    *s = NULL;
}
const char *lquant_error(const lquant *s) { return s->ctx.msg; }
void lquant_set_threads(int n) { lq_threads_set(n); }
void lquant_cancel(lquant *s) { s->cancel = 1; }

static void forward_log(void *user, lq_level level, const char *line) {
    const lquant *s = user;
    s->log(s->user, (int)level, line);
}
void lquant_set_log(lquant *s, int level, void (*fn)(void *user, int level, const char *line), void *user) {
    s->log = fn;
    s->user = user;
    s->ctx.log = fn ? forward_log : NULL;
    s->ctx.log_user = s;
    s->ctx.level = (lq_level)level;
}

int lquant_quantize(lquant *s, const char *recipe, const lquant_setting *settings, size_t n, const char *in, const char *out, char **report) {
    lq_run run = {.in = in, .out = out};
    json_t *v = NULL;
    s->cancel = 0;
    lq_status st = lq_recipe_parse(&s->ctx, recipe, &run.recipe);
    if (st) return (int)st;
    lq_optset sets[LQ_RUN_SETS + 1];
    st = lq_opts_defaults(&s->ctx, sets + lq_run_sets(&run, sets));
    for (size_t i = 0; i < n && !st; i++) st = lq_opts_set(&s->ctx, sets, settings[i].key, settings[i].value);
    if (!st) st = lq_pipeline_run(&s->ctx, &run, &v);
    if (report) *report = v ? json_dumps(v, JSON_INDENT(2)) : NULL;
    json_decref(v);
    lq_opts_free(sets);
    lq_recipe_free(&run.recipe);
    return (int)st;
}

void lquant_string_free(char **text) {
    free(*text); /* jansson's allocator */
    *text = NULL;
}

int lquant_model_open(lquant *s, const char *path, lquant_model **out) {
    s->cancel = 0;
    *out = LQ_NEW(lquant_model);
    lq_status st = *out ? lq_loaded_open(&s->ctx, path, true, &(*out)->loaded) : lq_oom(&s->ctx, sizeof **out);
    if (!st) st = lq_loaded_read(&s->ctx, &(*out)->loaded, NULL);
    if (st) lquant_model_free(out);
    return (int)st;
}

void lquant_model_free(lquant_model **m) {
    if (*m) lq_loaded_close(&(*m)->loaded);
    lq_free(*m);
    *m = NULL;
}
uint32_t lquant_model_vocab(const lquant_model *m) { return m->loaded.m->par.vocab; }
uint32_t lquant_model_context(const lquant_model *m) { return m->loaded.m->par.max_ctx; }

int lquant_tokenize(lquant *s, const lquant_model *m, const char *text, size_t n, int32_t *ids, size_t max, size_t *count) {
    lq_ids found = {0};
    lq_status st = lq_tokenizer_encode(&s->ctx, m->loaded.tok, text, n, true, true, &found);
    *count = st ? 0 : found.n;
    if (*count && max) memcpy(ids, found.v, (*count < max ? *count : max) * sizeof *ids);
    lq_ids_free(&found);
    return (int)st;
}

int lquant_logits(lquant *s, const lquant_model *m, const int32_t *ids, uint32_t n, float *logits) {
    const lq_model *model = m->loaded.m;
    lq_state *state = NULL;
    float *hidden = NULL;
    lq_status st;
    s->cancel = 0;
    LQ_GO(lq_state_new(&s->ctx, model, n, &state));
    if (!(hidden = lq_calloc((size_t)n * model->par.hidden, 4))) { st = lq_oom(&s->ctx, (size_t)n * model->par.hidden * 4); goto done; }
    LQ_GO(lq_forward(&s->ctx, state, ids, n, hidden));
    st = lq_logits(&s->ctx, model, hidden, n, logits);
done:
    lq_free(hidden);
    lq_state_free(&state);
    return (int)st;
}

int lquant_evaluate(lquant *s, const lquant_model *m, const char *text_path, const char *protocol, uint32_t ctx, uint32_t chunks, lquant_score *out) {
    const lq_protocol *p = lq_protocol_find(protocol);
    lq_eval_text text = {0};
    lq_eval_plan plan;
    lq_ppl ppl = {0};
    lq_status st;
    s->cancel = 0;
    *out = (lquant_score){0};
    if (!p) return (int)lq_fail(&s->ctx, LQ_ERR_USAGE, "unknown protocol '%s'", protocol);
    LQ_GO(lq_eval_text_load(&s->ctx, m->loaded.tok, p, text_path, LQ_BOS_AUTO, m->loaded.m->par.vocab, &text));
    LQ_GO(lq_eval_plan_make(&s->ctx, p, &text, ctx, chunks, m->loaded.m->par.max_ctx, &plan));
    LQ_GO(lq_ppl_run(&s->ctx, m->loaded.m, NULL, &text, &plan, false, &ppl, NULL, NULL, NULL));
    *out = (lquant_score){.nll = ppl.nll, .nll_stderr = ppl.nll_stderr, .perplexity = ppl.ppl, .tokens = plan.tokens, .ctx = plan.ctx, .chunks = plan.chunks};
done:
    lq_ppl_free(&ppl);
    lq_eval_text_free(&text);
    return (int)st;
}
