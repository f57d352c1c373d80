/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Operations that wait a little in a row, so that neighbours become one launch (lq_device_product, lq_device_turn):
 *
 *   norm; linears of its output          the norm is the product's prologue where nobody else reads what it makes, or part of the rounding
 *   linears of one input                 parts of one product
 *   gate, up; glu        one; act        its epilogue, likewise
 *   a linear; add to the stream          its epilogue
 *   rope of q; rope of k; attn           both turns and the writing of keys and values as one
 *
 * Whatever else stands in the row runs as it is. Who reads a tensor later is read off the row, then off the rest of the block's table. */
#include "calib/ops_device.h"

/* ---- one operation ---- */

/* Rows that pick their experts, n of them. */
static const char *multiply_picked(const lq_run *r, const lq_held_linear *l, const float *x, uint32_t n, float *y) {
    lq_device_dense w = l->w;
    lq_device_product p = {.n = n, .parts = 1, .x = x, .pick = r->dev->pick};
    w.pick = r->dev->pick;
    p.part[0].m = &l->m;
    p.part[0].y = y;
    return l->packed ? lq_device_table(r)->product(&p) : lq_device_table(r)->dense(&w, x, n, y);
}

static bool picked(const lq_run *r, const lq_held_linear *l) { return r->dev->picking && l->stacked; }

static const char *multiply(const lq_run *r, const lq_held_linear *l, const float *x, uint32_t n, float *y) {
    if (picked(r, l)) return multiply_picked(r, l, x, n, y);
    if (!l->packed) return lq_device_table(r)->dense(&l->w, x, n, y);
    return n <= LQ_DEVICE_N ? lq_device_of(r)->gemv(&l->m, x, n, y) : lq_device_table(r)->gemm(&l->m, x, n, y);
}

static const char *multiply_codes(const lq_run *r, const lq_held_linear *l, uint32_t n, float *y) {
    const lq_device_run *a = r->dev;
    lq_device_product p = {.n = n, .parts = 1, .codes = a->codes, .step = a->step, .sum = a->sum, .pick = picked(r, l) ? a->pick : NULL};
    p.part[0].m = &l->m;
    p.part[0].y = y;
    if (l->splits) p.rest = a->left;
    return p.pick || l->splits ? lq_device_table(r)->product(&p) : a->d->idot(&l->m, a->codes, a->step, a->sum, n, y);
}

/* How l rounds, with the run's room for what is left out. */
static lq_device_round rounding_of(const lq_run *r, const lq_held_linear *l) {
    const lq_device_run *a = r->dev;
    lq_device_round o = l->round;
    if (o.act.outlier <= 0) return o;
    if (l->splits) o.left = a->left;
    else o.rest = a->rest;
    o.mark = o.act.scope == 1 ? a->mark : NULL;
    return o;
}

static void multiply_rounded(lq_run *r, const lq_held_linear *l, const float *x, uint32_t n, float *y) {
    lq_device_run *a = r->dev;
    const lq_device_round o = rounding_of(r, l);
    lq_device_did(r, lq_device_table(r)->round(&l->m, &o, x, n, a->codes, a->step, a->sum));
    lq_device_did(r, multiply_codes(r, l, n, y));
    if (!o.rest) return;
    lq_device_did(r, multiply(r, l, a->rest, 2 * n, a->product)); /* one pass over the weights for both parts of up to four tokens */
    lq_device_did(r, lq_device_table(r)->add(y, a->product, 1, (uint64_t)n * l->rows));
    lq_device_did(r, lq_device_table(r)->add(y, a->product + (size_t)n * l->rows, 1, (uint64_t)n * l->rows));
}

void lq_device_linear(lq_run *r, const lq_held_linear *l, const float *bias, const float *x, uint32_t n, float *y) {
    if (l->valued) {
        lq_device_did(r, lq_device_table(r)->act(&l->round, x, l->cols, n, r->dev->value));
        lq_device_did(r, multiply(r, l, r->dev->value, n, y));
    } else if (l->round.act.kind) multiply_rounded(r, l, x, n, y);
    else lq_device_did(r, multiply(r, l, x, n, y));
    if (l->extra.rows) lq_device_did(r, lq_device_table(r)->sparse(&l->extra, x, n, y));
    if (bias) lq_device_did(r, lq_device_table(r)->bias(y, bias, l->rows, n));
}

static void attend(lq_run *r, const lq_queued *q, bool put) {
    if (put) lq_device_did(r, lq_device_table(r)->kv_put(&q->kv, q->in[1], q->in[2], &q->at));
    lq_device_did(r, lq_device_table(r)->attn(&q->attn, &q->kv, q->in[0], &q->at, q->out));
}

static int class_of(const lq_run *r, const lq_queued *q) {
    const lq_held_linear *outer = r->dev->h->outer.lin;
    if (q->kind == LQ_QUEUED_LINEAR) return q->lin == &outer[LQ_R_HEAD] || q->lin == &outer[LQ_R_EMBED] ? LQ_CLOCK_HEAD : LQ_CLOCK_LINEAR;
    return q->kind == LQ_QUEUED_ATTN ? LQ_CLOCK_ATTENTION : LQ_CLOCK_OTHER;
}

static void run_one(lq_run *r, const lq_queued *q) {
    const lq_device_ops *o = lq_device_table(r);
    lq_device_class(r, class_of(r, q));
    uint32_t dim = r->par->head_dim;
    uint64_t all = (uint64_t)q->n * q->width;
    switch (q->kind) {
    case LQ_QUEUED_NORM: lq_device_did(r, o->norm(&q->norm, q->in[0], q->width, q->n, q->out)); break;
    case LQ_QUEUED_LINEAR: lq_device_linear(r, q->lin, q->bias, q->in[0], q->n, q->out); break;
    case LQ_QUEUED_ROPE: lq_device_did(r, o->rope(q->out, q->width / dim, dim, q->turn.rot, q->turn.pairs, q->turn.cos, q->turn.sin, &q->at)); break;
    case LQ_QUEUED_ATTN: attend(r, q, true); break;
    case LQ_QUEUED_GLU: lq_device_did(r, o->glu((int)r->par->act, q->in[0], q->in[1], q->out, all)); break;
    case LQ_QUEUED_ADD: lq_device_did(r, o->add(q->out, q->in[0], q->scale, all)); break;
    }
}

/* ---- who reads what ---- */

static bool reads(const lq_queued *q, const float *p) {
    return q->in[0] == p || q->in[1] == p || q->in[2] == p || (q->kind == LQ_QUEUED_ADD && q->out == p);
}

/* After this op of the block's table. Tensors but the stream end with the block. */
static bool read_after(const lq_run *r, const lq_op *op, const float *p) {
    int t = T_NONE;
    if (p == r->t[T_NONE]) return false; /* what an ADD added */
    for (int i = T_NONE + 1; i < T_N; i++)
        if (r->t[i] == p) t = i;
    if (!op || t == T_NONE || t == T_RESID) return true;
    for (op++; op->kind; op++) {
        if (!lq_params_at(r->par, op->only_if, (uint32_t)r->layer)) continue;
        if (op->in[0] == t || op->in[1] == t || op->in[2] == t) return true;
        if ((op->out & ~LQ_OUT_ADD) == t) return op->out & LQ_OUT_ADD;
    }
    return false;
}

/* From the i-th of the row on. */
static bool needed(const lq_run *r, uint32_t i, const float *p) {
    const lq_device_run *a = r->dev;
    for (; i < a->queued; i++) {
        if (reads(&a->queue[i], p)) return true;
        if (a->queue[i].out == p) return false;
    }
    return read_after(r, a->queue[a->queued - 1].op, p);
}

/* ---- products ---- */

static bool joins(const lq_queued *q) {
    const lq_held_linear *l = q->lin;
    return q->kind == LQ_QUEUED_LINEAR && l->packed && !l->valued && !l->extra.rows && (l->round.act.outlier <= 0 || l->splits) && q->out != q->in[0];
}

static bool same_rounding(const lq_held_linear *a, const lq_held_linear *b) {
    const lq_act *x = &a->round.act, *y = &b->round.act;
    bool same = x->kind == y->kind && x->dtype == y->dtype && x->tile == y->tile && x->scope == y->scope && x->outlier == y->outlier && a->round.fixed == b->round.fixed && a->round.apart == b->round.apart;
    return same && (!x->kind || (!a->m.perm && !b->m.perm));
}

/* How many linears from the i-th on are one product. */
static uint32_t parts_at(const lq_run *r, uint32_t i) {
    const lq_queued *q = r->dev->queue + i;
    uint32_t n = 0, most = r->dev->queued - i < LQ_DEVICE_PARTS ? r->dev->queued - i : LQ_DEVICE_PARTS;
    for (; n < most && joins(&q[n]); n++) {
        bool alike = q[n].in[0] == q[0].in[0] && q[n].n == q[0].n && lq_device_alike(&q[n].lin->m, &q[0].lin->m) && same_rounding(q[n].lin, q[0].lin);
        for (uint32_t j = 0; j < n; j++) alike &= q[j].out != q[n].out;
        if (!alike) break;
    }
    return n;
}

/* Does what follows take the only output of these products and nobody else? */
static bool ends_with(const lq_run *r, const lq_queued *q, uint32_t parts, uint32_t next, const float *x) {
    const lq_queued *e = r->dev->queue + next;
    if (next >= r->dev->queued || e->n != q->n || e->width != q->width || e->out == x || e->in[0] != q[0].out) return false;
    if (e->kind == LQ_QUEUED_ADD) return parts == 1 && e->out != q->out && !needed(r, next + 1, q->out);
    if (e->kind != LQ_QUEUED_GLU || (parts == 1) != !e->in[1] || parts > 2) return false;
    if (parts == 2 && (e->in[1] != q[1].out || q[1].width != q->width)) return false;
    for (uint32_t p = 0; p < parts; p++)
        if (e->out != q[p].out && needed(r, next + 1, q[p].out)) return false;
    return true;
}

static const char *rounded(lq_run *r, const lq_queued *norm, const lq_queued *q, lq_device_product *p) {
    lq_device_run *a = r->dev;
    lq_device_round o = rounding_of(r, q->lin);
    o.norm = norm ? &norm->norm : NULL;
    o.normed = norm ? norm->out : NULL;
    const char *wrong = lq_device_table(r)->round(&q->lin->m, &o, norm ? norm->in[0] : q->in[0], q->n, a->codes, a->step, a->sum);
    p->codes = a->codes;
    p->step = a->step;
    p->sum = a->sum;
    p->rest = o.left;
    return wrong;
}

/* The i-th to the next one that it returns; norm: the one before, or NULL. */
static uint32_t run_product(lq_run *r, const lq_queued *norm, uint32_t i, uint32_t parts) {
    const lq_queued *q = r->dev->queue + i, *end = q + parts;
    lq_device_product p = {.n = q->n, .parts = parts, .x = q->in[0]};
    bool rounds = q->lin->round.act.kind;
    uint32_t next = i + parts;
    if (picked(r, q->lin)) p.pick = r->dev->pick;
    if (norm && !rounds) p.x = norm->in[0];
    for (uint32_t k = 0; k < parts; k++) {
        p.part[k].m = &q[k].lin->m;
        p.part[k].bias = q[k].bias;
        p.part[k].y = q[k].out;
    }
    if (ends_with(r, q, parts, next, p.x)) {
        p.glu = end->kind == LQ_QUEUED_GLU;
        p.add = end->kind == LQ_QUEUED_ADD;
        p.act = (int)r->par->act;
        p.scale = end->scale;
        p.part[0].y = end->out;
        next++;
    }
    lq_device_class(r, LQ_CLOCK_LINEAR);
    if (rounds) lq_device_did(r, rounded(r, norm, q, &p));
    else if (norm) p.norm = &norm->norm;
    lq_device_did(r, lq_device_table(r)->product(&p));
    return next;
}

/* Can the norm be part of the product that follows? */
static bool begins(const lq_run *r, const lq_queued *norm, uint32_t i, uint32_t parts) {
    const lq_queued *q = r->dev->queue + i;
    if (!parts || q->in[0] != norm->out || norm->out == norm->in[0] || norm->width != q->lin->cols || norm->n != q->n) return false;
    if (q->lin->round.act.outlier > 0 && q->lin->round.act.scope == 1) return false; /* columns are marked before the launch that norms */
    for (uint32_t k = 0; k < parts; k++)
        if (q[k].out == norm->in[0]) return false;
    return q->lin->round.act.kind || !needed(r, i + parts, norm->out);
}

static bool turns(const lq_run *r, uint32_t i) {
    const lq_queued *q = r->dev->queue + i, *k = q + 1, *a = q + 2;
    if (r->dev->queued - i < 3 || q->kind != LQ_QUEUED_ROPE || k->kind != LQ_QUEUED_ROPE || a->kind != LQ_QUEUED_ATTN) return false;
    return q->out == a->in[0] && k->out == a->in[1] && q->n == a->n && k->n == a->n && q->turn.rot == k->turn.rot && q->turn.pairs == k->turn.pairs && q->turn.cos == k->turn.cos;
}

static uint32_t run_turn(lq_run *r, uint32_t i) {
    const lq_queued *q = r->dev->queue + i, *a = q + 2;
    const lq_device_turn t = {.kv = &a->kv, .q = q->out, .k = q[1].out, .v = a->in[2], .cos = q->turn.cos, .sin = q->turn.sin,
                              .heads = q->width / r->par->head_dim, .rot = q->turn.rot, .pairs = q->turn.pairs};
    lq_device_class(r, LQ_CLOCK_ATTENTION);
    lq_device_did(r, lq_device_table(r)->turn(&t, &a->at));
    attend(r, a, false);
    return i + 3;
}

static uint32_t step(lq_run *r, uint32_t i) {
    const lq_queued *q = r->dev->queue + i;
    if (turns(r, i)) return run_turn(r, i);
    if (q->kind == LQ_QUEUED_NORM && i + 1 < r->dev->queued) {
        uint32_t parts = parts_at(r, i + 1);
        if (begins(r, q, i + 1, parts)) return run_product(r, q, i + 1, parts);
    }
    uint32_t parts = parts_at(r, i);
    if (parts) return run_product(r, NULL, i, parts);
    run_one(r, q);
    return i + 1;
}

void lq_queue_flush(lq_run *r) {
    lq_device_run *a = r->dev;
    for (uint32_t i = 0; i < a->queued;) i = step(r, i);
    a->queued = 0;
}

void lq_queue_push(lq_run *r, const lq_queued *q) {
    lq_device_run *a = r->dev;
    bool waits = r->layer >= 0 && (q->n <= LQ_DEVICE_JOINT || a->picking) && lq_device_table(r)->product && !a->h->apart;
    if (!waits) {
        lq_queue_flush(r);
        run_one(r, q);
        return;
    }
    if (a->queued == LQ_QUEUE) lq_queue_flush(r);
    a->queue[a->queued] = *q;
    a->queue[a->queued++].op = r->op;
}
