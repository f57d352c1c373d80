/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "eval/report.h"

#include "core/thread.h"

#include <math.h>
#include <string.h>

static const char *const bos_rules[] = {"auto", "always", "never"};

static json_t *number(double v) { return isfinite(v) ? json_real(v) : json_null(); }

static json_t *base_json(const lq_eval_result *r) {
    return json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "model", r->base, "perplexity", number(r->base_ppl), "stderr",
                     number(r->base_ppl_stderr), "nll", number(r->base_nll), "delta_nll", number(r->diff.delta), "delta_nll_stderr",
                     number(r->diff.stderr_), "ppl_ratio", number(exp(r->diff.delta)));
}

static json_t *kld_json(const lq_kld *k) {
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I}", "mean", number(k->mean), "stderr", number(k->stderr_), "median",
                     number(k->median), "p99", number(k->p99), "p999", number(k->p999), "max", number(k->max), "top1_agreement",
                     number(k->top1), "top1_stderr", number(k->top1_stderr), "tokens", (json_int_t)k->tokens);
}

lq_status lq_eval_json(lq_ctx *ctx, const lq_eval_result *r, json_t **out) {
    const lq_eval_plan *p = r->plan;
    json_t *chunks = json_array();
    for (uint32_t i = 0; i < r->ppl->chunks; i++) json_array_append_new(chunks, number(r->ppl->chunk_nll[i]));
    *out = json_pack("{s:i, s:s, s:s, s:o, s:o, s:o, s:o, s:I, s:i, s:i, s:o, s:o, s:o, s:I, s:o, s:o, s:I, s:i, s:b, s:s, s:s, s:s, s:i, s:o}",
                     "schema", 1, "model", r->model, "protocol", p->name, "perplexity", number(r->ppl->ppl), "stderr",
                     number(r->ppl->ppl_stderr), "nll", number(r->ppl->nll), "nll_stderr", number(r->ppl->nll_stderr), "tokens",
                     (json_int_t)p->tokens, "ctx", (int)p->ctx, "chunks", (int)p->chunks, "seconds", number(r->seconds), "load_seconds",
                     number(r->load_seconds), "tokens_per_second", number((double)p->chunks * (p->ctx - 1) / r->seconds), "model_bytes",
                     (json_int_t)r->weight.bytes, "bits_per_weight", number(r->weight.bpw), "bits_per_weight_all", number(r->weight.bpw_all),
                     "peak_memory", (json_int_t)lq_peak_rss(), "threads", lq_threads(), "decode", (int)r->decode, "text", r->text->name,
                     "text_sha256", r->text->sha256, "bos", bos_rules[r->text->bos], "bos_added", (int)r->text->bos_added, "chunk_nll", chunks);
    if (*out && r->ggml) json_object_set_new(*out, "activations", json_string("ggml"));
    if (*out && r->base) json_object_set_new(*out, "base", base_json(r));
    if (*out && r->kld) json_object_set_new(*out, "kld", kld_json(r->kld));
    return *out ? LQ_OK : lq_oom(ctx, 4096);
}

lq_status lq_eval_lines(lq_ctx *ctx, const lq_eval_result *r, lq_buf *out) {
    bool ok = lq_buf_addf(out, "ppl %.4f +- %.4f [%s/%s/sha:%.8s/bos:%s(%u)]\n", r->ppl->ppl, r->ppl->ppl_stderr, r->plan->name, r->text->name,
                          r->text->sha256, bos_rules[r->text->bos], r->text->bos_added);
    if (r->base && ok)
        ok = lq_buf_addf(out, "base %.4f +- %.4f, nll difference %+.5f +- %.5f (paired over %u chunks), ppl ratio %.4f\n", r->base_ppl,
                         r->base_ppl_stderr, r->diff.delta, r->diff.stderr_, r->diff.n, exp(r->diff.delta));
    if (r->kld && ok)
        ok = lq_buf_addf(out, "kld %.6f +- %.6f, 99%% %.4f, 99.9%% %.4f, same top token %.2f +- %.2f %%\n", r->kld->mean, r->kld->stderr_,
                         r->kld->p99, r->kld->p999, 100 * r->kld->top1, 100 * r->kld->top1_stderr);
    return ok ? LQ_OK : lq_oom(ctx, 512);
}

/* ---- a former result ---- */

bool lq_eval_is_result(const char *path) {
    lq_file f;
    char head = 0;
    if (lq_path_is_dir(path) || lq_file_open(NULL, path, &f)) return false;
    bool yes = f.size && !lq_file_read(NULL, &f, 0, &head, 1) && head == '{';
    lq_file_close(&f);
    return yes;
}

static lq_status must_equal(lq_ctx *ctx, const json_t *v, const char *key, const char *want) {
    const char *have;
    LQ_TRY(lq_json_string(ctx, v, key, true, &have));
    return strcmp(have, want) ? lq_fail(ctx, LQ_ERR_USAGE, "not comparable: its %s is %s, here it is %s", key, have, want) : LQ_OK;
}

static lq_status must_count(lq_ctx *ctx, const json_t *v, const char *key, uint64_t want) {
    int64_t have;
    LQ_TRY(lq_json_int(ctx, v, key, true, 0, 0, INT64_MAX, &have));
    if ((uint64_t)have == want) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_USAGE, "not comparable: its %s is %lld, here it is %llu", key, (long long)have, (unsigned long long)want);
}

static lq_status base_fill(lq_ctx *ctx, const json_t *v, const lq_eval_plan *plan, const lq_eval_text *text, lq_ppl *out) {
    LQ_TRY(must_count(ctx, v, "schema", 1));
    LQ_TRY(must_equal(ctx, v, "protocol", plan->name));
    LQ_TRY(must_equal(ctx, v, "text_sha256", text->sha256));
    LQ_TRY(must_count(ctx, v, "ctx", plan->ctx));
    LQ_TRY(must_count(ctx, v, "chunks", plan->chunks));
    LQ_TRY(must_count(ctx, v, "tokens", plan->tokens));
    LQ_TRY(must_count(ctx, v, "bos_added", text->bos_added));
    LQ_TRY(lq_json_real(ctx, v, "nll", true, 0, &out->nll));
    LQ_TRY(lq_json_real(ctx, v, "perplexity", true, 0, &out->ppl));
    LQ_TRY(lq_json_real(ctx, v, "stderr", false, 0, &out->ppl_stderr));
    const json_t *chunks = json_object_get(v, "chunk_nll");
    if (json_array_size(chunks) != plan->chunks) return lq_fail(ctx, LQ_ERR_FORMAT, "chunk_nll has %zu values, expected %u", json_array_size(chunks), plan->chunks);
    out->chunks = plan->chunks;
    out->chunk_nll = LQ_NEWN(double, plan->chunks);
    if (!out->chunk_nll) return lq_oom(ctx, plan->chunks * sizeof(double));
    for (uint32_t i = 0; i < plan->chunks; i++) {
        const json_t *c = json_array_get(chunks, i);
        if (!json_is_number(c)) return lq_fail(ctx, LQ_ERR_FORMAT, "chunk_nll[%u] is no number", i);
        out->chunk_nll[i] = json_number_value(c);
    }
    return LQ_OK;
}

lq_status lq_eval_base_read(lq_ctx *ctx, const char *path, const lq_eval_plan *plan, const lq_eval_text *text, lq_ppl *out) {
    json_t *v = NULL;
    *out = (lq_ppl){0};
    LQ_TRY(lq_json_load(ctx, path, &v));
    lq_status st = base_fill(ctx, v, plan, text, out);
    if (st) {
        lq_note(ctx, st, "--base %s", path);
        lq_ppl_free(out);
    }
    json_decref(v);
    return st;
}
