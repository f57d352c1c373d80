/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The protocols' definitions are in perplexity.h. Order of every sum is fixed by the plan, so any thread count gives the same
 * bits: tokens of a slice are scored in parallel, each into its own cell, and added up in order. */
#include "eval/divergence.h"

#include "core/progress.h"
#include "core/thread.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static uint32_t from_start(uint32_t ctx) { (void)ctx; return 0; }
static uint32_t from_half(uint32_t ctx) { return ctx / 2; }

const lq_protocol lq_protocols[] = {
    {"gptq-2048", "chunks of 2048, every position; the papers' number", "gptq", 2048, 1, false, true, false, from_start},
    {"gptq-max", "the same at the model's own context", "gptq", 0, 1, false, true, false, from_start},
    {"llamacpp-512", "chunks of 512, second half, BOS in each chunk; llama-perplexity's number", "llamacpp", 512, 2, true, false, true, from_half},
    {0}};

const lq_protocol *lq_protocol_find(const char *name) {
    for (const lq_protocol *p = lq_protocols; p->name; p++)
        if (!strcmp(p->name, name)) return p;
    return NULL;
}

/* ---- text and plan ---- */

static char *short_name(const char *path) {
    static const char *const tails[] = {".zst", ".txt"};
    char *s = lq_strdup(lq_path_base(path));
    for (size_t i = 0; s && i < sizeof tails / sizeof *tails; i++) {
        size_t n = strlen(s), k = strlen(tails[i]);
        if (n > k && !strcmp(s + n - k, tails[i])) s[n - k] = 0;
    }
    return s;
}

static lq_status put_front(lq_ctx *ctx, lq_ids *ids, int32_t id) {
    if (!lq_ids_add(ids, id)) return lq_oom(ctx, (ids->n + 1) * sizeof id);
    memmove(ids->v + 1, ids->v, (ids->n - 1) * sizeof id);
    ids->v[0] = id;
    return LQ_OK;
}

/* Does the tokenizer's post-processor end a text with EOS? */
static lq_status refuse_eos(lq_ctx *ctx, const lq_tokenizer *t, const lq_protocol *p) {
    lq_ids ids = {0};
    lq_status st = lq_tokenizer_encode(ctx, t, "", 0, true, false, &ids);
    bool ends = !st && ids.n && ids.v[ids.n - 1] == lq_tokenizer_eos(t) && !(ids.n == 1 && lq_tokenizer_adds_bos(t));
    lq_ids_free(&ids);
    return ends ? lq_fail(ctx, LQ_ERR_UNSUPPORTED, "protocol %s: the tokenizer adds EOS", p->name) : st;
}

static lq_status tokenize(lq_ctx *ctx, const lq_tokenizer *t, const lq_protocol *p, const lq_buf *text, lq_eval_text *out) {
    int32_t bos = lq_tokenizer_bos(t);
    bool adds = lq_tokenizer_adds_bos(t);
    if (out->bos == LQ_BOS_ALWAYS && bos < 0) return lq_fail(ctx, LQ_ERR_USAGE, "--bos always: the tokenizer has no BOS token");
    LQ_TRY(lq_tokenizer_encode(ctx, t, text->v, text->n, out->bos != LQ_BOS_NEVER, p->parse_special, &out->ids));
    if (out->bos == LQ_BOS_ALWAYS && !adds) LQ_TRY(put_front(ctx, &out->ids, bos));
    out->bos_added = out->bos == LQ_BOS_ALWAYS || (out->bos == LQ_BOS_AUTO && adds);
    out->bos_id = p->bos_per_chunk && out->bos_added ? bos : -1;
    return LQ_OK;
}

lq_status lq_eval_text_load(lq_ctx *ctx, const lq_tokenizer *t, const lq_protocol *p, const char *path, int bos, uint32_t vocab, lq_eval_text *out) {
    lq_buf text = {0};
    lq_sha *sha = NULL;
    lq_status st = LQ_OK;
    *out = (lq_eval_text){.bos = bos};
    LQ_GO(lq_text_load(ctx, path, &text));
    sha = lq_sha_new();
    out->name = short_name(path);
    if (!sha || !out->name) LQ_GO(lq_oom(ctx, 256));
    lq_sha_add(sha, text.v, text.n);
    lq_sha_end(&sha, out->sha256);
    if (p->bos_per_chunk) LQ_GO(refuse_eos(ctx, t, p));
    LQ_GO(tokenize(ctx, t, p, &text, out));
    for (size_t i = 0; i < out->ids.n; i++)
        if (out->ids.v[i] < 0 || (uint32_t)out->ids.v[i] >= vocab)
            LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "the tokenizer gives id %d, the model has ids 0 to %u", out->ids.v[i], vocab - 1));
done:
    lq_free(sha);
    lq_buf_free(&text);
    if (st) lq_eval_text_free(out);
    return st;
}

void lq_eval_text_free(lq_eval_text *t) {
    lq_ids_free(&t->ids);
    lq_free(t->name);
    *t = (lq_eval_text){0};
}

lq_status lq_eval_plan_make(lq_ctx *ctx, const lq_protocol *p, const lq_eval_text *t, uint32_t want_ctx, uint32_t chunks, uint32_t max_ctx, lq_eval_plan *out) {
    uint32_t c = want_ctx ? want_ctx : p->ctx ? p->ctx : max_ctx;
    if (c > max_ctx) {
        lq_log(ctx, LQ_LOG_INFO, "%s: chunks of %u, the model's context (%u were asked for)", p->name, max_ctx, c);
        c = max_ctx;
    }
    *out = (lq_eval_plan){.protocol = p, .ctx = c, .first = p->first(c)};
    snprintf(out->name, sizeof out->name, "%s-%u", p->stem, c);
    if (c < 2 || c - 1 <= out->first) return lq_fail(ctx, LQ_ERR_USAGE, "%s: chunks of %u tokens leave nothing to score", p->name, c);
    uint64_t all = t->ids.n / c;
    if (all < p->min_chunks)
        return lq_fail(ctx, LQ_ERR_FORMAT, "the text has %zu tokens, %s needs at least %llu; --ctx N takes shorter chunks", t->ids.n,
                       out->name, (unsigned long long)p->min_chunks * c);
    out->chunks = (uint32_t)(chunks && chunks < all ? chunks : all < UINT32_MAX ? all : UINT32_MAX);
    out->tokens = (uint64_t)out->chunks * (c - 1 - out->first);
    return LQ_OK;
}

/* ---- the run ---- */

typedef struct side {          /* one model on its way through the text */
    const lq_model *m;
    lq_state *state;
    lq_kv_opts kv;
    float *hidden, *logits;    /* [ctx][hidden], [slice][vocab] */
    double *nll, *lse;         /* [ctx] */
    lq_ppl *out;
} side;

typedef struct run {
    const lq_eval_plan *plan;
    side s[2];                 /* the model; the base, when there is one */
    int sides;                 /* that run this chunk */
    const int32_t *ids;        /* the chunk */
    uint32_t both;             /* chunks that the base runs too */
    uint32_t pos, slice;       /* first position of the slice in the chunk; most tokens of a slice, 0: logits are not wanted */
    uint32_t vocab;
    float *kl;                 /* [tokens] */
    uint8_t *same;             /* [tokens] */
    uint64_t scored;           /* tokens before this slice */
    double sum, sum2;          /* of the model's NLLs: standard error over tokens */
    double base_sum, base_sum2;
} run;

enum { LOGIT_BYTES = 16 << 20, SLICE_MAX = 64 };

static lq_status side_open(lq_ctx *ctx, run *r, side *s, bool decode) {
    uint64_t n;
    LQ_TRY(lq_state_new_kv(ctx, s->m, r->plan->ctx, !decode, &s->kv, &s->state));
    s->hidden = LQ_NEWN(float, (size_t)r->plan->ctx * s->m->par.hidden);
    s->logits = lq_mul_ok(r->slice, r->vocab, &n) ? LQ_NEWN(float, n) : NULL;
    s->nll = LQ_NEWN(double, r->plan->ctx);
    s->lse = LQ_NEWN(double, r->plan->ctx);
    uint32_t chunks = s == r->s ? r->plan->chunks : r->both;
    *s->out = (lq_ppl){.chunks = chunks, .chunk_nll = LQ_NEWN(double, chunks)};
    if (!s->hidden || !s->logits || !s->nll || !s->lse || !s->out->chunk_nll) return lq_oom(ctx, (size_t)r->plan->ctx * s->m->par.hidden * 4);
    return LQ_OK;
}

static void side_close(side *s) {
    lq_state_free(&s->state);
    lq_free(s->hidden);
    lq_free(s->logits);
    lq_free(s->nll);
    lq_free(s->lse);
}

static void score(void *arg, size_t i) {
    run *r = arg;
    uint32_t p = r->pos + (uint32_t)i;
    for (int k = 0; k < r->sides; k++) {
        side *s = &r->s[k];
        const float *x = s->logits + i * r->vocab;
        s->lse[p] = s->m->k->logsumexp(x, r->vocab);
        s->nll[p] = s->lse[p] - x[r->ids[p + 1]];
    }
    if (r->sides < 2) return;
    const float *a = r->s[1].logits + i * r->vocab, *b = r->s[0].logits + i * r->vocab;
    r->kl[r->scored + i] = (float)lq_kl(a, r->s[1].lse[p], b, r->s[0].lse[p], r->vocab);
    r->same[r->scored + i] = lq_argmax(a, r->vocab) == lq_argmax(b, r->vocab);
}

static lq_status forward(lq_ctx *ctx, run *r, side *s, bool decode) {
    uint32_t n = r->plan->ctx - 1; /* the last token predicts nothing that is scored */
    lq_state_reset(s->state);
    if (!decode) return lq_forward(ctx, s->state, r->ids, n, s->hidden);
    for (uint32_t p = 0; p < n; p++) {
        LQ_TRY(lq_forward(ctx, s->state, r->ids + p, 1, s->hidden + (size_t)p * s->m->par.hidden));
        LQ_TRY(lq_check_cancel(ctx));
    }
    return LQ_OK;
}

static lq_status score_chunk(lq_ctx *ctx, run *r, bool decode) {
    uint32_t end = r->plan->ctx - 1;
    for (int k = 0; k < r->sides; k++) LQ_TRY(forward(ctx, r, &r->s[k], decode));
    if (!decode && r->sides < 2) {
        const side *s = &r->s[0];
        uint32_t first = r->plan->first;
        return lq_score(ctx, s->m, s->hidden + (size_t)first * s->m->par.hidden, end - first, r->ids + first + 1, s->nll + first);
    }
    for (r->pos = r->plan->first; r->pos < end; r->pos += r->slice) {
        uint32_t n = end - r->pos < r->slice ? end - r->pos : r->slice;
        for (int k = 0; k < r->sides; k++)
            LQ_TRY(lq_logits(ctx, r->s[k].m, r->s[k].hidden + (size_t)r->pos * r->s[k].m->par.hidden, n, r->s[k].logits));
        lq_parallel_for(n, score, r);
        r->scored += n;
    }
    return LQ_OK;
}

static lq_status add_up(lq_ctx *ctx, const run *r, side *s, uint32_t chunk, double *sum, double *sum2) {
    double here = 0;
    uint32_t end = r->plan->ctx - 1;
    for (uint32_t p = r->plan->first; p < end; p++) {
        here += s->nll[p];
        *sum2 += s->nll[p] * s->nll[p];
    }
    *sum += here;
    s->out->chunk_nll[chunk] = here / (end - r->plan->first);
    if (isfinite(here)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_QUALITY, "chunk %u: the model's logits are not finite", chunk);
}

static void finish(const lq_eval_plan *plan, lq_ppl *p, double sum, double sum2) {
    double n = (double)p->chunks * (plan->ctx - 1 - plan->first), dev = 0;
    p->nll = sum / n;
    for (uint32_t i = 0; i < p->chunks; i++) dev += (p->chunk_nll[i] - p->nll) * (p->chunk_nll[i] - p->nll);
    if (plan->protocol->stderr_tokens || p->chunks < 2) p->nll_stderr = n > 1 ? sqrt(fmax(sum2 / n - p->nll * p->nll, 0) / (n - 1)) : 0;
    else p->nll_stderr = sqrt(dev / (p->chunks - 1) / p->chunks);
    p->ppl = exp(p->nll);
    p->ppl_stderr = p->ppl * p->nll_stderr;
}

static lq_status run_chunks(lq_ctx *ctx, run *r, const lq_eval_text *t, bool decode) {
    const lq_eval_plan *plan = r->plan;
    int32_t *ids = LQ_NEWN(int32_t, plan->ctx);
    if (!ids) return lq_oom(ctx, plan->ctx * sizeof *ids);
    lq_status st = LQ_OK;
    lq_progress bar = lq_progress_start(ctx, "chunk", plan->chunks);
    uint32_t every = bar.tty ? 1 : plan->chunks / 20 + 1, told = 0; /* a log wants no line per chunk */
    for (uint32_t c = 0; c < plan->chunks && !st; c++) {
        memcpy(ids, t->ids.v + (size_t)c * plan->ctx, plan->ctx * sizeof *ids);
        if (plan->protocol->bos_per_chunk && t->bos_id >= 0) ids[0] = t->bos_id;
        r->ids = ids;
        r->sides = c < r->both ? 2 : 1;
        st = lq_check_cancel(ctx);
        if (!st) st = score_chunk(ctx, r, decode);
        if (!st) st = add_up(ctx, r, &r->s[0], c, &r->sum, &r->sum2);
        if (!st && r->sides > 1) st = add_up(ctx, r, &r->s[1], c, &r->base_sum, &r->base_sum2);
        if (st || ((c + 1) % every && c + 1 < plan->chunks)) continue;
        lq_progress_step(&bar, c + 1 - told, "%u/%u ppl %.4f", c + 1, plan->chunks, exp(r->sum / ((double)(c + 1) * (plan->ctx - 1 - plan->first))));
        told = c + 1;
    }
    lq_progress_end(&bar);
    lq_free(ids);
    return st;
}

/* Two models are compared logit by logit; the head of --decode is to be the kernel for one token. */
static uint32_t slice_of(uint32_t vocab, bool decode, bool base) {
    if (!decode && !base) return 0;
    uint32_t n = LOGIT_BYTES / 4 / (vocab ? vocab : 1);
    return decode || n < 1 ? 1 : n > SLICE_MAX ? SLICE_MAX : n;
}

static lq_status same_shape(lq_ctx *ctx, const lq_model *m, const lq_model *base, uint32_t want) {
    if (m->par.vocab != base->par.vocab)
        return lq_fail(ctx, LQ_ERR_USAGE, "--base has a vocabulary of %u, the model has %u", base->par.vocab, m->par.vocab);
    if (base->par.max_ctx < want)
        return lq_fail(ctx, LQ_ERR_USAGE, "--base has a context of %u, chunks have %u; give --ctx", base->par.max_ctx, want);
    return LQ_OK;
}

lq_status lq_ppl_run(lq_ctx *ctx, const lq_model *m, const lq_kv_opts *kv, const lq_eval_text *t, const lq_eval_plan *plan, bool decode, lq_ppl *out,
                     const lq_model *base, lq_ppl *base_ppl, lq_kld *kld) {
    run r = {.plan = plan, .s = {{.m = m, .out = out, .kv = kv ? *kv : (lq_kv_opts){0}}, {.m = base, .out = base_ppl}}, .vocab = m->par.vocab,
             .both = !base ? 0 : plan->both && plan->both < plan->chunks ? plan->both : plan->chunks, .slice = slice_of(m->par.vocab, decode, base)};
    lq_status st = LQ_OK;
    uint64_t same = 0, compared = plan->tokens / plan->chunks * r.both;
    *out = (lq_ppl){0};
    if (base) {
        *base_ppl = (lq_ppl){0};
        LQ_GO(same_shape(ctx, m, base, plan->ctx));
        r.kl = LQ_NEWN(float, compared);
        r.same = LQ_NEWN(uint8_t, compared);
        if (!r.kl || !r.same) LQ_GO(lq_oom(ctx, compared * 5));
    }
    for (int k = 0; k < (base ? 2 : 1); k++) LQ_GO(side_open(ctx, &r, &r.s[k], decode));
    LQ_GO(run_chunks(ctx, &r, t, decode));
    finish(plan, out, r.sum, r.sum2);
    if (!base) goto done;
    finish(plan, base_ppl, r.base_sum, r.base_sum2);
    for (uint64_t i = 0; i < compared; i++) same += r.same[i];
    lq_kld_summary(r.kl, compared, same, kld);
done:
    for (int k = 0; k < (base ? 2 : 1); k++) side_close(&r.s[k]);
    lq_free(r.kl);
    lq_free(r.same);
    if (st) {
        lq_ppl_free(out);
        if (base_ppl) lq_ppl_free(base_ppl);
    }
    return st;
}

void lq_ppl_free(lq_ppl *p) {
    lq_free(p->chunk_nll);
    *p = (lq_ppl){0};
}
