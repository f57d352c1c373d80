/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A tensor is followed from the op that sets it to the op that sets it anew. All of its readers must be linears: then their
 * columns can take the factor that its producer gives up. A tensor that lives on (the residual stream) has readers that no
 * walk sees, so a norm that writes it is no producer. */
#include "calib/sites.h"

const char *const lq_site_names[LQ_SITE_KINDS] = {"norm", "v-o", "up-down", "fc1-fc2"};

static uint8_t target(const lq_op *op) { return op->out & ~LQ_OUT_ADD; }
static bool is_on(const lq_params *p, const lq_op *op) { return lq_params_has(p, op->only_if); }
static bool adds(const lq_op *op) { return op->out & LQ_OUT_ADD; }

static bool reads(const lq_op *op, int t) { return op->in[0] == t || op->in[1] == t || op->in[2] == t || (adds(op) && target(op) == t); }

/* The last op that set tensor t before `at`, when it alone made what `at` reads; NULL. */
static const lq_op *maker(const lq_arch *a, const lq_params *p, const lq_op *at, int t) {
    while (at-- > a->block)
        if (is_on(p, at) && target(at) == t) return adds(at) ? NULL : at;
    return NULL;
}

/* The linears that read what `from` set, into s; false when something else reads it too, or nothing does. */
static bool linear_readers(const lq_params *p, const lq_op *from, const int32_t *stage, lq_site *s) {
    int t = target(from);
    if (t == T_RESID || adds(from)) return false;
    for (const lq_op *op = from + 1; op->kind; op++) {
        if (!is_on(p, op)) continue;
        if (reads(op, t)) {
            if (op->kind != LQ_OP_LINEAR || op->in[0] != t || (adds(op) && target(op) == t) || s->n == LQ_SITE_READERS) return false;
            if (!s->n) s->stage = stage[op - from];
            s->reader[s->n++] = op->role;
        }
        if (target(op) == t) break;
    }
    return s->n > 0;
}

/* Is the tensor op `from` set read by `reader` alone? */
static bool read_once(const lq_params *p, const lq_op *from, const lq_op *reader) {
    int t = target(from);
    for (const lq_op *op = from + 1; op->kind; op++) {
        if (!is_on(p, op)) continue;
        if (reads(op, t) && op != reader) return false;
        if (target(op) == t) break;
    }
    return true;
}

static bool is_linear_part(const lq_op *op) { return op && (op->kind == LQ_OP_LINEAR || op->kind == LQ_OP_SPLIT || op->kind == LQ_OP_SPLIT_HEADS); }

/* The site whose readers read the output of op: through op for attention, products and activations. */
static bool site_of(const lq_arch *a, const lq_params *p, const lq_op *op, lq_site *s) {
    const lq_op *from = NULL;
    switch (op->kind) {
    case LQ_OP_NORM: /* without a stored gain there is nothing to divide */
        *s = (lq_site){.kind = LQ_SITE_NORM, .producer = op->role};
        return !p->plain_norm;
    case LQ_OP_ATTN:
        from = maker(a, p, op, op->in[2]);
        *s = (lq_site){.kind = LQ_SITE_VALUE};
        break;
    case LQ_OP_GLU:
        from = maker(a, p, op, op->in[1]);
        *s = (lq_site){.kind = LQ_SITE_UP};
        break;
    case LQ_OP_ACT:
        from = p->act == LQ_ACTFN_RELU ? maker(a, p, op, op->in[0]) : NULL;
        *s = (lq_site){.kind = LQ_SITE_RELU};
        break;
    default: return false;
    }
    if (!is_linear_part(from) || !read_once(p, from, op)) return false;
    s->producer = from->role;
    return true;
}

static uint32_t columns(const lq_arch *a, const lq_params *p, lq_role role) {
    const lq_arch_name *t = lq_arch_tensor(a, role, LQ_PART_WEIGHT);
    return t ? lq_params_dim(p, t->cols) : 0;
}

uint32_t lq_arch_sites(const lq_arch *a, const lq_params *p, lq_site out[LQ_MAX_SITES]) {
    int32_t stage[LQ_MAX_OPS];
    uint32_t n_ops = lq_arch_stages(a, p, stage), n = 0;
    for (uint32_t i = 0; i < n_ops && n < LQ_MAX_SITES; i++) {
        const lq_op *op = &a->block[i];
        lq_site s;
        if (!is_on(p, op) || !site_of(a, p, op, &s) || !linear_readers(p, op, stage + i, &s)) continue;
        s.cols = columns(a, p, s.reader[0]);
        s.scales = s.kind == LQ_SITE_VALUE ? p->n_kv_heads * p->head_dim : s.cols;
        uint32_t at = n++;
        for (; at && out[at - 1].stage > s.stage; at--) out[at] = out[at - 1];
        out[at] = s;
    }
    return n;
}

static bool has_op(const lq_arch *a, const lq_params *p, lq_op_kind kind) {
    for (const lq_op *op = a->block; op->kind; op++)
        if (op->kind == kind && is_on(p, op)) return true;
    return false;
}

const char *lq_arch_no_site(const lq_arch *a, const lq_params *p, lq_site_kind kind) {
    lq_site s[LQ_MAX_SITES];
    uint32_t n = lq_arch_sites(a, p, s);
    for (uint32_t i = 0; i < n; i++)
        if (s[i].kind == kind) return NULL;
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
