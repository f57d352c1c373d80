/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Every run starts from the same sampled sequences, evenly spaced over the calibration text. */
#include "quant/block_loss.h"

#include <string.h>

struct lq_block_loss {
    uint32_t block, n, d;      /* sequences; floats of a token */
    uint32_t *len;             /* [n] */
    size_t tokens;
    float *in, *want;          /* [tokens][d] */
    lq_cache *stream;          /* [n]: what a run replaces */
};

static uint64_t budget(const road *r) { return r->cache_budget / 4; }

static lq_status each(road *r, const lq_block_loss *l, lq_cache *c, float *v, lq_status (*move)(lq_ctx *, lq_cache *, size_t, float *, size_t)) {
    size_t at = 0;
    for (uint32_t i = 0; i < l->n; at += l->len[i++]) LQ_TRY(move(r->ctx, c, i, v + at * l->d, (size_t)l->len[i] * l->d));
    return LQ_OK;
}

static lq_status put(lq_ctx *ctx, lq_cache *c, size_t i, float *v, size_t n) { return lq_cache_put(ctx, c, i, v, n); }
static lq_status get(lq_ctx *ctx, lq_cache *c, size_t i, float *v, size_t n) { return lq_cache_get(ctx, c, i, v, n); }

static lq_status output(road *r, lq_block_loss *l) {
    LQ_TRY(each(r, l, l->stream, l->in, put));
    return lq_block_calibrate(r->ctx, r->model, (int32_t)l->block, l->stream, l->len, NULL, budget(r), r->run->opts.work_dir);
}

static lq_status sample(road *r, lq_block_loss *l) {
    size_t all = r->rows.n, most = LQ_BLOCK_TOKENS / r->rows.seqlen, at = 0;
    l->n = (uint32_t)(most < 1 ? 1 : most < all ? most : all);
    l->d = r->model->par.hidden;
    if (!(l->len = LQ_NEWN(uint32_t, l->n))) return lq_oom(r->ctx, l->n * sizeof *l->len);
    for (uint32_t i = 0; i < l->n; i++) l->tokens += l->len[i] = r->rows.len[i * all / l->n];
    l->in = LQ_NEWN(float, l->tokens * l->d);
    l->want = LQ_NEWN(float, l->tokens * l->d);
    if (!l->in || !l->want) return lq_oom(r->ctx, l->tokens * l->d * 8);
    for (uint32_t i = 0; i < l->n; at += l->len[i++]) LQ_TRY(lq_cache_get(r->ctx, r->resid, i * all / l->n, l->in + at * l->d, (size_t)l->len[i] * l->d));
    return lq_cache_new(r->ctx, l->n, budget(r), r->run->opts.work_dir, &l->stream);
}

lq_status lq_block_loss_new(road *r, uint32_t b, lq_block_loss **out) {
    lq_block_loss *l = *out = LQ_NEW(lq_block_loss);
    if (!l) return lq_oom(r->ctx, sizeof *l);
    l->block = b;
    lq_status st = sample(r, l);
    if (!st) st = output(r, l);
    if (!st) st = each(r, l, l->stream, l->want, get);
    if (st) lq_block_loss_free(out);
    return st;
}

lq_status lq_block_loss_run(road *r, lq_block_loss *l, double *loss) {
    size_t at = 0, most = 0;
    double sum = 0;
    for (uint32_t i = 0; i < l->n; i++) most = l->len[i] > most ? l->len[i] : most;
    float *now = LQ_NEWN(float, most * l->d);
    lq_status st = now ? output(r, l) : lq_oom(r->ctx, most * l->d * 4);
    for (uint32_t i = 0; i < l->n && !st; at += l->len[i++]) {
        st = lq_cache_get(r->ctx, l->stream, i, now, (size_t)l->len[i] * l->d);
        for (size_t k = 0; k < (size_t)l->len[i] * l->d && !st; k++) {
            double e = (double)now[k] - (double)l->want[at * l->d + k];
            sum += e * e;
        }
    }
    lq_free(now);
    *loss = sum / (double)l->tokens;
    return st;
}

void lq_block_loss_free(lq_block_loss **l) {
    if (!*l) return;
    lq_cache_free(&(*l)->stream);
    lq_free((*l)->len);
    lq_free((*l)->in);
    lq_free((*l)->want);
    lq_free(*l);
    *l = NULL;
}
