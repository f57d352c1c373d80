/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Calibration of the experts of a block. The output of expert e is multiplied by the gate g_e of a token, so its error counts
 * g_e^2 |dW x|^2, and its Gram matrix is
 *
 *   H_e = sum over the T_e tokens routed to e of g_e^2 x x^T
 *
 * Routing leaves some experts few tokens or none, and H_e without rank. It is shrunk towards what any token would have been:
 *
 *   H_e' = H_e + tau T0 / (T0 + T_e) (tr H_e / tr P) P;    no token: H_e' = P
 *
 * P, the prior: for gate and up the Gram matrix of all tokens that enter the block's experts; for down that of up to SAMPLE of them,
 * evenly spread, sent through gate and up of e (quantized by then). Linear shrinkage towards a pooled covariance as in Ledoit and Wolf
 * 2004 (J. Multivariate Anal. 88), with an intensity that follows from the token count alone; algorithms.md 18. Every expert is
 * calibrated and none falls back to plain rounding.
 *
 * CROSS, the difference from the unquantized model, is of the tokens that the quantized model routes to e, wherever the other one sent
 * them: x - x^ of what enters, and what the unquantized gate and up of e make of x beside what the quantized ones make of x^. The
 * layer's share of it comes with the prior; the sample has none, so that few tokens correct down less.
 *
 * Statistics of as many experts as fit the budget are held at a time; the tokens are read again for each such set (the norm and the
 * router run again). Which set an expert is in changes no bit. */
#include "calib/walk.h"

#include <string.h>

enum { SAMPLE = 4096 };

typedef struct experts {
    const lq_op *route;
    lq_stage_hook hook;
    const lq_stats *layer;
    uint32_t s;                /* the segment that ends at ROUTE */
    uint32_t stage[2];         /* numbers of the two stages inside */
    uint32_t cut[2];           /* ops that they begin at */
    uint8_t input[2];          /* tensors that they read */
    float *sample;             /* [n_sample][hidden] */
    uint64_t seen, every;      /* tokens; one of how many is sampled */
    uint32_t n_sample;
    bool sampled;
    float *fp, *own;           /* CROSS: [chunk][hidden], [chunk][widest input] */
    lq_cache *hidden;          /* CROSS: what down reads in the unquantized model; item = expert of the set, chunk */
    const char *dir;
} experts;

typedef struct pass { experts *x; uint32_t at, first, n; lq_stats *stats; } pass; /* stage `at` of experts first .. first + n */

static lq_status ops(lq_walk *w, const experts *x, uint32_t at, uint32_t n) {
    lq_run_ops(&w->run, &w->m->layers[w->b], (uint32_t)w->b, (uint32_t)(x->route + 1 - w->m->arch->block), x->cut[at], n, NULL, 0);
    return lq_work_check(w->ctx, &w->run.work);
}

static void take_sample(lq_walk *w, experts *x, uint32_t n) {
    size_t d = w->run.width[x->route->out];
    const float *from = w->run.t[x->route->in[0]];
    for (uint32_t t = 0; t < n; t++, x->seen++)
        if (x->seen % x->every == 0) memcpy(x->sample + x->n_sample++ * d, from + t * d, d * sizeof *from);
}

/* What the experts read in the unquantized model, the tokens routed as here. */
static lq_status gather_fp(lq_walk *w, const experts *x, uint32_t expert, uint32_t at) {
    float **in = &w->run.t[x->route->in[0]], *own = *in;
    *in = x->fp;
    uint32_t n = lq_run_gather(&w->run, x->route, expert, NULL);
    lq_status st = ops(w, x, at, n);
    *in = own;
    return st;
}

/* own[n]: the expert's input, weighted as it was added to its statistics; in: the unquantized model's, which is weighted here. */
static lq_status add_cross(lq_walk *w, const experts *x, const lq_chunk *c, lq_stats *s, const float *weight, float *in, uint32_t n) {
    const uint32_t *token = w->run.routing.token + w->run.routing.start[w->run.expert];
    for (uint32_t t = 0; t < n && !w->m->expert_opts.flat; t++)
        for (uint32_t k = 0; k < s->cols; k++) in[(size_t)t * s->cols + k] *= weight[t];
    for (uint32_t i = 0, t = 0; i < c->n_spans; i++) {
        uint32_t from = t;
        while (t < n && token[t] < w->spans[i].first + w->spans[i].n) t++;
        if (t > from) LQ_TRY(lq_stats_add_cross(w->ctx, s, in + (size_t)from * s->cols, x->own + (size_t)from * s->cols, t - from, lq_walk_held(w, c->sequence + i)));
    }
    return LQ_OK;
}

/* in: the expert's input, added to its statistics. The first stage also keeps what the second will be compared with. */
static lq_status cross(lq_walk *w, const lq_chunk *c, const pass *p, uint32_t i, const float *weight, const float *in, uint32_t n) {
    experts *x = p->x;
    uint32_t expert = p->first + i;
    size_t item = (size_t)i * w->n_chunks + c->index, wide = w->run.width[x->input[1]];
    memcpy(x->own, in, (size_t)n * p->stats[i].cols * sizeof *in);
    if (p->at) {
        LQ_TRY(lq_cache_get(w->ctx, x->hidden, item, w->run.t[x->input[1]], n * wide));
    } else {
        LQ_TRY(gather_fp(w, x, expert, 1));
        LQ_TRY(lq_cache_put(w->ctx, x->hidden, item, w->run.t[x->input[1]], n * wide));
        LQ_TRY(gather_fp(w, x, expert, 0));
    }
    LQ_TRY(add_cross(w, x, c, &p->stats[i], weight, w->run.t[x->input[p->at]], n));
    return LQ_OK;
}

static lq_status gather_stats(lq_walk *w, const lq_chunk *c, void *user) {
    pass *p = user;
    experts *x = p->x;
    bool both = x->hook.needs & LQ_NEED_CROSS;
    if (both && !p->at) LQ_TRY(lq_cache_get(w->ctx, w->inputs[x->s], c->index, x->fp, c->n * (size_t)w->run.width[x->route->out]));
    if (!x->sampled) take_sample(w, x, c->n);
    lq_run_route(&w->run, &w->m->layers[w->b], x->route, c->n);
    for (uint32_t i = 0; i < p->n; i++) {
        const float *weight;
        uint32_t n = lq_run_gather(&w->run, x->route, p->first + i, &weight);
        if (!n) continue;
        LQ_TRY(ops(w, x, p->at, n));
        float *in = w->run.t[x->input[p->at]];
        p->stats[i].routed += n;
        if (w->m->expert_opts.flat) LQ_TRY(lq_stats_add(w->ctx, &p->stats[i], in, n));
        else LQ_TRY(lq_stats_add_weighted(w->ctx, &p->stats[i], in, weight, n));
        if (both) LQ_TRY(cross(w, c, p, i, weight, in, n));
    }
    return LQ_OK;
}

/* The prior of an expert's down: the sample through its gate and up. */
static lq_status sample_stats(lq_walk *w, const experts *x, uint32_t expert, uint32_t cols, lq_stats *out) {
    size_t d = w->run.width[x->route->out];
    lq_status st = lq_stats_init(w->ctx, out, x->hook.needs, cols);
    w->run.expert = expert;
    for (uint32_t t = 0; t < x->n_sample && !st; t += w->run.chunk) {
        uint32_t n = x->n_sample - t < w->run.chunk ? x->n_sample - t : w->run.chunk;
        memcpy(w->run.t[x->route->out], x->sample + t * d, n * d * sizeof(float));
        st = ops(w, x, 1, n);
        if (!st) st = lq_stats_add(w->ctx, out, w->run.t[x->input[1]], n);
    }
    return st;
}

static lq_status shrink(lq_walk *w, const experts *x, const lq_stage *stage, uint32_t at, lq_stats *s) {
    const lq_expert_opts *o = &w->m->expert_opts;
    double t0 = o->prior_tokens > 0 ? (double)o->prior_tokens : stage->cols, c = o->prior * t0 / (t0 + (double)s->n);
    if (!(c > 0) && s->n) return LQ_OK;
    if (!at) return lq_stats_shrink(s, x->layer, c), LQ_OK;
    lq_stats prior;
    lq_status st = sample_stats(w, x, (uint32_t)stage->expert, stage->cols, &prior);
    if (!st) lq_stats_shrink(s, &prior, c);
    lq_stats_free(&prior);
    return st;
}

static lq_status visit(lq_walk *w, const experts *x, uint32_t at, uint32_t expert, lq_stats *s) {
    lq_stage stage;
    lq_stage_fill(w->m, w->b, x->stage[at], (int32_t)expert, &stage);
    if (s) LQ_TRY(shrink(w, x, &stage, at, s));
    LQ_TRY(x->hook.on_stage(x->hook.user, w->b, &stage, s));
    return lq_run_fit(w->ctx, &w->run, &w->m->layers[w->b]); /* what it left may be quantized */
}

/* One of the two stages for a set of experts. */
static lq_status run_set(lq_walk *w, uint32_t s, experts *x, uint32_t at, uint32_t first, uint32_t n) {
    lq_stats *stats = x->layer ? LQ_NEWN(lq_stats, n) : NULL;
    lq_status st = LQ_OK;
    lq_stage stage;
    lq_stage_fill(w->m, w->b, x->stage[at], (int32_t)first, &stage);
    if (x->layer && !stats) return lq_oom(w->ctx, n * sizeof *stats);
    for (uint32_t i = 0; i < n && stats; i++) LQ_GO(lq_stats_init(w->ctx, &stats[i], x->hook.needs, stage.cols));
    if (x->hook.needs & LQ_NEED_CROSS && !at) {
        lq_cache_free(&x->hidden);
        LQ_GO(lq_cache_new(w->ctx, (size_t)n * w->n_chunks, w->stats_budget / 4, x->dir, &x->hidden));
    }
    if (stats) LQ_GO(lq_walk_chunks(w, s + 1, false, gather_stats, &(pass){x, at, first, n, stats}));
    x->sampled = x->seen > 0;
    for (uint32_t i = 0; i < n; i++) {
        LQ_GO(visit(w, x, at, first + i, stats ? &stats[i] : NULL));
        if (stats) lq_stats_free(&stats[i]);
    }
done:
    for (uint32_t i = 0; i < n && stats; i++) lq_stats_free(&stats[i]);
    lq_free(stats);
    return st;
}

static uint64_t gram_bytes(uint32_t cols) {
    uint64_t tiles = (cols + LQ_GRAM_TILE - 1) / LQ_GRAM_TILE;
    return tiles * (tiles + 1) * 4 * LQ_GRAM_TILE * LQ_GRAM_TILE;
}

/* With CROSS: the held-out part, two whole matrices beside two halves; the cache. */
static uint64_t times(unsigned needs) { return needs & LQ_NEED_CROSS ? 7 : 1; }

uint64_t lq_experts_bytes(const lq_model *m, unsigned needs) {
    if (!m->arch || !lq_params_has(&m->par, LQ_FEAT_MOE)) return 0;
    uint64_t in = gram_bytes(m->par.hidden), mid = gram_bytes(m->par.expert_ffn);
    return times(needs) * (in + (in > mid ? in : mid) + mid) + (uint64_t)SAMPLE * m->par.hidden * 4;
}

static uint32_t set_size(const lq_walk *w, const experts *x) {
    uint64_t a = gram_bytes(w->run.width[x->input[0]]), b = gram_bytes(w->run.width[x->input[1]]), most = (a > b ? a : b) * times(x->hook.needs);
    uint64_t fit = w->stats_budget / most, all = w->m->par.n_experts;
    return fit < 1 ? 1 : fit < all ? (uint32_t)fit : (uint32_t)all;
}

/* The two stages between ROUTE and MERGE: what reads the tokens, what reads the product. */
static lq_status find_stages(lq_walk *w, experts *x) {
    int32_t stage[LQ_MAX_OPS], n = 0;
    const lq_op *table = w->m->arch->block;
    uint32_t n_ops = lq_arch_stages(w->m->arch, &w->m->par, (uint32_t)w->b, stage);
    for (uint32_t i = (uint32_t)(x->route - table) + 1; i < n_ops && table[i].kind != LQ_OP_MERGE; i++) {
        if (stage[i] < 0 || (n && (uint32_t)stage[i] == x->stage[n - 1])) continue;
        if (n == 2) return lq_fail(w->ctx, LQ_ERR_INTERNAL, "experts of more than two stages");
        x->cut[n] = i;
        x->input[n] = table[i].in[0];
        x->stage[n++] = (uint32_t)stage[i];
    }
    return n == 2 ? LQ_OK : lq_fail(w->ctx, LQ_ERR_INTERNAL, "experts of %d stages", n);
}

static lq_status make_room(lq_walk *w, experts *x) {
    uint32_t d = w->run.width[x->route->out], f = w->run.width[x->input[1]];
    if (!(x->hook.needs & LQ_NEED_CROSS)) return LQ_OK;
    x->fp = LQ_NEWN(float, (size_t)w->run.chunk * d);
    x->own = LQ_NEWN(float, (size_t)w->run.chunk * (d > f ? d : f));
    return x->fp && x->own ? LQ_OK : lq_oom(w->ctx, (size_t)w->run.chunk * (d + f) * 4);
}

lq_status lq_walk_experts(lq_walk *w, uint32_t s, const lq_stage_hook *hook, const lq_stats *layer, const char *dir) {
    experts x = {.route = &w->m->arch->block[w->p.cut[s + 1]], .hook = *hook, .layer = layer, .s = s, .dir = dir};
    if (!hook->twin) x.hook.needs &= ~(unsigned)LQ_NEED_CROSS;
    uint32_t all = w->m->par.n_experts, d = w->run.width[x.route->out];
    LQ_TRY(find_stages(w, &x));
    if (layer) {
        x.every = layer->n > SAMPLE ? (layer->n + SAMPLE - 1) / SAMPLE : 1;
        uint64_t kept = (layer->n + x.every - 1) / x.every;
        if (!(x.sample = LQ_NEWN(float, kept * d))) return lq_oom(w->ctx, kept * d * 4);
    }
    lq_status st = make_room(w, &x);
    for (uint32_t first = 0, n = set_size(w, &x); first < all && !st; first += n) {
        if (n > all - first) n = all - first;
        for (uint32_t at = 0; at < 2 && !st; at++) st = run_set(w, s, &x, at, first, n);
    }
    lq_cache_free(&x.hidden);
    lq_free(x.fp);
    lq_free(x.own);
    lq_free(x.sample);
    return st;
}
