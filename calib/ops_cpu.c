/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The CPU's operations: each parallel over tokens, rows or heads in a split fixed by shape. */
#include "calib/ops.h"

#include <math.h>
#include <string.h>

enum { SLICE = 16 }; /* tokens */

lq_status lq_rope_table(lq_ctx *ctx, const lq_rope *rope, uint32_t positions, float **cosines, float **sines) {
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

static lq_status cpu_open(lq_ctx *ctx, lq_run *r, uint32_t positions) {
    LQ_TRY(lq_rope_table(ctx, &r->par->rope, positions, &r->turn[0].cos, &r->turn[0].sin));
    if (r->par->two_ropes) LQ_TRY(lq_rope_table(ctx, &r->par->local_rope, positions, &r->turn[1].cos, &r->turn[1].sin));
    return lq_work_fit(ctx, &r->work, lq_attn_scratch(r->par, positions), lq_attn_shared(r->par, positions));
}

static void cpu_close(lq_run *r) {
    lq_work_free(&r->work);
    lq_free(r->places);
    for (int i = 0; i < 2; i++) {
        lq_free(r->turn[i].cos);
        lq_free(r->turn[i].sin);
    }
}

static float *cpu_alloc(lq_run *r, uint64_t n) {
    (void)r;
    return n <= SIZE_MAX / sizeof(float) ? lq_alloc_raw((size_t)n * sizeof(float)) : NULL;
}

static void cpu_release(lq_run *r, float *p) {
    (void)r;
    lq_free(p);
}

static void most_of(const lq_linear *lin, uint32_t tokens, size_t *per, size_t *shared) {
    if (lq_linear_scratch(lin) > *per) *per = lq_linear_scratch(lin);
    if (lq_linear_shared(lin, tokens) > *shared) *shared = lq_linear_shared(lin, tokens);
}

static lq_status cpu_fit(lq_ctx *ctx, lq_run *r, const lq_layer *l) {
    size_t per = r->work.per, shared = r->work.bytes;
    for (int role = 0; role < LQ_R_N; role++) most_of(&l->lin[role], r->chunk, &per, &shared);
    for (size_t i = 0; i < (size_t)l->n_experts * LQ_EXPERT_ROLES; i++) most_of(&l->experts[i], r->chunk, &per, &shared);
    return lq_work_fit(ctx, &r->work, per, shared);
}

static lq_status fit_places(lq_ctx *ctx, lq_run *r, uint32_t n) {
    if (r->room >= n) return LQ_OK;
    lq_free(r->places);
    r->places = LQ_NEWN(int32_t, n);
    r->room = r->places ? n : 0;
    return r->places ? LQ_OK : lq_oom(ctx, n * sizeof *r->places);
}

static lq_status cpu_begin(lq_ctx *ctx, lq_run *r, const int32_t *ids, const lq_span *spans, uint32_t n_spans, uint32_t n, float *hidden) {
    r->ids = ids;
    r->stream = hidden;
    if (!lq_arch_tensor(r->arch, LQ_R_POS_EMBED, LQ_PART_WEIGHT)) return LQ_OK;
    LQ_TRY(fit_places(ctx, r, n));
    for (const lq_span *s = spans; s < spans + n_spans; s++)
        for (uint32_t i = 0; i < s->n; i++) r->places[s->first + i] = (int32_t)(r->par->pos_offset + s->pos + i);
    return LQ_OK;
}

static lq_status cpu_end(lq_ctx *ctx, lq_run *r, uint32_t n, float *hidden) {
    (void)n, (void)hidden;
    return lq_work_check(ctx, &r->work);
}

static bool cpu_again(lq_run *r, uint64_t key) {
    (void)r, (void)key;
    return false;
}
static void cpu_passed(lq_run *r, bool whole) { (void)r, (void)whole; }

static lq_status cpu_check(lq_ctx *ctx, lq_run *r) { return lq_work_check(ctx, &r->work); }

typedef struct tokens { /* an op that treats every token alike */
    const lq_run *r;
    const lq_op *op;
    const float *x, *x2;
    float *y;
    uint32_t n, width, first;
    float v, v2;
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
static void cpu_norm(lq_run *r, lq_role role, const float *x, uint32_t d, uint32_t n, float *y) {
    lq_spread(((size_t)n + SLICE - 1) / SLICE, (uint64_t)n * d, norm_slice, &(norm){r->k, r->par, r->l->norm[role], r->l->shift[role], x, y, d, n});
}

static void rope_slice(void *arg, size_t i) {
    const tokens *a = arg;
    const lq_span *s = a->spans;
    const lq_rope *rope = lq_params_rope(a->r->par, (uint32_t)a->r->layer);
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
    float scale = a->v, *x = (float *)a->x;
    for (size_t j = from; scale > 0 && j < from + n; j++) x[j] *= scale;
    a->r->k->add(a->y + from, x + from, n);
}

static void clamp_slice(void *arg, size_t i) {
    const tokens *a = arg;
    float most = a->v;
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

static void gather_slice(void *arg, size_t i) {
    const tokens *a = arg;
    const uint32_t *token = a->r->routing.token + a->first;
    for (uint32_t t = (uint32_t)i * SLICE; t < slice_end(a, i); t++)
        memcpy(a->y + (size_t)t * a->width, a->x + (size_t)token[t] * a->width, a->width * sizeof(float));
}

static void scatter_slice(void *arg, size_t i) {
    const tokens *a = arg;
    const lq_routing *g = &a->r->routing;
    for (uint32_t t = (uint32_t)i * SLICE; t < slice_end(a, i); t++) {
        const float *x = a->x + (size_t)t * a->width;
        float *y = a->y + (size_t)g->token[a->first + t] * a->width, w = g->weight[a->first + t];
        if (a->r->par->resid_scale > 0) w *= a->r->par->resid_scale;
        for (uint32_t c = 0; c < a->width; c++) y[c] += w * x[c];
    }
}

static void cap_slice(void *arg, size_t i) {
    const tokens *a = arg;
    size_t end = (size_t)slice_end(a, i) * a->width;
    for (size_t c = i * SLICE * a->width; a->v > 0 && c < end; c++) a->y[c] /= a->v;
    for (size_t c = i * SLICE * a->width; a->v2 > 0 && c < end; c++) a->y[c] = a->v2 * tanhf(a->y[c] / a->v2);
}

static void note_max(float *max, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) *max = fabsf(x[i]) > *max ? fabsf(x[i]) : *max;
}

/* Keys and values of the chunk to where they are read. */
static void keep_rows(lq_run *r, const lq_op *op, const lq_span *spans, uint32_t n_spans) {
    for (const lq_span *s = spans; s < spans + n_spans; s++) {
        size_t wk = r->width[op->in[1]], wv = r->width[op->in[2]];
        const float *k = r->t[op->in[1]] + s->first * wk, *v = r->t[op->in[2]] + s->first * wv;
        if (s->kv) lq_kv_put(s->kv, s->layer, s->pos, s->n, k, v);
    }
}

static void cpu_attn(lq_run *r, const lq_op *op, float *q, uint32_t n, float *out, const lq_span *spans, uint32_t n_spans) {
    if (r->kv_max) note_max(&r->kv_max[0], r->t[op->in[1]], (size_t)n * r->width[op->in[1]]);
    if (r->kv_max) note_max(&r->kv_max[1], r->t[op->in[2]], (size_t)n * r->width[op->in[2]]);
    keep_rows(r, op, spans, n_spans);
    if (spans->kv) lq_kv_queries(spans->kv, q, n, r->par->n_heads);
    lq_attn(r, lq_params_window(r->par, (uint32_t)r->layer), q, out, spans, n_spans);
}

/* A tied head may still have its own bias. */
static const lq_linear *matrix(const lq_run *r, lq_role role, lq_linear *tied) {
    if (role != LQ_R_HEAD || !r->par->tied) return lq_layer_linear(r->l, role, (int32_t)r->expert);
    *tied = r->l->lin[LQ_R_EMBED];
    tied->bias = r->l->lin[LQ_R_HEAD].bias;
    return tied;
}

static void cpu_linear(lq_run *r, lq_role role, const float *x, uint32_t n, float *y) {
    lq_linear tied;
    lq_linear_run(r->k, &r->work, matrix(r, role, &tied), x, n, y);
}

static void cpu_embed(lq_run *r, lq_role role, const int32_t *ids, uint32_t n, float *y) {
    const lq_linear *e = &r->l->lin[role];
    for (uint32_t i = 0; i < n; i++) lq_linear_row(r->k, e, (uint32_t)ids[i], lq_work_mine(&r->work), y + (size_t)i * e->cols);
}

static void cpu_split(lq_run *r, const lq_op *op, const float *x, uint32_t n, float *y) {
    each_slice(&(tokens){.r = r, .op = op, .x = x, .y = y, .n = n, .width = r->width[op->in[0]]}, split_slice);
}
static void cpu_rope(lq_run *r, float *x, uint32_t width, uint32_t n, const lq_span *spans) {
    each_slice(&(tokens){.r = r, .y = x, .n = n, .width = width, .spans = spans}, rope_slice);
}
static void cpu_glu(lq_run *r, const float *gate, const float *up, uint32_t width, uint32_t n, float *y) {
    each_slice(&(tokens){.r = r, .x = gate, .x2 = up, .y = y, .n = n, .width = width}, up ? glu_slice : act_slice);
}
static void cpu_add(lq_run *r, float *y, float *x, float scale, uint32_t width, uint32_t n) {
    each_slice(&(tokens){.r = r, .x = x, .y = y, .n = n, .width = width, .v = scale}, add_slice);
}
static void cpu_clamp(lq_run *r, const float *x, float most, uint32_t width, uint32_t n, float *y) {
    each_slice(&(tokens){.r = r, .x = x, .y = y, .n = n, .width = width, .v = most}, clamp_slice);
}
static void cpu_token_gate(lq_run *r, const float *x, const float *gate, uint32_t width, uint32_t n, float *y) {
    each_slice(&(tokens){.r = r, .x = x, .x2 = gate, .y = y, .n = n, .width = width}, token_gate_slice);
}
static void cpu_scale(lq_run *r, float *x, float times, uint32_t width, uint32_t n) {
    (void)r;
    for (size_t i = 0; i < (size_t)n * width; i++) x[i] *= times;
}
static void cpu_cap(lq_run *r, float *x, float div, float cap, uint32_t width, uint32_t n) {
    each_slice(&(tokens){.r = r, .y = x, .n = n, .width = width, .v = div, .v2 = cap}, cap_slice);
}
static void cpu_scores(lq_run *r, lq_role role, const float *x, uint32_t n) { lq_linear_run(r->k, &r->work, &r->l->lin[role], x, n, r->routing.p); }
static void cpu_routed(lq_run *r, uint32_t n) { (void)r, (void)n; }
static void cpu_gather(lq_run *r, const float *x, uint32_t first, uint32_t n, uint32_t width, float *y) {
    each_slice(&(tokens){.r = r, .x = x, .y = y, .n = n, .width = width, .first = first}, gather_slice);
}
static void cpu_scatter(lq_run *r, const float *x, uint32_t first, uint32_t n, uint32_t width, float *y) {
    each_slice(&(tokens){.r = r, .x = x, .y = y, .n = n, .width = width, .first = first}, scatter_slice);
}

const lq_ops lq_ops_cpu = {
    .name = "cpu", .open = cpu_open, .close = cpu_close, .alloc = cpu_alloc, .release = cpu_release, .fit = cpu_fit, .begin = cpu_begin, .end = cpu_end, .again = cpu_again, .passed = cpu_passed, .check = cpu_check,
    .norm = cpu_norm, .linear = cpu_linear, .embed = cpu_embed, .split = cpu_split, .rope = cpu_rope, .attn = cpu_attn, .glu = cpu_glu, .add = cpu_add,
    .clamp = cpu_clamp, .token_gate = cpu_token_gate, .scale = cpu_scale, .cap = cpu_cap, .scores = cpu_scores, .routed = cpu_routed, .gather = cpu_gather,
    .scatter = cpu_scatter,
};
