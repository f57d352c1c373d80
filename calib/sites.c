/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A tensor is followed from the op that sets it to the op that sets it anew. All of its readers must be linears: then their
 * columns can take the factor that its producer gives up. A tensor that lives on (the residual stream) has readers that no
 * walk sees, so a norm that writes it is no producer. */
#include "calib/sites.h"

const char *const lq_site_names[LQ_SITE_KINDS] = {"norm", "v-o", "up-down", "fc1-fc2"};

typedef struct table { const lq_arch *a; const lq_params *p; uint32_t layer; int32_t stage[LQ_MAX_OPS]; } table;

static uint8_t target(const lq_op *op) { return op->out & ~LQ_OUT_ADD; }
static bool is_on(const table *t, const lq_op *op) { return lq_params_at(t->p, op->only_if, t->layer); }
static bool adds(const lq_op *op) { return op->out & LQ_OUT_ADD; }

static bool reads(const lq_op *op, int id) { return op->in[0] == id || op->in[1] == id || op->in[2] == id || (adds(op) && target(op) == id); }

/* The last op that set tensor id before `at`, when it alone made what `at` reads; NULL. */
static const lq_op *maker(const table *t, const lq_op *at, int id) {
    while (at-- > t->a->block)
        if (is_on(t, at) && target(at) == id) return adds(at) ? NULL : at;
    return NULL;
}

static bool add_reader(const table *t, const lq_op *op, lq_site *s) {
    if (s->n == LQ_SITE_READERS) return false;
    if (!s->n) s->stage = t->stage[op - t->a->block];
    s->reader[s->n++] = op->role;
    return true;
}

/* The linears that read what `from` set, into s; false when something else reads it too. A ROUTE reads it as a linear does, and what
 * it hands to the experts is the same tokens. */
static bool linear_readers(const table *t, const lq_op *from, lq_site *s) {
    int id = target(from);
    if (id == T_RESID || adds(from)) return false;
    for (const lq_op *op = from + 1; op->kind; op++) {
        if (!is_on(t, op)) continue;
        if (reads(op, id)) {
            bool linear = op->kind == LQ_OP_LINEAR || op->kind == LQ_OP_ROUTE;
            if (!linear || op->in[0] != id || (adds(op) && target(op) == id) || !add_reader(t, op, s)) return false;
            if (op->kind == LQ_OP_ROUTE && !linear_readers(t, op, s)) return false;
        }
        if (target(op) == id) break;
    }
    return true;
}

/* Is the tensor op `from` set read by `reader` alone? */
static bool read_once(const table *t, const lq_op *from, const lq_op *reader) {
    int id = target(from);
    for (const lq_op *op = from + 1; op->kind; op++) {
        if (!is_on(t, op)) continue;
        if (reads(op, id) && op != reader) return false;
        if (target(op) == id) break;
    }
    return true;
}

static bool is_linear_part(const lq_op *op) { return op && (op->kind == LQ_OP_LINEAR || op->kind == LQ_OP_SPLIT || op->kind == LQ_OP_SPLIT_HEADS); }

/* The site whose readers read the output of op: through op for attention, products and activations. */
static bool site_of(const table *t, const lq_op *op, lq_site *s) {
    const lq_op *from = NULL;
    switch (op->kind) {
    case LQ_OP_NORM: /* without a stored gain there is nothing to divide */
        *s = (lq_site){.kind = LQ_SITE_NORM, .producer = op->role};
        return !t->p->plain_norm;
    case LQ_OP_ATTN:
        from = maker(t, op, op->in[2]);
        *s = (lq_site){.kind = LQ_SITE_VALUE};
        break;
    case LQ_OP_GLU:
        from = maker(t, op, op->in[1]);
        *s = (lq_site){.kind = LQ_SITE_UP};
        break;
    case LQ_OP_ACT:
        from = t->p->act == LQ_ACTFN_RELU ? maker(t, op, op->in[0]) : NULL;
        *s = (lq_site){.kind = LQ_SITE_RELU};
        break;
    default: return false;
    }
    if (!is_linear_part(from) || !read_once(t, from, op)) return false;
    s->producer = from->role;
    return true;
}

static uint32_t columns(const lq_arch *a, const lq_params *p, lq_role role) {
    const lq_arch_name *t = lq_arch_tensor(a, role, LQ_PART_WEIGHT);
    return t ? lq_params_dim(p, t->cols) : 0;
}

uint32_t lq_arch_sites(const lq_arch *a, const lq_params *p, uint32_t layer, lq_site out[LQ_MAX_SITES]) {
    table t = {.a = a, .p = p, .layer = layer};
    uint32_t n_ops = lq_arch_stages(a, p, layer, t.stage), n = 0;
    for (uint32_t i = 0; i < n_ops && n < LQ_MAX_SITES; i++) {
        const lq_op *op = &a->block[i];
        lq_site s;
        if (!is_on(&t, op) || !site_of(&t, op, &s) || !linear_readers(&t, op, &s) || !s.n) continue;
        s.cols = columns(a, p, s.reader[0]);
        s.scales = s.kind == LQ_SITE_VALUE ? p->n_kv_heads * p->head_dim : s.cols;
        uint32_t at = n++;
        for (; at && out[at - 1].stage > s.stage; at--) out[at] = out[at - 1];
        out[at] = s;
    }
    return n;
}

bool lq_site_reads(const lq_site *s, lq_role role) {
    for (uint32_t i = 0; i < s->n; i++)
        if (s->reader[i] == role) return true;
    return false;
}

static bool has_op(const lq_arch *a, const lq_params *p, lq_op_kind kind) {
    for (const lq_op *op = a->block; op->kind; op++)
        if (op->kind == kind && lq_params_has(p, op->only_if)) return true;
    return false;
}

static bool has_site(const lq_arch *a, const lq_params *p, lq_site_kind kind) {
    lq_site s[LQ_MAX_SITES];
    for (uint32_t l = 0; l < p->n_layers; l++)
        for (uint32_t i = 0, n = lq_arch_sites(a, p, l, s); i < n; i++)
            if (s[i].kind == kind) return true;
    return false;
}

const char *lq_arch_no_site(const lq_arch *a, const lq_params *p, lq_site_kind kind) {
    if (has_site(a, p, kind)) return NULL;
    switch (kind) {
    case LQ_SITE_NORM: return p->plain_norm ? "its norms have no stored gain to divide" : "its norms write the residual stream (post-norm): no linear alone reads them";
    case LQ_SITE_VALUE: return "something other than attention stands between v and o";
    case LQ_SITE_UP: return has_op(a, p, LQ_OP_GLU) ? "something other than the gated product stands between up and down" : "it has no gated MLP";
    case LQ_SITE_RELU:
        return !has_op(a, p, LQ_OP_ACT) ? "it has no plain MLP" : p->act != LQ_ACTFN_RELU ? "its activation is not ReLU: no factor passes through it" : "fc1 feeds more than fc2";
    default: return "there is no such site";
    }
}

bool lq_arch_makes_scores(const lq_arch *a, const lq_params *p, lq_role role) {
    static const lq_role parts[] = {LQ_R_Q, LQ_R_K};
    lq_op_kind how;
    for (int i = 0; i < 2; i++)
        if (lq_arch_holder(a, p, parts[i], &how) == role) return true;
    return false;
}
