/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Calibration of one block: GPTQ's loop (algorithms.md 5) over the op table. The table is cut before the first LINEAR of every
 * stage; between two cuts all sequences run one segment, the tensors that live across a cut go to a cache, unless they are a
 * norm of the residual stream: that is computed again. */
#include "calib/walk.h"

#include <string.h>

static uint8_t target(const lq_op *op) { return op->out & ~LQ_OUT_ADD; }

static bool reads(const lq_op *op, int t) {
    return op->in[0] == t || op->in[1] == t || op->in[2] == t || (op->out & LQ_OUT_ADD && target(op) == t);
}

static bool is_on(const lq_walk *w, const lq_op *op) { return lq_params_at(&w->m->par, op->only_if, (uint32_t)w->b); }

/* Is t read at or after op `at` before it is set anew? */
static bool is_live(const lq_walk *w, uint32_t at, int t) {
    for (const lq_op *op = w->m->arch->block + at; op->kind; op++) {
        if (!is_on(w, op)) continue;
        if (reads(op, t)) return true;
        if (target(op) == t) return false;
    }
    return false;
}

/* The op that last made t before `at`, when it is a norm of a residual stream that has not changed since; else -1. */
static int32_t norm_of_resid(const lq_walk *w, uint32_t at, int t) {
    for (int32_t i = (int32_t)at - 1; i >= 0; i--) {
        const lq_op *op = &w->m->arch->block[i];
        if (!is_on(w, op)) continue;
        if (target(op) == t) return op->kind == LQ_OP_NORM && op->in[0] == T_RESID ? i : -1;
        if (target(op) == T_RESID) return -1;
    }
    return -1;
}

/* Stages between ROUTE and MERGE have no cut of their own: they belong to the ROUTE's (calib/experts.c). */
static void make_plan(lq_walk *w) {
    int32_t stage[LQ_MAX_OPS], seen = 0;
    const lq_op *table = w->m->arch->block;
    lq_cuts *p = &w->p;
    *p = (lq_cuts){.n_ops = lq_arch_stages(w->m->arch, &w->m->par, (uint32_t)w->b, stage)};
    bool inside = false;
    for (uint32_t i = 0; i < p->n_ops; i++) {
        if (table[i].kind == LQ_OP_MERGE) inside = false;
        if (stage[i] >= seen && !inside) {
            p->input[p->n_stages] = table[i].in[0];
            p->stage[p->n_stages++] = (uint32_t)stage[i];
            p->cut[p->n_stages] = i;
        }
        if (stage[i] >= seen) seen = stage[i] + 1;
        if (table[i].kind == LQ_OP_ROUTE && stage[i] >= 0) inside = true;
    }
    p->cut[p->n_stages + 1] = p->n_ops;
    for (uint32_t s = 0; s <= p->n_stages; s++) {
        for (uint32_t i = p->cut[s]; i < p->cut[s + 1]; i++) p->writes_resid[s] = p->writes_resid[s] || target(&table[i]) == T_RESID;
        for (int t = T_NONE + 1; t < T_N; t++) {
            p->again[s][t] = -1;
            if (t == T_RESID || !s || !is_live(w, p->cut[s], t)) continue;
            p->again[s][t] = norm_of_resid(w, p->cut[s], t);
            p->stored[s][t] = p->again[s][t] < 0;
        }
    }
}

static lq_status make_groups(lq_walk *w) {
    uint32_t n = (uint32_t)lq_cache_items(w->resid);
    w->groups = LQ_NEWN(lq_walk_group, n);
    if (!w->groups) return lq_oom(w->ctx, n * sizeof(lq_walk_group));
    for (uint32_t i = 0; i < n;) {
        lq_walk_group g = {.first = i};
        do g.tokens += w->len[i++], g.n++;
        while (i < n && g.tokens + w->len[i] <= w->run.chunk);
        if (g.tokens > w->widest) w->widest = g.tokens;
        w->n_chunks += (g.tokens + w->run.chunk - 1) / w->run.chunk;
        w->groups[w->n_groups++] = g;
    }
    return LQ_OK;
}

static uint32_t longest(const lq_walk *w) {
    uint32_t most = 1;
    for (size_t i = 0; i < lq_cache_items(w->resid); i++) most = w->len[i] > most ? w->len[i] : most;
    return most;
}

static uint32_t stored_width(const lq_walk *w, uint32_t s) {
    uint32_t width = 0;
    for (int t = 0; t < T_N; t++) width += w->p.stored[s][t] ? w->run.width[t] : 0;
    return width;
}

static float *floats(uint32_t n, uint32_t width) {
    uint64_t bytes;
    return lq_mul_ok((uint64_t)n * width, sizeof(float), &bytes) ? lq_alloc_raw(bytes) : NULL;
}

static lq_status walk_init(lq_walk *w, uint64_t budget, const char *dir) {
    lq_ctx *ctx = w->ctx;
    uint64_t tokens = 0;
    for (size_t i = 0; i < lq_cache_items(w->resid); i++) tokens += w->len[i];
    make_plan(w);
    LQ_TRY(lq_run_init(ctx, &w->run, w->m, tokens < UINT32_MAX ? (uint32_t)tokens : UINT32_MAX, longest(w)));
    LQ_TRY(lq_run_fit(ctx, &w->run, &w->m->layers[w->b]));
    LQ_TRY(make_groups(w));
    uint32_t most = 0;
    for (uint32_t s = 1; s <= w->p.n_stages; s++) most = stored_width(w, s) > most ? stored_width(w, s) : most;
    bool ok = (w->stream = floats(w->widest, w->run.width[T_RESID])) && (w->keys = floats(w->widest, w->run.width[T_K])) &&
              (w->values = floats(w->widest, w->run.width[T_V])) && (w->spans = LQ_NEWN(lq_span, w->run.chunk)) && (w->keep = floats(w->run.chunk, most));
    if (!ok) return lq_oom(ctx, (size_t)w->widest * w->run.width[T_RESID] * 4);
    return lq_cache_new(ctx, w->n_chunks, budget, dir, &w->live);
}

static void walk_free(lq_walk *w) {
    for (uint32_t s = 0; s < LQ_WALK_STAGES; s++) lq_cache_free(&w->inputs[s]);
    lq_cache_free(&w->live);
    lq_cache_free(&w->copy);
    lq_run_free(&w->run);
    lq_free(w->groups);
    lq_free(w->stream);
    lq_free(w->keys);
    lq_free(w->values);
    lq_free(w->keep);
    lq_free(w->spans);
}

/* The spans of tokens [t0, t0+n) of a group; returns their number. */
static uint32_t make_spans(lq_walk *w, const lq_walk_group *g, uint32_t t0, uint32_t n) {
    if (g->n == 1) {
        w->spans[0] = (lq_span){.n = n, .pos = t0, .keys = w->keys, .values = w->values};
        return 1;
    }
    for (uint32_t i = 0, at = 0; i < g->n; at += w->len[g->first + i++])
        w->spans[i] = (lq_span){.first = at, .n = w->len[g->first + i], .keys = w->keys + (size_t)at * w->run.width[T_K], .values = w->values + (size_t)at * w->run.width[T_V]};
    return g->n;
}

/* Where a cache item of that width is put together: the tensor itself when it is the only one. */
static float *kept(const lq_walk *w, uint32_t s, uint32_t width) {
    for (int t = 0; t < T_N; t++)
        if (w->p.stored[s][t] && w->run.width[t] == width) return w->run.t[t];
    return w->keep;
}

static lq_status load_live(lq_walk *w, uint32_t s, uint32_t chunk, uint32_t n) {
    uint32_t width = stored_width(w, s);
    const lq_layer *l = &w->m->layers[w->b];
    float *at = width ? kept(w, s, width) : NULL;
    if (width) LQ_TRY(lq_cache_get(w->ctx, w->live, chunk, at, (size_t)n * width));
    for (int t = T_NONE + 1; t < T_N; t++) {
        size_t size = (size_t)n * w->run.width[t];
        if (w->p.stored[s][t]) {
            if (w->run.t[t] != at) memcpy(w->run.t[t], at, size * 4);
            at += size;
        } else if (s && w->p.again[s][t] >= 0) {
            uint32_t op = (uint32_t)w->p.again[s][t];
            lq_run_ops(&w->run, l, (uint32_t)w->b, op, op + 1, n, NULL, 0);
        }
    }
    return LQ_OK;
}

static lq_status save_live(lq_walk *w, uint32_t s, uint32_t chunk, uint32_t n) {
    uint32_t width = stored_width(w, s);
    float *from = width ? kept(w, s, width) : NULL, *at = from;
    for (int t = 0; t < T_N; t++) {
        if (!w->p.stored[s][t]) continue;
        if (w->run.t[t] != at) memcpy(at, w->run.t[t], (size_t)n * w->run.width[t] * 4);
        at += (size_t)n * w->run.width[t];
    }
    return width ? lq_cache_put(w->ctx, w->live, chunk, from, (size_t)n * width) : LQ_OK;
}

static lq_status move_stream(lq_walk *w, const lq_walk_group *g, bool in) {
    uint32_t d = w->run.width[T_RESID];
    float *at = w->stream;
    for (uint32_t i = g->first; i < g->first + g->n; at += (size_t)w->len[i++] * d) {
        if (in) LQ_TRY(lq_cache_get(w->ctx, w->copied ? w->copy : w->resid, i, at, (size_t)w->len[i] * d));
        else LQ_TRY(lq_cache_put(w->ctx, w->copy ? w->copy : w->resid, i, at, (size_t)w->len[i] * d));
    }
    return LQ_OK;
}

typedef struct segment { uint32_t s; lq_stats *stats; } segment;

bool lq_walk_held(const lq_walk *w, uint32_t sequence) {
    uint32_t n = (uint32_t)lq_cache_items(w->resid);
    return n < 8 ? n > 1 && sequence == n - 1 : sequence % 8 == 7;
}

static lq_status add_cross(lq_walk *w, const lq_chunk *c, uint32_t s, lq_stats *stats) {
    size_t width = w->run.width[w->p.input[s]];
    const float *x = w->run.t[w->p.input[s]];
    float *fp = LQ_NEWN(float, c->n * width);
    lq_status st = fp ? lq_cache_get(w->ctx, w->inputs[s], c->index, fp, c->n * width) : lq_oom(w->ctx, c->n * width * 4);
    for (uint32_t i = 0; i < c->n_spans && !st; i++) {
        const lq_span *p = &w->spans[i];
        st = lq_stats_add_cross(w->ctx, stats, fp + p->first * width, x + p->first * width, p->n, lq_walk_held(w, c->sequence + i));
    }
    lq_free(fp);
    return st;
}

static lq_status run_chunk(lq_walk *w, const lq_chunk *c, void *user) {
    const segment *g = user;
    uint32_t s = g->s;
    lq_run_ops(&w->run, &w->m->layers[w->b], (uint32_t)w->b, w->p.cut[s], w->p.cut[s + 1], c->n, w->spans, c->n_spans);
    LQ_TRY(lq_work_check(w->ctx, &w->run.work));
    if (s == w->p.n_stages) return LQ_OK;
    LQ_TRY(save_live(w, s + 1, c->index, c->n));
    if (g->stats) LQ_TRY(lq_stats_add(w->ctx, g->stats, w->run.t[w->p.input[s]], c->n));
    return g->stats && w->inputs[s] ? add_cross(w, c, s, g->stats) : LQ_OK;
}

static lq_status each_chunk(lq_walk *w, const lq_walk_group *g, uint32_t s, uint32_t *index, lq_chunk_fn fn, void *user) {
    lq_run *r = &w->run;
    for (uint32_t t0 = 0; t0 < g->tokens; t0 += r->chunk) {
        lq_chunk c = {.index = (*index)++, .n = g->tokens - t0 < r->chunk ? g->tokens - t0 : r->chunk};
        r->t[T_RESID] = w->stream + (size_t)t0 * r->width[T_RESID];
        r->t[T_K] = w->keys + (size_t)t0 * r->width[T_K];
        r->t[T_V] = w->values + (size_t)t0 * r->width[T_V];
        c.n_spans = make_spans(w, g, t0, c.n);
        c.sequence = g->first;
        LQ_TRY(load_live(w, s, c.index, c.n));
        LQ_TRY(fn(w, &c, user));
    }
    return LQ_OK;
}

lq_status lq_walk_chunks(lq_walk *w, uint32_t s, bool keep, lq_chunk_fn fn, void *user) {
    uint32_t index = 0;
    for (const lq_walk_group *g = w->groups; g < w->groups + w->n_groups; g++) {
        LQ_TRY(lq_check_cancel(w->ctx));
        LQ_TRY(move_stream(w, g, true));
        LQ_TRY(each_chunk(w, g, s, &index, fn, user));
        if (keep) LQ_TRY(move_stream(w, g, false));
    }
    w->copied = w->copied || (w->copy && keep);
    return LQ_OK;
}

static lq_status run_segment(lq_walk *w, uint32_t s, lq_stats *stats) {
    return lq_walk_chunks(w, s, w->p.writes_resid[s], run_chunk, &(segment){s, stats});
}

static lq_status twin_chunk(lq_walk *w, const lq_chunk *c, void *user) {
    uint32_t s = *(const uint32_t *)user;
    lq_run_ops(&w->run, &w->m->layers[w->b], (uint32_t)w->b, w->p.cut[s], w->p.cut[s + 1], c->n, w->spans, c->n_spans);
    if (s == w->p.n_stages) return LQ_OK;
    LQ_TRY(save_live(w, s + 1, c->index, c->n));
    int t = w->p.input[s];
    return lq_cache_put(w->ctx, w->inputs[s], c->index, w->run.t[t], (size_t)c->n * w->run.width[t]);
}

/* The unquantized model goes first, so that no second copy of the weights is needed: what its stages read is kept. */
static lq_status run_twin(lq_walk *w, lq_cache *twin, uint64_t budget, const char *dir) {
    lq_cache *own = w->resid;
    lq_status st = LQ_OK;
    w->resid = twin;
    for (uint32_t s = 0; s <= w->p.n_stages && !st; s++) {
        if (s < w->p.n_stages) st = lq_cache_new(w->ctx, w->n_chunks, budget / w->p.n_stages, dir, &w->inputs[s]);
        if (!st) st = lq_walk_chunks(w, s, w->p.writes_resid[s], twin_chunk, &s);
    }
    w->resid = own;
    return st;
}

void lq_stage_fill(lq_model *m, int32_t b, uint32_t index, int32_t expert, lq_stage *out) {
    int32_t stage[LQ_MAX_OPS];
    uint32_t n_ops = lq_arch_stages(m->arch, &m->par, (uint32_t)b, stage);
    *out = (lq_stage){.index = index, .expert = -1};
    for (uint32_t i = 0; i < n_ops; i++) {
        if (stage[i] != (int32_t)index) continue;
        lq_role role = m->arch->block[i].role;
        if (lq_role_is_expert(role)) out->expert = expert;
        lq_linear *lin = lq_layer_linear(&m->layers[b], role, expert);
        if (out->n < sizeof out->lin / sizeof *out->lin) out->lin[out->n++] = lin;
        out->cols = lin->cols;
    }
}

uint32_t lq_block_stages(lq_model *m, int32_t b, lq_stage *out, uint32_t max) {
    int32_t stage[LQ_MAX_OPS], last = -1;
    uint32_t n_ops = lq_arch_stages(m->arch, &m->par, (uint32_t)b, stage);
    for (uint32_t i = 0; i < n_ops; i++) last = stage[i] > last ? stage[i] : last;
    uint32_t n = (uint32_t)(last + 1) < max ? (uint32_t)(last + 1) : max;
    for (uint32_t s = 0; s < n; s++) lq_stage_fill(m, b, s, 0, &out[s]);
    return n;
}

static lq_status run_stage(lq_walk *w, uint32_t s, const lq_stage *stage, const lq_stage_hook *hook, const char *dir) {
    lq_stats stats = {0};
    lq_status st = LQ_OK;
    if (hook->needs) LQ_GO(lq_stats_init(w->ctx, &stats, hook->needs, stage->cols));
    LQ_GO(run_segment(w, s, hook->needs ? &stats : NULL));
    LQ_GO(hook->on_stage(hook->user, w->b, stage, hook->needs ? &stats : NULL));
    LQ_GO(lq_run_fit(w->ctx, &w->run, &w->m->layers[w->b])); /* what it left may be quantized */
    if (w->m->arch->block[w->p.cut[s + 1]].kind == LQ_OP_ROUTE) st = lq_walk_experts(w, s, hook, hook->needs ? &stats : NULL, dir);
done:
    lq_stats_free(&stats);
    return st;
}

/* Nobody watches: the whole table is one segment. */
static void join_segments(lq_cuts *p) {
    p->cut[1] = p->n_ops;
    p->n_stages = 0;
    for (uint32_t s = 0; s < LQ_WALK_STAGES + 2; s++) p->writes_resid[0] = p->writes_resid[0] || p->writes_resid[s];
}

static lq_status run_block(lq_ctx *ctx, lq_model *m, int32_t b, lq_cache *resid, const uint32_t *len, const lq_stage_hook *hook, bool dry,
                           uint64_t cache_budget, const char *work_dir) {
    if (!m->arch || b < 0 || b >= (int32_t)m->par.n_layers || !m->layers[b].loaded)
        return lq_fail(ctx, LQ_ERR_INTERNAL, "block %d is not loaded", b);
    lq_walk w = {.ctx = ctx, .m = m, .b = b, .resid = resid, .len = len};
    lq_status st;
    w.stats_budget = lq_params_at(&m->par, LQ_FEAT_MOE, (uint32_t)b) ? cache_budget / 2 : 0;
    bool twin = hook && hook->twin && hook->needs & LQ_NEED_CROSS;
    LQ_GO(walk_init(&w, (cache_budget - w.stats_budget) / (twin || dry ? 2 : 1), work_dir));
    if (dry) LQ_GO(lq_cache_new(ctx, lq_cache_items(resid), (cache_budget - w.stats_budget) / 2, work_dir, &w.copy));
    if (!hook || !hook->on_stage) join_segments(&w.p);
    if (twin) LQ_GO(run_twin(&w, hook->twin, cache_budget / 2, work_dir));
    if (hook) w.run.kv_max = hook->kv_max;
    for (uint32_t s = 0; s < w.p.n_stages; s++) {
        lq_stage stage;
        lq_stage_fill(m, b, w.p.stage[s], -1, &stage);
        LQ_GO(run_stage(&w, s, &stage, hook, work_dir));
    }
    if (!dry) LQ_GO(run_segment(&w, w.p.n_stages, NULL));
done:
    if (st) lq_note(ctx, st, "block %d", b);
    walk_free(&w);
    return st;
}

lq_status lq_block_calibrate(lq_ctx *ctx, lq_model *m, int32_t b, lq_cache *resid, const uint32_t *len, const lq_stage_hook *hook,
                             uint64_t cache_budget, const char *work_dir) {
    return run_block(ctx, m, b, resid, len, hook, false, cache_budget, work_dir);
}

lq_status lq_block_look(lq_ctx *ctx, lq_model *m, int32_t b, lq_cache *resid, const uint32_t *len, const lq_stage_hook *hook, uint64_t cache_budget,
                        const char *work_dir) {
    return run_block(ctx, m, b, resid, len, hook, true, cache_budget, work_dir);
}
