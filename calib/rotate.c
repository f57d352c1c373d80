/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The walk over the op table that finds a rotation's endpoints; what it refuses, and why. */
#include "calib/rotate.h"

#include <string.h>

typedef enum basis { PLAIN, STREAM, NORMED } basis; /* of a tensor's coordinates: its own, the residual stream's, a norm of those */

typedef struct walk {
    const lq_model *m;
    uint32_t layer;
    basis basis[T_N];
    uint16_t norm[T_N];         /* NORMED: the norm's role */
    int32_t maker[T_N];         /* LINEAR, or SPLIT of one, that wrote the tensor last, as an op; -1: another op */
    bool flows[T_N];            /* backwards: what stands here ends in the residual stream, unchanged or scaled per token */
    lq_turn turn[LQ_R_N];
    const char *why_stream, *why_heads; /* NULL: legal */
} walk;

static uint8_t target(const lq_op *op) { return op->out & ~LQ_OUT_ADD; }
static bool is_on(const walk *w, const lq_op *op) { return lq_params_at(&w->m->par, op->only_if, w->layer); }

/* Forwards: who reads the residual stream. */
static void forward_op(walk *w, const lq_op *op, int32_t i) {
    uint8_t in = op->in[0], out = target(op);
    basis b = w->basis[in];
    if (op->kind == LQ_OP_LINEAR || op->kind == LQ_OP_ROUTE) {
        if (b != PLAIN) w->turn[op->role].in_stream = true;
        if (b == NORMED) w->turn[op->role].gain = w->norm[in];
    } else if (op->kind == LQ_OP_NORM && b == STREAM) {
        w->turn[op->role].one = true;
    } else {
        for (int k = 0; k < 3; k++)
            if (op->in[k] && w->basis[op->in[k]] != PLAIN) w->why_stream = "an operation between the residual stream and a matrix cannot be rotated";
    }
    w->maker[out] = op->kind == LQ_OP_LINEAR || ((op->kind == LQ_OP_SPLIT || op->kind == LQ_OP_SPLIT_HEADS) && w->maker[in] >= 0) ? i : -1;
    if (out == T_RESID) return;
    bool copies = op->kind == LQ_OP_ROUTE; /* an expert reads what the router read */
    w->basis[out] = copies ? b : op->kind == LQ_OP_NORM && b == STREAM ? NORMED : PLAIN;
    w->norm[out] = copies ? w->norm[in] : (uint16_t)op->role;
}

/* Backwards: who writes it. */
static void backward_op(walk *w, const lq_op *op) {
    uint8_t out = target(op);
    if (!w->flows[out]) return;
    if (op->kind == LQ_OP_LINEAR) w->turn[op->role].out_stream = true;
    else if (op->kind == LQ_OP_MERGE || op->kind == LQ_OP_TOKEN_GATE) w->flows[op->in[0]] = true;
    else if (op->kind == LQ_OP_NORM) w->why_stream = "a norm writes the residual stream (post-norm), and its gain cannot be folded";
    else w->why_stream = "an operation that cannot be rotated writes the residual stream";
    if (out != T_RESID && !(op->out & LQ_OUT_ADD)) w->flows[out] = false;
}

/* Values: attention mixes them token by token, so a rotation of a head goes through to what reads its output. */
static void heads(walk *w, const lq_op *attn) {
    const lq_op *block = w->m->arch->block;
    int32_t v = w->maker[attn->in[2]];
    if (v < 0) {
        w->why_heads = "an operation stands between the value projection and attention";
        return;
    }
    lq_turn *t = &w->turn[block[v].kind == LQ_OP_LINEAR ? block[v].role : block[w->maker[block[v].in[0]]].role];
    t->out_heads = true;
    t->split = block[v].kind;
    for (const lq_op *op = attn + 1; op->kind; op++) {
        if (!is_on(w, op)) continue;
        bool reads = op->in[0] == target(attn) || op->in[1] == target(attn) || op->in[2] == target(attn);
        if (reads && op->kind != LQ_OP_LINEAR) w->why_heads = "an operation stands between attention and the output projection";
        else if (reads) w->turn[op->role].in_heads = true;
        if (target(op) == target(attn)) return;
    }
}

static void walk_layer(walk *w, const lq_model *m, uint32_t layer) {
    *w = (walk){.m = m, .layer = layer};
    const lq_op *block = m->arch->block;
    int32_t n = 0;
    w->basis[T_RESID] = STREAM;
    w->flows[T_RESID] = true;
    for (; block[n].kind; n++) {
        if (!is_on(w, &block[n])) continue;
        if (block[n].kind == LQ_OP_ATTN) heads(w, &block[n]);
        forward_op(w, &block[n], n);
    }
    while (n--)
        if (is_on(w, &block[n])) backward_op(w, &block[n]);
}

static lq_turn outer_turn(uint16_t role) {
    switch (role) {
    case LQ_R_EMBED:
    case LQ_R_POS_EMBED: return (lq_turn){.in_stream = true};
    case LQ_R_HEAD: return (lq_turn){.in_stream = true, .gain = LQ_R_FINAL_NORM};
    case LQ_R_FINAL_NORM: return (lq_turn){.one = true};
    default: return (lq_turn){0};
    }
}

lq_turn lq_rotation_turn(const lq_model *m, const lq_row *row) {
    lq_turn t = {0};
    if (!m->rotation || row->slot.role == LQ_R_UNKNOWN) return t;
    if (row->slot.block < 0) t = outer_turn(row->slot.role);
    else {
        walk w;
        walk_layer(&w, m, (uint32_t)row->slot.block);
        t = w.turn[row->slot.role];
    }
    bool stream = m->rotation->what & LQ_ROTATE_STREAM, inner = m->rotation->what & LQ_ROTATE_HEADS, weight = row->part == LQ_PART_WEIGHT;
    if (!stream || !weight) t.gain = LQ_R_NONE;
    t.one = t.one && stream && weight;
    t.in_stream = t.in_stream && stream && weight;
    t.out_stream = t.out_stream && stream;
    t.in_heads = t.in_heads && inner && weight;
    t.out_heads = t.out_heads && inner;
    return t;
}

bool lq_turn_any(lq_turn t) { return t.gain || t.in_stream || t.out_stream || t.in_heads || t.out_heads || t.one; }

static lq_status refuse(lq_ctx *ctx, const lq_model *m, const char *what, const char *why) {
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "architecture '%s' has no rotation of %s: %s", m->arch->name, what, why);
}

lq_status lq_model_rotatable(lq_ctx *ctx, const lq_model *m, unsigned what) {
    if (!m->arch) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a model of unknown architecture cannot be rotated");
    for (uint32_t l = 0; l < m->par.n_layers; l++) {
        walk w;
        walk_layer(&w, m, l);
        if (what & LQ_ROTATE_STREAM && w.why_stream) return refuse(ctx, m, "the residual stream", w.why_stream);
        if (what & LQ_ROTATE_HEADS && w.why_heads) return refuse(ctx, m, "the heads", w.why_heads);
    }
    if (what & LQ_ROTATE_STREAM && m->par.layernorm)
        return refuse(ctx, m, "the residual stream", "its LayerNorms subtract a mean; without it they would be another architecture's RMSNorms");
    if (m->par.master) return refuse(ctx, m, "master weights", "they and their inputs are rounded as the model runs, on the axes it was trained with");
    if (what & LQ_ROTATE_STREAM && m->par.embed_dim) return refuse(ctx, m, "the residual stream", "projections stand between it and the embedding");
    if (what & LQ_ROTATE_STREAM && lq_catalog_find(&m->cat, (lq_slot){-1, LQ_R_EMBED_NORM, -1}, LQ_PART_WEIGHT))
        return refuse(ctx, m, "the residual stream", "a norm stands behind the embedding");
    if (what & LQ_ROTATE_STREAM && !lq_catalog_find(&m->cat, (lq_slot){-1, LQ_R_FINAL_NORM, -1}, LQ_PART_WEIGHT))
        return refuse(ctx, m, "the residual stream", "it has no final norm before the head");
    if (what & LQ_ROTATE_STREAM && m->par.tied && !lq_arch_tensor(m->arch, LQ_R_HEAD, LQ_PART_WEIGHT))
        return refuse(ctx, m, "the residual stream", "its tied embedding cannot be untied");
    return LQ_OK;
}

/* The head becomes a row of its own, right behind the final norm, stored where the embedding is. */
static lq_status untie(lq_ctx *ctx, lq_model *m) {
    lq_catalog *c = &m->cat;
    const lq_arch_name *t = lq_arch_tensor(m->arch, LQ_R_HEAD, LQ_PART_WEIGHT);
    const lq_row *embed = lq_catalog_find(c, (lq_slot){-1, LQ_R_EMBED, -1}, LQ_PART_WEIGHT);
    lq_row *rows = embed ? lq_arena_alloc(c->mem, (c->n + 1) * sizeof *rows) : NULL;
    if (!rows) return lq_oom(ctx, (c->n + 1) * sizeof *rows);
    size_t at = c->n;
    for (size_t i = 0; i < c->n; i++)
        if (c->rows[i].slot.role == LQ_R_FINAL_NORM) at = i + 1;
    memcpy(rows, c->rows, at * sizeof *rows);
    memcpy(rows + at + 1, c->rows + at, (c->n - at) * sizeof *rows);
    rows[at] = *embed;
    rows[at].slot.role = LQ_R_HEAD;
    rows[at].name = t->hf;
    rows[at].gguf_name = t->gguf;
    c->rows = rows;
    c->n++;
    c->tied = m->par.tied = false;
    m->rotation->untied = true;
    return LQ_OK;
}

lq_status lq_model_rotate(lq_ctx *ctx, lq_model *m, unsigned what, uint64_t seed) {
    if (m->rotation) return lq_fail(ctx, LQ_ERR_INTERNAL, "the model is rotated already");
    LQ_TRY(lq_model_rotatable(ctx, m, what));
    lq_rotation *r = m->rotation = LQ_NEW(lq_rotation);
    if (!r) return lq_oom(ctx, sizeof *r);
    *r = (lq_rotation){.what = what, .seed = seed};
    lq_status st = LQ_OK;
    if (what & LQ_ROTATE_STREAM) LQ_GO(lq_orthogonal_init(ctx, &r->stream, m->par.hidden, seed, 1));
    if (what & LQ_ROTATE_HEADS) LQ_GO(lq_orthogonal_init(ctx, &r->heads, m->par.head_dim, seed, 2));
    if (what & LQ_ROTATE_STREAM && m->par.tied) LQ_GO(untie(ctx, m));
done:
    if (st) lq_rotation_free(&m->rotation);
    return st;
}

void lq_rotation_free(lq_rotation **r) {
    if (!*r) return;
    lq_orthogonal_free(&(*r)->stream);
    lq_orthogonal_free(&(*r)->heads);
    lq_free(*r);
    *r = NULL;
}
