/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A device's operations: each queues kernels of kernels/cuda/cuda.h. The host waits where it must know something: where a pass ends, and where experts
 * are chosen that rows cannot pick (dev_picks). What went wrong is kept until check or end. */
#include "calib/ops_device.h"

#include <math.h>
#include <string.h>

enum { HEAD_TOKENS = 64 };

static float *dev_alloc(lq_run *r, uint64_t n) { return n <= SIZE_MAX / sizeof(float) ? lq_device_of(r)->alloc((size_t)n * sizeof(float)) : NULL; }

static void dev_release(lq_run *r, float *p) {
    if (p) lq_device_of(r)->release(p);
}

static lq_status room_for(lq_ctx *ctx, const lq_device *d, size_t n, void *p) {
    void *got = d->alloc(n ? n : 1);
    memcpy(p, &got, sizeof got);
    return got ? LQ_OK : lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: no room for %zu bytes of activations", d->name, n);
}

static lq_status open_turn(lq_ctx *ctx, lq_run *r, const lq_rope *rope, uint32_t positions, int i) {
    const lq_device *d = lq_device_of(r);
    float *c = NULL, *s = NULL;
    size_t n = (size_t)positions * (rope->dim / 2) * sizeof(float);
    lq_status st = lq_rope_table(ctx, rope, positions, &c, &s);
    if (!st) st = room_for(ctx, d, n, &r->dev->turn[i].cos);
    if (!st) st = room_for(ctx, d, n, &r->dev->turn[i].sin);
    if (!st && n && !(d->put(r->dev->turn[i].cos, c, n) && d->put(r->dev->turn[i].sin, s, n))) st = lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: rotary tables cannot be copied to it", d->name);
    lq_free(c);
    lq_free(s);
    return st;
}

static lq_status open_rounding(lq_ctx *ctx, lq_run *r) {
    lq_device_run *a = r->dev;
    const lq_held *h = a->h;
    size_t n = r->chunk;
    if (h->round.values) LQ_TRY(room_for(ctx, a->d, n * h->round.values * 4, &a->value));
    if (!h->round.ld) return LQ_OK;
    LQ_TRY(room_for(ctx, a->d, n * h->round.ld, &a->codes));
    LQ_TRY(room_for(ctx, a->d, n * h->round.segs * 4, &a->step));
    LQ_TRY(room_for(ctx, a->d, n * h->round.segs * 4, &a->sum));
    if (h->round.left) LQ_TRY(room_for(ctx, a->d, n * h->round.left * 4, &a->left.value));
    if (h->round.left) LQ_TRY(room_for(ctx, a->d, n * h->round.left / 8, &a->left.where));
    if (h->round.cols) LQ_TRY(room_for(ctx, a->d, 2 * n * h->round.cols * 4, &a->rest));
    if (h->round.cols) LQ_TRY(room_for(ctx, a->d, 2 * n * h->round.rows * 4, &a->product));
    return h->round.mark ? room_for(ctx, a->d, h->round.mark, &a->mark) : LQ_OK;
}

static lq_status open_experts(lq_ctx *ctx, lq_run *r) {
    lq_device_run *a = r->dev;
    if (!r->par->n_experts) return LQ_OK;
    LQ_TRY(room_for(ctx, a->d, (size_t)r->chunk * r->par->n_experts * 4, &a->p));
    LQ_TRY(room_for(ctx, a->d, (size_t)r->chunk * r->par->top_k * 4, &a->token));
    LQ_TRY(room_for(ctx, a->d, 2 * (size_t)r->chunk * r->par->top_k * 4, &a->pick));
    return room_for(ctx, a->d, (size_t)r->chunk * r->par->top_k * 4, &a->weight);
}

static lq_status dev_open(lq_ctx *ctx, lq_run *r, uint32_t positions) {
    r->dev = LQ_NEW(lq_device_run);
    if (!r->dev) return lq_oom(ctx, sizeof *r->dev);
    *r->dev = (lq_device_run){.d = lq_device_of(r), .h = r->m->held};
    LQ_TRY(open_turn(ctx, r, &r->par->rope, positions, 0));
    if (r->par->two_ropes) LQ_TRY(open_turn(ctx, r, &r->par->local_rope, positions, 1));
    LQ_TRY(open_experts(ctx, r));
    return open_rounding(ctx, r);
}

static void drop_pass(lq_device_run *a) {
    const void *const mem[] = {a->ids, a->places, a->target, a->pos, a->seq};
    for (size_t i = 0; i < sizeof mem / sizeof *mem; i++)
        if (mem[i]) a->d->release((void *)mem[i]);
    lq_free(a->host);
    if (a->pass) a->d->forget(a->pass);
    a->ids = a->places = a->target = NULL;
    a->pos = a->seq = a->host = NULL;
    a->pass = NULL;
    a->seen = a->room = 0;
}

static void dev_close(lq_run *r) {
    lq_device_run *a = r->dev;
    if (!a) return;
    drop_pass(a);
    const void *const mem[] = {a->stream, a->turn[0].cos, a->turn[0].sin, a->turn[1].cos, a->turn[1].sin, a->codes, a->step, a->rest, a->product, a->value, a->sum, a->mark, a->left.value, a->left.where,
                               a->p, a->weight, a->token, a->pick, a->logits, a->nll, a->best};
    for (size_t i = 0; i < sizeof mem / sizeof *mem; i++)
        if (mem[i]) a->d->release((void *)mem[i]);
    lq_free(a->marks);
    lq_free(a);
    r->dev = NULL;
}

static lq_status dev_fit(lq_ctx *ctx, lq_run *r, const lq_layer *l) {
    (void)ctx, (void)r, (void)l;
    return LQ_OK;
}

static lq_status dev_check(lq_ctx *ctx, lq_run *r) {
    lq_queue_flush(r);
    const char *wrong = r->dev->fault;
    r->dev->fault = NULL;
    return wrong ? lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: %s", r->dev->d->name, wrong) : LQ_OK;
}

/* ---- time by class ---- */

void lq_device_class(lq_run *r, int clock) {
    lq_device_run *a = r->dev;
    if (!r->clock || !a->d->mark || (a->n_marks && a->marks[a->n_marks - 1] == clock)) return;
    if (!a->marks && !(a->marks = LQ_NEWN(uint8_t, LQ_DEVICE_MARKS))) return;
    if (a->n_marks + 1 >= LQ_DEVICE_MARKS && clock < LQ_CLOCKS) return; /* the last is kept for the end */
    lq_device_did(r, a->d->mark(a->n_marks));
    a->marks[a->n_marks++] = (uint8_t)clock;
}

static void add_times(lq_run *r) {
    const lq_device_run *a = r->dev;
    for (uint32_t i = 0; r->clock && i + 1 < a->n_marks; i++) {
        double t = a->d->lasted(i);
        if (t > 0) r->clock[a->marks[i]] += t;
    }
}

/* ---- a pass ---- */

static lq_status fit_pass(lq_ctx *ctx, lq_run *r, uint32_t n) {
    lq_device_run *a = r->dev;
    if (a->room < n) {
        drop_pass(a);
        LQ_TRY(room_for(ctx, a->d, (size_t)n * 4, &a->ids));
        LQ_TRY(room_for(ctx, a->d, (size_t)n * 4, &a->places));
        LQ_TRY(room_for(ctx, a->d, (size_t)n * 4, &a->target));
        LQ_TRY(room_for(ctx, a->d, (size_t)n * 4, &a->pos));
        LQ_TRY(room_for(ctx, a->d, (size_t)n * 4, &a->seq));
        if (!(a->host = LQ_NEWN(uint32_t, 4 * (size_t)n))) return lq_oom(ctx, 16 * (size_t)n);
        a->room = n;
    }
    if (a->stream_room >= n) return LQ_OK;
    if (a->pass) a->d->forget(a->pass); /* it knows where the stream was */
    if (a->stream) a->d->release(a->stream);
    a->pass = NULL;
    a->stream = NULL;
    a->seen = a->stream_room = 0;
    LQ_TRY(room_for(ctx, a->d, (size_t)n * r->par->hidden * 4, &a->stream));
    a->stream_room = n;
    return LQ_OK;
}

static lq_status dev_begin(lq_ctx *ctx, lq_run *r, const int32_t *ids, const lq_span *spans, uint32_t n_spans, uint32_t n, float *hidden) {
    lq_device_run *a = r->dev;
    (void)hidden;
    a->queued = 0; /* of a pass that failed */
    a->picking = false;
    LQ_TRY(fit_pass(ctx, r, n));
    uint32_t *place = a->host, *pos = place + a->room, *seq = pos + a->room;
    a->reach = 0;
    for (const lq_span *s = spans; s < spans + n_spans; s++)
        for (uint32_t i = 0; i < s->n; i++) {
            uint32_t t = s->first + i;
            pos[t] = s->pos + i;
            place[t] = r->par->pos_offset + pos[t];
            seq[t] = s->slot;
            if (pos[t] > a->reach) a->reach = pos[t];
        }
    size_t bytes = (size_t)n * 4;
    bool ok = a->d->put(a->ids, ids, bytes) && a->d->put(a->places, place, bytes) && a->d->put(a->pos, pos, bytes) && a->d->put(a->seq, seq, bytes);
    r->ids = a->ids;
    r->places = a->places;
    r->stream = a->stream;
    return ok ? LQ_OK : lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: %u tokens cannot be copied to it", a->d->name, n);
}

static lq_status dev_end(lq_ctx *ctx, lq_run *r, uint32_t n, float *hidden) {
    lq_device_run *a = r->dev;
    LQ_TRY(dev_check(ctx, r));
    lq_device_did(r, a->d->wait());
    LQ_TRY(dev_check(ctx, r));
    add_times(r);
    if (!hidden || a->d->get(hidden, a->stream, (size_t)n * r->par->hidden * sizeof *hidden)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: hidden states of %u tokens cannot be copied from it", a->d->name, n);
}

/* Chosen on the device: what a step of decoding is short enough for. */
static bool dev_picks(const lq_run *r, uint32_t n) {
    const lq_held *h = r->dev->h;
    return h->picks && !h->apart && n <= LQ_DEVICE_JOINT && n * r->par->top_k <= r->chunk;
}

/* The first pass of its kind runs as it is, so that whatever is sized or chosen once is; the second is recorded. */
static bool dev_again(lq_run *r, uint64_t key) {
    enum { CLOCKED = 1 << 20, AHEAD = 1 << 21 };
    lq_device_run *a = r->dev;
    if (key && r->clock) key |= CLOCKED; /* it has marks */
    if (key && a->h->ahead) key |= AHEAD;
    if (!a->pass || a->key != key) a->n_marks = 0;
    if (!key || !a->d->record || (r->par->n_experts && !dev_picks(r, (uint32_t)(key & 0xffff)))) return false; /* what the host chooses is no part of a record */
    if (a->pass && a->key == key) {
        lq_device_did(r, a->d->replay(a->pass));
        return true;
    }
    if (a->seen != key) {
        a->seen = key;
        return false;
    }
    if (a->pass) a->d->forget(a->pass);
    a->pass = NULL;
    const char *wrong = a->d->record();
    lq_device_did(r, wrong);
    a->recording = !wrong;
    a->key = key;
    return false;
}

static void dev_passed(lq_run *r, bool whole) {
    lq_device_run *a = r->dev;
    lq_queue_flush(r);
    lq_device_class(r, LQ_CLOCKS);
    if (!a->recording) return;
    a->recording = false;
    lq_device_did(r, a->d->end(&a->pass));
    if (whole && !a->fault) lq_device_did(r, a->d->replay(a->pass));
    if ((!whole || a->fault) && a->pass) {
        a->d->forget(a->pass);
        a->pass = NULL;
    }
}

/* ---- operations ---- */

/* What waits comes first. */
#define NOW(r, what) (lq_queue_flush(r), lq_device_class(r, LQ_CLOCK_OTHER), lq_device_did(r, what))

static const lq_held_layer *layer_of(const lq_run *r) { return r->layer < 0 ? &r->dev->h->outer : &r->dev->h->layers[r->layer]; }

static const lq_held_linear *linear_of(const lq_run *r, lq_role role) {
    const lq_held_layer *l = layer_of(r);
    if (lq_role_is_expert(role)) return &l->experts[(size_t)(r->expert == LQ_EXPERT_PICKED ? 0 : r->expert) * LQ_EXPERT_ROLES + (role - LQ_R_EXPERT_GATE)];
    return &l->lin[role == LQ_R_HEAD && r->par->tied ? LQ_R_EMBED : role];
}

static void dev_norm(lq_run *r, lq_role role, const float *x, uint32_t d, uint32_t n, float *y) {
    const lq_held_layer *l = layer_of(r);
    const lq_device_norm o = {l->norm[role], l->shift[role], r->par->norm_eps, r->par->layernorm};
    lq_queue_push(r, &(lq_queued){.kind = LQ_QUEUED_NORM, .in = {x}, .out = y, .n = n, .width = d, .norm = o});
}

static void dev_linear(lq_run *r, lq_role role, const float *x, uint32_t n, float *y) {
    const lq_held_linear *l = linear_of(r, role);
    const float *bias = role == LQ_R_HEAD ? layer_of(r)->lin[role].bias : l->bias;
    lq_queue_push(r, &(lq_queued){.kind = LQ_QUEUED_LINEAR, .in = {x}, .out = y, .n = n, .width = l->rows, .lin = l, .bias = bias});
}

static void dev_embed(lq_run *r, lq_role role, const int32_t *ids, uint32_t n, float *y) {
    const lq_held_linear *l = linear_of(r, role);
    NOW(r, l->packed ? lq_device_table(r)->embed_packed(&l->m, ids, n, y) : lq_device_table(r)->embed(&l->w, ids, n, y));
}

static void dev_split(lq_run *r, const lq_op *op, const float *x, uint32_t n, float *y) {
    const lq_params *p = r->par;
    uint32_t rows = lq_part_rows(p, op->role), run = rows, first = lq_split_row(p, op->kind, op->role, 0);
    if (op->kind == LQ_OP_SPLIT_HEADS) run = op->role == LQ_R_Q ? rows / p->n_kv_heads : p->head_dim;
    uint32_t step = run < rows ? lq_split_row(p, op->kind, op->role, run) - first : run;
    NOW(r, lq_device_table(r)->split(x, r->width[op->in[0]], first, run, step, rows, n, y));
}

static lq_device_tokens tokens_at(const lq_run *r, uint32_t from, uint32_t n) {
    const lq_device_run *a = r->dev;
    return (lq_device_tokens){.n = n, .pos = a->pos + r->at + from, .reach = a->reach};
}

static void dev_rope(lq_run *r, float *x, uint32_t width, uint32_t n, const lq_span *spans) {
    const lq_rope *rope = lq_params_rope(r->par, (uint32_t)r->layer);
    int i = rope != &r->par->rope;
    lq_queued q = {.kind = LQ_QUEUED_ROPE, .in = {x}, .out = x, .n = n, .width = width, .at = tokens_at(r, 0, n)};
    (void)spans;
    q.turn.rot = rope->dim;
    q.turn.pairs = rope->pairs;
    q.turn.cos = r->dev->turn[i].cos;
    q.turn.sin = r->dev->turn[i].sin;
    lq_queue_push(r, &q);
}

/* Keys and values of tokens that belong to one slab; those of one sequence begin there. */
static void attend(lq_run *r, const lq_op *op, const lq_span *s, const lq_device_tokens *at, uint32_t first, const float *q, float *out) {
    const lq_params *p = r->par;
    const lq_held_kv *h = s->far;
    lq_device_kv kv = h->kv[h->layers > 1 ? s->layer : 0];
    if (!at->seq) {
        size_t rows = (size_t)s->slot * kv.room;
        kv.keys = (char *)kv.keys + rows * h->row_bytes;
        kv.values = (char *)kv.values + rows * h->row_bytes;
        if (kv.key_step) kv.key_step += rows * kv.heads;
        if (kv.value_step) kv.value_step += rows * kv.heads;
    }
    lq_device_attn a = {.heads = p->n_heads, .window = lq_params_window(p, (uint32_t)r->layer), .cap = p->attn_cap};
    a.scale = p->attn_scale > 0 ? p->attn_scale : 1 / sqrtf((float)p->head_dim);
    lq_queued o = {.kind = LQ_QUEUED_ATTN, .out = out + (size_t)first * r->width[T_A], .n = at->n, .width = r->width[T_A], .at = *at, .attn = a, .kv = kv};
    o.in[0] = q + (size_t)first * r->width[op->in[0]];
    for (int i = 1; i < 3; i++) o.in[i] = r->t[op->in[i]] + (size_t)first * r->width[op->in[i]];
    lq_queue_push(r, &o);
}

static void dev_attn(lq_run *r, const lq_op *op, float *q, uint32_t n, float *out, const lq_span *spans, uint32_t n_spans) {
    lq_device_run *a = r->dev;
    bool together = true;
    for (uint32_t i = 1; i < n_spans; i++) together &= spans[i].far == spans[0].far;
    for (uint32_t i = 0; i < n_spans; i++) {
        lq_device_tokens at = tokens_at(r, spans[i].first, spans[i].n);
        if (n_spans > 1 && together) {
            at.n = n;
            at.seq = a->seq + r->at;
        }
        if (a->recording) at.reach = spans->far->kv[0].room - 1;
        attend(r, op, &spans[i], &at, spans[i].first, q, out);
        if (together) return;
    }
}

static void dev_glu(lq_run *r, const float *gate, const float *up, uint32_t width, uint32_t n, float *y) {
    lq_queue_push(r, &(lq_queued){.kind = LQ_QUEUED_GLU, .in = {gate, up}, .out = y, .n = n, .width = width});
}
static void dev_add(lq_run *r, float *y, float *x, float scale, uint32_t width, uint32_t n) {
    lq_queue_push(r, &(lq_queued){.kind = LQ_QUEUED_ADD, .in = {x}, .out = y, .n = n, .width = width, .scale = scale > 0 ? scale : 1});
}
static void dev_clamp(lq_run *r, const float *x, float most, uint32_t width, uint32_t n, float *y) { NOW(r, lq_device_table(r)->clamp(x, most, y, (uint64_t)n * width)); }
static void dev_token_gate(lq_run *r, const float *x, const float *gate, uint32_t width, uint32_t n, float *y) { NOW(r, lq_device_table(r)->token_gate(x, gate, width, n, y)); }
static void dev_scale(lq_run *r, float *x, float times, uint32_t width, uint32_t n) { NOW(r, lq_device_table(r)->scale(x, times, 0, (uint64_t)n * width)); }
static void dev_cap(lq_run *r, float *x, float div, float cap, uint32_t width, uint32_t n) { NOW(r, lq_device_table(r)->scale(x, div > 0 ? 1 / div : 1, cap, (uint64_t)n * width)); }

static void dev_scores(lq_run *r, lq_role role, const float *x, uint32_t n) {
    lq_device_run *a = r->dev;
    const lq_held_linear *l = linear_of(r, role);
    lq_queue_flush(r);
    lq_device_class(r, LQ_CLOCK_LINEAR);
    lq_device_linear(r, l, l->bias, x, n, a->p);
    lq_device_did(r, a->d->wait());
    memset(r->routing.p, 0, (size_t)n * l->rows * sizeof *r->routing.p);
    if (!a->d->get(r->routing.p, a->p, (size_t)n * l->rows * sizeof *r->routing.p)) lq_device_did(r, "a router's scores cannot be copied from it");
}

static void dev_routed(lq_run *r, uint32_t n) {
    lq_device_run *a = r->dev;
    lq_routing *g = &r->routing;
    size_t bytes = (size_t)n * g->k * 4;
    for (size_t i = 0; r->par->resid_scale > 0 && i < (size_t)n * g->k; i++) g->weight[i] *= r->par->resid_scale;
    if (!a->d->put(a->token, g->token, bytes) || !a->d->put(a->weight, g->weight, bytes)) lq_device_did(r, "the choice of experts cannot be copied to it");
}

static void dev_gather(lq_run *r, const float *x, uint32_t first, uint32_t n, uint32_t width, float *y) {
    if (n) NOW(r, lq_device_table(r)->embed(&(lq_device_dense){.rows = r->chunk, .cols = width, .dtype = LQ_F32, .w = x}, r->dev->token + first, n, y));
}
static void dev_scatter(lq_run *r, const float *x, uint32_t first, uint32_t n, uint32_t width, float *y) {
    NOW(r, lq_device_table(r)->scatter(y, x, r->dev->token + first, r->dev->weight + first, width, n));
}

/* resid_scale is of the gains, as in dev_routed. */
static void dev_choose(lq_run *r, lq_role role, const float *x, uint32_t n) {
    lq_device_run *a = r->dev;
    const lq_params *p = r->par;
    const lq_held_linear *l = linear_of(r, role);
    lq_queue_flush(r);
    lq_device_class(r, LQ_CLOCK_LINEAR);
    lq_device_linear(r, l, l->bias, x, n, a->p);
    NOW(r, lq_device_table(r)->route(a->p, p->n_experts, n, p->top_k, p->norm_topk, p->resid_scale > 0 ? p->resid_scale : 1, a->pick, a->weight, a->token));
    a->picking = true;
}
static void dev_merge(lq_run *r, const float *x, uint32_t n, uint32_t width, float *y) {
    NOW(r, lq_device_table(r)->merge(y, x, r->dev->weight, r->par->top_k, width, n));
    r->dev->picking = false;
}

const lq_ops lq_ops_device = {
    .name = "device", .far = true, .open = dev_open, .close = dev_close, .alloc = dev_alloc, .release = dev_release, .fit = dev_fit, .begin = dev_begin, .end = dev_end,
    .again = dev_again, .passed = dev_passed, .check = dev_check, .norm = dev_norm, .linear = dev_linear, .embed = dev_embed, .split = dev_split, .rope = dev_rope,
    .attn = dev_attn, .glu = dev_glu, .add = dev_add, .clamp = dev_clamp, .token_gate = dev_token_gate, .scale = dev_scale, .cap = dev_cap, .scores = dev_scores,
    .routed = dev_routed, .gather = dev_gather, .scatter = dev_scatter, .picks = dev_picks, .choose = dev_choose, .merge = dev_merge,
};

/* ---- the head ---- */

static lq_status head_open(lq_ctx *ctx, const lq_model *m) {
    lq_held *h = m->held;
    lq_run *r = LQ_NEW(lq_run);
    if (!r) return lq_oom(ctx, sizeof *r);
    lq_run_bare(r, m);
    r->ops = &lq_ops_device;
    r->chunk = HEAD_TOKENS;
    lq_status st = dev_open(ctx, r, 0);
    size_t mid = (size_t)HEAD_TOKENS * lq_run_mid(r) * 4;
    if (!st && mid) st = room_for(ctx, h->d, mid, &r->mid);
    if (!st) st = room_for(ctx, h->d, (size_t)HEAD_TOKENS * m->par.vocab * 4, &r->dev->logits);
    if (!st) st = room_for(ctx, h->d, HEAD_TOKENS * sizeof(double), &r->dev->nll);
    if (!st) st = room_for(ctx, h->d, HEAD_TOKENS * sizeof(int32_t), &r->dev->best);
    if (!st) st = fit_pass(ctx, r, HEAD_TOKENS);
    h->head = r;
    if (!st) return LQ_OK;
    lq_run_free(r);
    lq_free(r);
    h->head = NULL;
    return st;
}

/* Logits of at most HEAD_TOKENS tokens, left on the device. */
static lq_status head_of(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n) {
    if (!m->held->head) LQ_TRY(head_open(ctx, m));
    lq_run *r = m->held->head;
    if (!r->dev->d->put(r->dev->stream, hidden, (size_t)n * m->par.hidden * sizeof *hidden)) return lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: %u hidden states cannot be copied to it", r->dev->d->name, n);
    lq_run_head(r, r->dev->stream, n, r->dev->logits);
    return LQ_OK;
}

static lq_status fetch(lq_ctx *ctx, lq_run *r, void *to, const void *from, size_t bytes) {
    lq_device_did(r, r->dev->d->wait());
    LQ_TRY(dev_check(ctx, r));
    return r->dev->d->get(to, from, bytes) ? LQ_OK : lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: %zu bytes cannot be copied from it", r->dev->d->name, bytes);
}

lq_status lq_held_logits(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, float *logits) {
    for (uint32_t i = 0; i < n; i += HEAD_TOKENS) {
        uint32_t k = n - i < HEAD_TOKENS ? n - i : HEAD_TOKENS;
        LQ_TRY(head_of(ctx, m, hidden + (size_t)i * m->par.hidden, k));
        LQ_TRY(fetch(ctx, m->held->head, logits + (size_t)i * m->par.vocab, m->held->head->dev->logits, (size_t)k * m->par.vocab * sizeof *logits));
    }
    return LQ_OK;
}

lq_status lq_held_nll(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, const int32_t *target, double *nll) {
    for (uint32_t i = 0; i < n; i += HEAD_TOKENS) {
        uint32_t k = n - i < HEAD_TOKENS ? n - i : HEAD_TOKENS;
        LQ_TRY(head_of(ctx, m, hidden + (size_t)i * m->par.hidden, k));
        lq_run *r = m->held->head;
        if (!r->dev->d->put(r->dev->target, target + i, k * sizeof *target)) lq_device_did(r, "targets cannot be copied to it");
        lq_device_did(r, lq_device_table(r)->score(r->dev->logits, m->par.vocab, k, r->dev->target, r->dev->nll, NULL));
        LQ_TRY(fetch(ctx, r, nll + i, r->dev->nll, k * sizeof *nll));
    }
    return LQ_OK;
}

lq_status lq_held_choosing(lq_ctx *ctx, lq_run *r, uint32_t n) {
    lq_device_run *a = r->dev;
    if (n <= a->choices) return LQ_OK;
    if (a->pass) a->d->forget(a->pass); /* it knows where the logits were */
    if (a->logits) a->d->release(a->logits);
    if (a->best) a->d->release(a->best);
    a->pass = NULL;
    a->logits = NULL;
    a->best = NULL;
    a->seen = a->choices = 0;
    LQ_TRY(room_for(ctx, a->d, (size_t)n * r->par->vocab * sizeof *a->logits, &a->logits));
    LQ_TRY(room_for(ctx, a->d, n * sizeof *a->best, &a->best));
    a->choices = n;
    return LQ_OK;
}

void lq_held_choose(lq_run *r, uint32_t n) {
    lq_device_run *a = r->dev;
    lq_run_head(r, r->stream, n, a->logits);
    lq_device_class(r, LQ_CLOCK_HEAD);
    lq_device_did(r, lq_device_table(r)->score(a->logits, r->par->vocab, n, NULL, NULL, a->best));
}

lq_status lq_held_chosen(lq_ctx *ctx, lq_run *r, uint32_t n, int32_t *best) { return fetch(ctx, r, best, r->dev->best, n * sizeof *best); }
