/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The interpreter: one op after the other over a chunk, each parallel over tokens, rows or heads in a split fixed by shape. */
#include "calib/forward.h"
#include "calib/run.h"
#include "core/os.h"

#include <math.h>
#include <string.h>

enum { RUN_BYTES = 48 << 20, CHUNK_MIN = 256, CHUNK_MAX = 2048, SLICE = 16 }; /* tokens */

static lq_status rope_table(lq_ctx *ctx, const lq_rope *rope, uint32_t positions, float **cosines, float **sines) {
    uint32_t half = rope->dim / 2;
    double *inv = LQ_NEWN(double, half), scale = rope->scale > 0 ? rope->scale : 1;
    uint64_t n;
    bool ok = inv && lq_mul_ok(positions, half, &n) && (*cosines = LQ_NEWN(float, n)) && (*sines = LQ_NEWN(float, n));
    if (!ok) return lq_free(inv), lq_oom(ctx, (size_t)positions * half * 8);
    lq_rope_inv_freq(rope, positions, inv);
    for (uint32_t pos = 0; pos < positions; pos++)
        for (uint32_t j = 0; j < half; j++) {
            double angle = (float)pos * (float)inv[j]; /* rounded as published code rounds it */
            (*cosines)[(size_t)pos * half + j] = (float)(cos(angle) * scale);
            (*sines)[(size_t)pos * half + j] = (float)(sin(angle) * scale);
        }
    lq_free(inv);
    return LQ_OK;
}

static lq_status rope_tables(lq_ctx *ctx, lq_run *r, uint32_t positions) {
    LQ_TRY(rope_table(ctx, &r->par->rope, positions, &r->turn[0].cos, &r->turn[0].sin));
    return r->par->two_ropes ? rope_table(ctx, &r->par->local_rope, positions, &r->turn[1].cos, &r->turn[1].sin) : LQ_OK;
}

static bool callers(int t) { return t == T_RESID || t == T_K || t == T_V; }

lq_status lq_run_init(lq_ctx *ctx, lq_run *r, const lq_model *m, uint32_t tokens, uint32_t positions) {
    *r = (lq_run){.k = m->k, .arch = m->arch, .par = &m->par};
    lq_arch_widths(m->arch, &m->par, r->width);
    r->width[T_NONE] = m->par.hidden;
    uint64_t sum = 0;
    for (int t = 0; t < T_N; t++) sum += callers(t) ? 0 : r->width[t];
    r->chunk = CHUNK_MAX;
    while (r->chunk > CHUNK_MIN && r->chunk * sum * 4 > RUN_BYTES) r->chunk /= 2;
    if (r->chunk > tokens) r->chunk = tokens;
    lq_status st = (r->mem = LQ_NEWN(float, sum * r->chunk)) ? rope_tables(ctx, r, positions) : lq_oom(ctx, sum * r->chunk * 4);
    if (!st) st = lq_work_fit(ctx, &r->work, lq_attn_scratch(positions) + (size_t)LQ_KV_TILE * m->par.head_dim, 0);
    if (!st) st = lq_routing_init(ctx, &r->routing, r->par, r->chunk);
    if (st) return lq_run_free(r), st;
    float *at = r->mem;
    for (int t = 0; t < T_N; t++) {
        if (callers(t)) continue;
        r->t[t] = at;
        at += (size_t)r->width[t] * r->chunk;
    }
    return LQ_OK;
}

static void most_of(const lq_linear *lin, uint32_t tokens, size_t *per, size_t *shared) {
    if (lq_linear_scratch(lin) > *per) *per = lq_linear_scratch(lin);
    if (lq_linear_shared(lin, tokens) > *shared) *shared = lq_linear_shared(lin, tokens);
}

lq_status lq_run_fit(lq_ctx *ctx, lq_run *r, const lq_layer *l) {
    size_t per = r->work.per, shared = r->work.bytes;
    for (int role = 0; role < LQ_R_N; role++) most_of(&l->lin[role], r->chunk, &per, &shared);
    for (size_t i = 0; i < (size_t)l->n_experts * LQ_EXPERT_ROLES; i++) most_of(&l->experts[i], r->chunk, &per, &shared);
    return lq_work_fit(ctx, &r->work, per, shared);
}

void lq_run_free(lq_run *r) {
    lq_work_free(&r->work);
    lq_routing_free(&r->routing);
    lq_free(r->mem);
    for (int i = 0; i < 2; i++) {
        lq_free(r->turn[i].cos);
        lq_free(r->turn[i].sin);
    }
    *r = (lq_run){0};
}

typedef struct tokens { /* an op that treats every token alike */
    const lq_run *r;
    const lq_op *op;
    const float *x, *x2;
    float *y;
    uint32_t n, width, layer;
    const lq_span *spans;
} tokens;

static uint32_t slice_end(const tokens *a, size_t i) { return (i + 1) * SLICE < a->n ? (uint32_t)(i + 1) * SLICE : a->n; }
static void each_slice(tokens *a, void (*fn)(void *, size_t)) { lq_spread((a->n + SLICE - 1) / SLICE, (uint64_t)a->n * a->width, fn, a); }

typedef struct norm { const lq_kernels *k; const lq_params *p; const float *gain, *shift, *x; float *y; uint32_t d, n; } norm;
static void norm_slice(void *arg, size_t i) {
    const norm *a = arg;
    for (size_t t = i * SLICE; t < (i + 1) * SLICE && t < a->n; t++) {
        const float *x = a->x + t * a->d;
        if (a->p->layernorm) a->k->layernorm(x, a->gain, a->shift, a->p->norm_eps, a->d, a->y + t * a->d);
        else a->k->rmsnorm(x, a->gain, a->p->norm_eps, a->d, a->y + t * a->d);
    }
}
void lq_run_norm(const lq_kernels *k, const lq_params *p, const float *gain, const float *shift, const float *x, uint32_t d, uint32_t n, float *y) {
    lq_spread(((size_t)n + SLICE - 1) / SLICE, (uint64_t)n * d, norm_slice, &(norm){k, p, gain, shift, x, y, d, n});
}

static void rope_slice(void *arg, size_t i) {
    const tokens *a = arg;
    const lq_span *s = a->spans;
    const lq_rope *rope = lq_params_rope(a->r->par, a->layer);
    const float *cosines = a->r->turn[rope != &a->r->par->rope].cos, *sines = a->r->turn[rope != &a->r->par->rope].sin;
    void (*turn)(float *, uint32_t, uint32_t, uint32_t, const float *, const float *) = rope->pairs ? a->r->k->rope_pairs : a->r->k->rope;
    uint32_t d = a->r->par->head_dim, end = slice_end(a, i);
    for (uint32_t t = (uint32_t)i * SLICE; t < end; t++) {
        while (t >= s->first + s->n) s++;
        size_t at = (size_t)(s->pos + t - s->first) * (rope->dim / 2);
        turn(a->y + (size_t)t * a->width, a->width / d, d, rope->dim, cosines + at, sines + at);
    }
}

static void glu_slice(void *arg, size_t i) {
    const tokens *a = arg;
    size_t from = i * SLICE * a->width, n = (size_t)slice_end(a, i) * a->width - from;
    a->r->k->glu(a->r->par->act, a->x + from, a->x2 + from, a->y + from, n);
}

static void act_slice(void *arg, size_t i) { /* f(x) is f(x) * 1 */
    enum { PIECE = 256 };
    const tokens *a = arg;
    size_t from = i * SLICE * a->width, n = (size_t)slice_end(a, i) * a->width - from;
    float ones[PIECE];
    for (size_t j = 0; j < PIECE; j++) ones[j] = 1;
    for (size_t at = 0; at < n; at += PIECE)
        a->r->k->glu(a->r->par->act, a->x + from + at, ones, a->y + from + at, n - at < PIECE ? n - at : PIECE);
}

/* A part of a fused matrix's output: runs of neighbouring rows. */
static void split_slice(void *arg, size_t i) {
    const tokens *a = arg;
    const lq_params *p = a->r->par;
    uint32_t end = slice_end(a, i), rows = lq_part_rows(p, a->op->role), run = rows;
    if (a->op->kind == LQ_OP_SPLIT_HEADS) run = a->op->role == LQ_R_Q ? rows / p->n_kv_heads : p->head_dim;
    for (uint32_t t = (uint32_t)i * SLICE; t < end; t++)
        for (uint32_t at = 0; at < rows; at += run)
            memcpy(a->y + (size_t)t * rows + at, a->x + (size_t)t * a->width + lq_split_row(p, a->op->kind, a->op->role, at), run * sizeof *a->y);
}

static void add_slice(void *arg, size_t i) {
    const tokens *a = arg;
    size_t from = i * SLICE * a->width, n = (size_t)slice_end(a, i) * a->width - from;
    float scale = a->r->par->resid_scale, *x = a->r->t[T_NONE];
    for (size_t j = from; scale > 0 && j < from + n; j++) x[j] *= scale;
    a->r->k->add(a->y + from, x + from, n);
}

static void clamp_slice(void *arg, size_t i) {
    const tokens *a = arg;
    float most = a->r->par->clip_qkv;
    for (size_t c = i * SLICE * a->width; c < (size_t)slice_end(a, i) * a->width; c++) a->y[c] = fminf(fmaxf(a->x[c], -most), most);
}

/* x2[n]: one number per token */
static void token_gate_slice(void *arg, size_t i) {
    const tokens *a = arg;
    for (uint32_t t = (uint32_t)i * SLICE; t < slice_end(a, i); t++) {
        float g = (float)(1 / (1 + exp(-(double)a->x2[t])));
        for (size_t c = (size_t)t * a->width; c < (size_t)(t + 1) * a->width; c++) a->y[c] = g * a->x[c];
    }
}

static void note_max(float *max, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) *max = fabsf(x[i]) > *max ? fabsf(x[i]) : *max;
}

/* Where an op writes, and what is left to do then. */
static float *target(lq_run *r, const lq_op *op) { return r->t[op->out & LQ_OUT_ADD ? T_NONE : op->out]; }
static void add_branch(lq_run *r, const lq_op *op, uint32_t n) {
    int t = op->out & ~LQ_OUT_ADD;
    if (op->out & LQ_OUT_ADD) each_slice(&(tokens){.r = r, .y = r->t[t], .n = n, .width = r->width[t]}, add_slice);
}

/* Keys and values of the chunk to where they are read. */
static void keep_rows(lq_run *r, const lq_op *op, const lq_span *spans, uint32_t n_spans) {
    for (const lq_span *s = spans; s < spans + n_spans; s++) {
        size_t wk = r->width[op->in[1]], wv = r->width[op->in[2]];
        const float *k = r->t[op->in[1]] + s->first * wk, *v = r->t[op->in[2]] + s->first * wv;
        if (s->kv) lq_kv_put(s->kv, s->layer, s->pos, s->n, k, v);
        if (s->key_row) memcpy(s->key_row, k, s->n * wk * sizeof *k);
        if (s->value_row) memcpy(s->value_row, v, s->n * wv * sizeof *v);
    }
}

static int clock_of(const lq_op *op) {
    return op->kind == LQ_OP_LINEAR ? LQ_CLOCK_LINEAR : op->kind == LQ_OP_ATTN ? LQ_CLOCK_ATTENTION : LQ_CLOCK_OTHER;
}

void lq_run_ops(lq_run *r, const lq_layer *l, uint32_t layer, uint32_t from, uint32_t to, uint32_t n, const lq_span *spans, uint32_t n_spans) {
    for (const lq_op *op = r->arch->block + from; op < r->arch->block + to; op++) {
        if (!lq_params_at(r->par, op->only_if, layer)) continue;
        float *x = r->t[op->in[0]], *y = target(r, op);
        uint32_t width = r->width[op->in[0]], d = r->par->head_dim;
        double start = r->clock ? lq_now() : 0;
        tokens a = {.r = r, .op = op, .x = x, .x2 = r->t[op->in[1]], .y = y, .n = n, .width = width, .layer = layer, .spans = spans};
        switch (op->kind) {
        case LQ_OP_NORM: lq_run_norm(r->k, r->par, l->norm[op->role], l->shift[op->role], x, width, n, y); break;
        case LQ_OP_HEAD_NORM: lq_run_norm(r->k, r->par, l->norm[op->role], l->shift[op->role], x, d, n * (width / d), y); break;
        case LQ_OP_LINEAR: lq_linear_run(r->k, &r->work, lq_layer_linear(l, op->role, (int32_t)r->expert), x, n, y); break;
        case LQ_OP_SPLIT:
        case LQ_OP_SPLIT_HEADS: each_slice(&a, split_slice); break;
        case LQ_OP_ACT: each_slice(&a, act_slice); break;
        case LQ_OP_ROPE: each_slice(&a, rope_slice); break;
        case LQ_OP_ATTN:
            if (r->kv_max) note_max(&r->kv_max[0], r->t[op->in[1]], (size_t)n * r->width[op->in[1]]);
            if (r->kv_max) note_max(&r->kv_max[1], r->t[op->in[2]], (size_t)n * r->width[op->in[2]]);
            keep_rows(r, op, spans, n_spans);
            if (spans->kv) lq_kv_queries(spans->kv, x, n, r->par->n_heads);
            lq_attn(r, lq_params_window(r->par, layer), x, y, spans, n_spans); break;
        case LQ_OP_GLU: each_slice(&a, glu_slice); break;
        case LQ_OP_CLAMP: each_slice(&a, clamp_slice); break;
        case LQ_OP_ROUTE: op = lq_run_experts(r, l, layer, op, n); continue;
        case LQ_OP_TOKEN_GATE: each_slice(&a, token_gate_slice); break;
        case LQ_OP_MERGE:
        case LQ_OP_END: return;
        }
        add_branch(r, op, n);
        if (r->clock) r->clock[clock_of(op)] += lq_now() - start;
    }
}
