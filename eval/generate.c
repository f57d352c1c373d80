/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "eval/generate.h"

#include "calib/forward.h"
#include "calib/held.h"
#include "core/num.h"
#include "eval/divergence.h"

#include <string.h>

/* ---- tokens that end a text ---- */

typedef struct ends { int32_t id[16]; size_t n; } ends;

static void ends_add(ends *e, const json_t *v) {
    if (json_is_integer(v) && e->n < 16) e->id[e->n++] = (int32_t)json_integer_value(v);
    for (size_t i = 0; i < json_array_size(v); i++)
        if (json_is_integer(json_array_get(v, i)) && e->n < 16) e->id[e->n++] = (int32_t)json_integer_value(json_array_get(v, i));
}

static ends find_ends(lq_ctx *ctx, const lq_loaded *l) {
    ends e = {{lq_tokenizer_eos(l->tok)}, 1};
    lq_buf text = {0};
    json_t *v = NULL;
    if (l->src->config) ends_add(&e, json_object_get(l->src->config, "eos_token_id"));
    if (!lq_source_sidecar(ctx, l->src, "generation_config.json", &text) && text.v && !lq_json_parse(NULL, "", text.v, text.n, &v))
        ends_add(&e, json_object_get(v, "eos_token_id"));
    json_decref(v);
    lq_buf_free(&text);
    return e;
}

static bool ends_has(const ends *e, int32_t id) {
    for (size_t i = 0; i < e->n; i++)
        if (e->id[i] == id) return true;
    return false;
}

/* ---- choice ---- */

static int32_t choose(const lq_model *m, float *logits, double temp, lq_rng *rng) {
    size_t n = m->par.vocab;
    if (temp <= 0) return (int32_t)lq_argmax(logits, n);
    m->k->softmax(logits, n, (float)(1 / temp));
    double u = lq_rng_unit(rng), sum = 0;
    for (size_t i = 0; i < n; i++)
        if ((sum += logits[i]) > u) return (int32_t)i;
    return (int32_t)lq_argmax(logits, n); /* rounding left the sum below u */
}

/* ---- text ---- */

/* Bytes of s[n] that end with a whole UTF-8 character; a lone broken byte counts as whole. */
static size_t whole_utf8(const char *s, size_t n) {
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = (unsigned char)s[n - back];
        if ((c & 0xC0) == 0x80) continue;
        size_t len = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1;
        return len > back ? n - back : n;
    }
    return n;
}

typedef struct speech { const lq_loaded *l; const lq_gen_opts *o; lq_ids all; size_t prompt, said; lq_gen *out; } speech;

/* A token's text may depend on what stands before it, so the whole is decoded and the difference is said. */
static lq_status say(lq_ctx *ctx, speech *s, bool last) {
    lq_buf text = {0};
    LQ_TRY(lq_tokenizer_decode(ctx, s->l->tok, s->all.v, s->all.n, true, &text));
    size_t end = last ? text.n : whole_utf8(text.v ? text.v : "", text.n);
    lq_status st = LQ_OK;
    if (end > s->said) {
        if (s->o->emit) s->o->emit(s->o->user, text.v + s->said, end - s->said);
        if (!lq_buf_add(&s->out->text, text.v + s->said, end - s->said)) st = lq_oom(ctx, end);
        s->said = end;
    }
    lq_buf_free(&text);
    return st;
}

static lq_status speech_start(lq_ctx *ctx, speech *s, const lq_ids *prompt) {
    lq_buf text = {0};
    for (size_t i = 0; i < prompt->n; i++)
        if (!lq_ids_add(&s->all, prompt->v[i])) return lq_oom(ctx, prompt->n * sizeof *prompt->v);
    LQ_TRY(lq_tokenizer_decode(ctx, s->l->tok, s->all.v, s->all.n, true, &text));
    s->said = text.n;
    lq_buf_free(&text);
    return LQ_OK;
}

/* ---- the loop ---- */

static lq_status loop(lq_ctx *ctx, speech *s, lq_state *state, float *hidden, float *logits, uint32_t room) {
    const lq_model *m = s->l->m;
    const ends e = find_ends(ctx, s->l);
    size_t d = m->par.hidden, at = s->prompt - 1;
    lq_rng rng;
    lq_rng_seed(&rng, s->o->seed, 1);
    bool chosen = false; /* on the device, where the likeliest is wanted */
    int32_t id = 0;
    for (uint32_t i = 0; i < room; i++) {
        LQ_TRY(lq_check_cancel(ctx));
        if (!chosen) {
            LQ_TRY(lq_logits(ctx, m, hidden + at * d, 1, logits));
            id = choose(m, logits, s->o->temp, &rng);
        }
        if ((s->out->stopped = ends_has(&e, id))) return LQ_OK;
        if (!lq_ids_add(&s->all, id) || !lq_ids_add(&s->out->ids, id)) return lq_oom(ctx, s->all.n * sizeof id);
        LQ_TRY(say(ctx, s, false));
        at = 0;
        if (i + 1 == room) break;
        chosen = m->held && s->o->temp <= 0;
        if (chosen) LQ_TRY(lq_held_next(ctx, &state, &id, 1, &id));
        else LQ_TRY(lq_forward(ctx, state, &id, 1, hidden));
    }
    return LQ_OK;
}

lq_status lq_generate(lq_ctx *ctx, const lq_loaded *l, const lq_ids *prompt, const lq_gen_opts *o, lq_gen *out) {
    const lq_model *m = l->m;
    speech s = {.l = l, .o = o, .prompt = prompt->n, .out = out};
    lq_state *state = NULL;
    float *hidden = NULL, *logits = NULL;
    lq_status st = LQ_OK;
    *out = (lq_gen){0};
    if (!prompt->n) LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "the prompt gives no token"));
    if (prompt->n >= m->par.max_ctx)
        LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "the prompt has %zu tokens, the model's context holds %u", prompt->n, m->par.max_ctx));
    uint32_t room = m->par.max_ctx - (uint32_t)prompt->n;
    if (o->n > room) lq_log(ctx, LQ_LOG_INFO, "at most %u tokens fit behind the prompt (%u were asked for)", room, o->n);
    if (o->n < room) room = o->n;
    LQ_GO(lq_state_new_kv(ctx, m, (uint32_t)prompt->n + room, false, &o->kv, &state));
    hidden = LQ_NEWN(float, prompt->n * m->par.hidden);
    logits = LQ_NEWN(float, m->par.vocab);
    if (!hidden || !logits) LQ_GO(lq_oom(ctx, prompt->n * m->par.hidden * sizeof(float)));
    LQ_GO(speech_start(ctx, &s, prompt));
    double start = lq_now();
    LQ_GO(lq_forward(ctx, state, prompt->v, (uint32_t)prompt->n, hidden));
    double ready = lq_now();
    LQ_GO(loop(ctx, &s, state, hidden, logits, room));
    out->prefill_seconds = ready - start;
    out->decode_seconds = lq_now() - ready;
    LQ_GO(say(ctx, &s, true));
done:
    lq_state_free(&state);
    lq_ids_free(&s.all);
    lq_free(hidden);
    lq_free(logits);
    if (st) lq_gen_free(out);
    return st;
}

void lq_gen_free(lq_gen *g) {
    lq_ids_free(&g->ids);
    lq_buf_free(&g->text);
    *g = (lq_gen){0};
}
