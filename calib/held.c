/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "calib/held.h"

#include "calib/act.h"
#include "calib/ops.h"
#include "kernels/ref/ref.h"

#include <math.h>
#include <string.h>

enum { SLAB = 4 << 20 }; /* bytes of a decoded piece of a matrix */

typedef struct up {
    lq_ctx *ctx;
    lq_model *m;
    lq_held *h;
    struct { char *codes, *params, *perm; } at; /* room that the next matrix goes to (floats: codes); NULL: room of its own */
} up;

static lq_status own(up *u, void *p, size_t n) {
    lq_held *h = u->h;
    if (h->n_own == h->room) {
        size_t room = h->room ? 2 * h->room : 256;
        void **more = LQ_NEWN(void *, room);
        if (!more) return h->d->release(p), lq_oom(u->ctx, room * sizeof *more);
        if (h->n_own) memcpy(more, h->own, h->n_own * sizeof *more);
        lq_free(h->own);
        h->own = more;
        h->room = room;
    }
    h->own[h->n_own++] = p;
    h->bytes += n;
    return LQ_OK;
}

lq_status lq_held_take(lq_ctx *ctx, lq_held *h, const void *from, size_t n, void **out) {
    up u = {.ctx = ctx, .h = h};
    *out = h->d->alloc(n);
    if (!*out) return lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: no room for %zu bytes more beside the %llu it holds", h->d->name, n, (unsigned long long)h->bytes);
    LQ_TRY(own(&u, *out, n));
    return !from || h->d->put(*out, from, n) ? LQ_OK : lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: %zu bytes cannot be copied to it", h->d->name, n);
}

/* ---- floats ---- */

static bool past_half(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (fabsf(x[i]) >= 65520) return true;
    return false;
}

/* *small: a value that F16 cannot hold was met. */
static lq_status put_decoded(up *u, const lq_linear *lin, lq_dtype type, void *to, bool *small) {
    size_t row = (size_t)lin->cols * 4, fit = SLAB / row / LQ_TILE;
    uint32_t per = (uint32_t)(fit ? fit : 1) * LQ_TILE;
    float *x = LQ_NEWN(float, (size_t)per * lin->cols);
    char *enc = lq_alloc(per * row);
    lq_status st = x && enc ? LQ_OK : lq_oom(u->ctx, per * row);
    for (uint32_t r0 = 0; !st && r0 < lin->rows; r0 += per) {
        uint32_t nr = lin->rows - r0 < per ? lin->rows - r0 : per;
        size_t n = (size_t)nr * lin->cols, bytes = n * lq_dtypes[type].bytes;
        lq_linear_rows(u->m->k, lin, r0, nr, x);
        if (type == LQ_F16 && (*small = past_half(x, n))) break;
        lq_dtype_encode(type, x, enc, n);
        if (!u->h->d->put((char *)to + (size_t)r0 * lin->cols * lq_dtypes[type].bytes, enc, bytes))
            st = lq_fail(u->ctx, LQ_ERR_RESOURCE, "device %s: %zu bytes cannot be copied to it", u->h->d->name, bytes);
    }
    lq_free(x);
    lq_free(enc);
    return st;
}

static bool is_float(lq_dtype t) { return t == LQ_F32 || t == LQ_F16 || t == LQ_BF16; }

/* What a matrix is held as that the device has no kernel for; F32 where a value is too large for that. */
static lq_dtype type_held(const lq_linear *lin) {
    lq_dtype type = lin->q ? lq_qtensor_floats(lin->q) : lin->dtype;
    return is_float(type) ? type : LQ_F16;
}

static lq_status hold_dense(up *u, const lq_linear *lin, lq_held_linear *out) {
    lq_dtype type = type_held(lin);
    void *w = u->at.codes;
    bool stored = !lin->q && is_float(lin->dtype), small = false;
    size_t n = (size_t)lin->rows * lin->cols;
    if (!u->at.codes) LQ_TRY(lq_held_take(u->ctx, u->h, stored ? lin->w : NULL, n * lq_dtypes[type].bytes, &w));
    else if (stored && !u->h->d->put(w, lin->w, n * lq_dtypes[type].bytes)) return lq_fail(u->ctx, LQ_ERR_RESOURCE, "device %s: tensor '%s' cannot be copied to it", u->h->d->name, lin->row->name);
    if (!stored) {
        u->h->decoded++;
        LQ_TRY(put_decoded(u, lin, type, w, &small));
    }
    if (small) {
        type = LQ_F32;
        LQ_TRY(lq_held_take(u->ctx, u->h, NULL, n * 4, &w));
        LQ_TRY(put_decoded(u, lin, type, w, &small));
    }
    out->w = (lq_device_dense){.rows = lin->rows, .cols = lin->cols, .dtype = (uint8_t)type, .w = w};
    return LQ_OK;
}

/* ---- codes ---- */

static bool has_extras(const lq_qtensor *q) {
    return (q->sch.extra & LQ_X_OUTLIERS && q->outliers.n) || (q->sch.extra & LQ_X_OUTLIER_COLS && q->outlier_cols.n) || q->sch.extra & LQ_X_LOWRANK;
}

static bool is_kept(const uint8_t *kept, uint32_t c) { return kept && kept[c]; }

/* A kept column is the whole weight: sparse values and low rank say nothing there. */
static lq_status hold_sparse(up *u, const lq_qtensor *q, const uint8_t *kept, lq_device_sparse *out) {
    const lq_csr *o = &q->outliers;
    lq_status st = LQ_OK;
    uint32_t *start = LQ_NEWN(uint32_t, (size_t)q->rows + 1), *col = LQ_NEWN(uint32_t, (size_t)o->n + 1), n = 0;
    uint16_t *value = LQ_NEWN(uint16_t, (size_t)o->n + 1);
    void *p[3];
    if (!start || !col || !value) LQ_GO(lq_oom(u->ctx, (size_t)o->n * 6 + q->rows * 4));
    for (uint32_t r = 0; r < q->rows; r++) {
        start[r] = n;
        for (uint32_t i = o->row[r]; i < o->row[r + 1]; i++) {
            if (is_kept(kept, o->col[i])) continue;
            col[n] = o->col[i];
            value[n++] = o->v[i];
        }
    }
    start[q->rows] = n;
    if (n) {
        LQ_GO(lq_held_take(u->ctx, u->h, start, ((size_t)q->rows + 1) * 4, &p[0]));
        LQ_GO(lq_held_take(u->ctx, u->h, col, (size_t)n * 4, &p[1]));
        LQ_GO(lq_held_take(u->ctx, u->h, value, (size_t)n * 2, &p[2]));
        out->nnz = n;
        out->start = p[0];
        out->col = p[1];
        out->value = p[2];
    }
done:
    lq_free(start);
    lq_free(col);
    lq_free(value);
    return st;
}

static lq_status hold_low(up *u, const lq_qtensor *q, const uint8_t *kept, lq_device_sparse *out) {
    size_t n = (size_t)q->sch.rank * q->cols;
    uint16_t *b = LQ_NEWN(uint16_t, n);
    void *p[2];
    if (!b) return lq_oom(u->ctx, n * 2);
    for (size_t i = 0; i < n; i++) b[i] = is_kept(kept, (uint32_t)(i % q->cols)) ? 0 : q->lr.b[i];
    lq_status st = lq_held_take(u->ctx, u->h, q->lr.a, (size_t)q->rows * q->sch.rank * 2, &p[0]);
    if (!st) st = lq_held_take(u->ctx, u->h, b, n * 2, &p[1]);
    lq_free(b);
    if (st) return st;
    out->rank = q->sch.rank;
    out->low_a = p[0];
    out->low_b = p[1];
    return LQ_OK;
}

static lq_status hold_extras(up *u, const lq_qtensor *q, lq_held_linear *out) {
    const lq_cols *o = &q->outlier_cols;
    bool some = q->sch.extra & LQ_X_OUTLIER_COLS && o->n;
    uint8_t *kept = some ? LQ_NEWN(uint8_t, q->cols) : NULL;
    void *p[3];
    lq_status st = LQ_OK;
    out->extra = (lq_device_sparse){.rows = q->rows, .cols = q->cols};
    if (some && !kept) return lq_oom(u->ctx, q->cols);
    for (uint32_t i = 0; some && i < o->n; i++) kept[o->idx[i]] = 1;
    if (some) {
        LQ_GO(lq_held_take(u->ctx, u->h, o->idx, (size_t)o->n * 4, &p[0]));
        LQ_GO(lq_held_take(u->ctx, u->h, o->v, (size_t)q->rows * o->n * 2, &p[1]));
        LQ_GO(lq_held_take(u->ctx, u->h, kept, q->cols, &p[2]));
        out->extra.kept = o->n;
        out->extra.kept_col = p[0];
        out->extra.kept_w = p[1];
        out->round.apart = p[2];
    }
    if (q->sch.extra & LQ_X_OUTLIERS && q->outliers.n) LQ_GO(hold_sparse(u, q, kept, &out->extra));
    if (q->sch.extra & LQ_X_LOWRANK) LQ_GO(hold_low(u, q, kept, &out->extra));
done:
    lq_free(kept);
    return st;
}

static void most(uint32_t *have, uint32_t n) { *have = n > *have ? n : *have; }

static lq_status put_packed(up *u, const lq_linear *lin, lq_held_linear *out) {
    const lq_packed *p = lin->packed;
    lq_held *h = u->h;
    out->packed = true;
    out->m = (lq_device_matrix){.codes = u->at.codes, .params = u->at.params, .perm = (const uint32_t *)(const void *)u->at.perm};
    bool ok = u->at.codes ? lq_device_fill(h->d, p, &out->m) : lq_device_put(h->d, p, &out->m);
    if (!ok) return lq_fail(u->ctx, LQ_ERR_RESOURCE, "device %s: no room for tensor '%s' beside the %llu bytes it holds", h->d->name, lin->row->name, (unsigned long long)h->bytes);
    if (u->at.codes) return LQ_OK;
    lq_status st = own(u, (void *)out->m.codes, lq_device_bytes(p)), st2 = own(u, (void *)out->m.params, (size_t)lq_device_param_bytes(p));
    lq_status st3 = out->m.perm ? own(u, (void *)out->m.perm, (size_t)lin->cols * 4) : LQ_OK;
    return st ? st : st2 ? st2 : st3;
}

static lq_status hold_packed(up *u, const lq_linear *lin, lq_held_linear *out) {
    const lq_packed *p = lin->packed;
    lq_held *h = u->h;
    LQ_TRY(put_packed(u, lin, out));
    if (has_extras(&p->q)) LQ_TRY(hold_extras(u, &p->q, out));
    if (!p->q.sch.act.kind || out->valued) return LQ_OK;
    out->round.act = p->q.sch.act;
    out->round.fixed = p->q.act_scale;
    most(&h->round.ld, lq_packed_ld(p));
    most(&h->round.segs, p->segs);
    if (p->q.sch.act.outlier <= 0) return LQ_OK;
    out->splits = lq_device_splits(&out->m) && h->d->ops->product;
    most(&h->round.mark, lin->cols);
    if (out->splits) most(&h->round.left, lq_packed_ld(p));
    else most(&h->round.cols, lin->cols), most(&h->round.rows, lin->rows);
    return LQ_OK;
}

/* Has the device everything that this matrix in codes needs, but for the activations? */
static bool has_kernels(const lq_device *d, const lq_linear *lin) {
    const lq_packed *p = lin->packed;
    return p && lq_device_fits(p) && (!has_extras(&p->q) || d->ops->sparse);
}

/* Weights and activations of E4M3. */
static bool is_small(const lq_qtensor *q) { return q->sch.grid.kind == LQ_GRID_E4M3 && q->sch.act.kind && q->sch.act.dtype == LQ_E4M3; }

/* How activations are rounded: to codes where idot multiplies them, else to values; false: they cannot be. */
static bool rounds_here(const lq_device *d, const lq_linear *lin, lq_held_linear *out) {
    const lq_qtensor *q = lin->q;
    if (!q || !q->sch.act.kind) return true;
    if (has_kernels(d, lin) && lq_device_shape(lin->packed).times && d->ops->round && d->idot) return true;
    bool plain = q->sch.act.dtype == LQ_E4M3 || q->sch.act.dtype == LQ_I8 || q->sch.act.dtype == LQ_BOOL;
    out->valued = plain && q->sch.act.outlier <= 0 && q->sch.act.scope != 1 && d->ops->act && (has_kernels(d, lin) || !has_extras(q));
    out->round.act = q->sch.act;
    out->round.fixed = q->act_scale;
    if (out->valued && is_small(q) && has_kernels(d, lin)) {
        const lq_device_matrix m = lq_device_shape(lin->packed);
        out->stepped = lq_device_steps(&m, q->sch.act.tile);
    }
    return out->valued;
}

static lq_status hold_linear(up *u, const lq_linear *lin, lq_held_linear *out) {
    const float *bias = lin->bias ? lin->bias : lin->q ? lin->q->bias : NULL;
    uint32_t rows = lin->rows ? lin->rows : u->m->par.vocab; /* a tied head's bias is all it has */
    void *b = NULL;
    out->rows = lin->rows;
    out->cols = lin->cols;
    if (bias) LQ_TRY(lq_held_take(u->ctx, u->h, bias, (size_t)rows * 4, &b));
    out->bias = b;
    if (!lin->rows) return LQ_OK;
    bool can = rounds_here(u->h->d, lin, out);
    if (out->valued) most(&u->h->round.values, lin->cols);
    if (out->stepped) most(&u->h->round.tiles, lq_act_tiles(&out->round.act, lin->cols));
    if (can) return has_kernels(u->h->d, lin) ? hold_packed(u, lin, out) : hold_dense(u, lin, out);
    char name[96];
    return lq_fail(u->ctx, LQ_ERR_UNSUPPORTED, "tensor '%s' is %s: device %s cannot round activations that way yet", lin->row->name, lq_scheme_name(&lin->q->sch, name, sizeof name), u->h->d->name);
}

/* ---- experts one behind the other ---- */

static bool same_act(const lq_act *a, const lq_act *b) { return a->kind == b->kind && a->dtype == b->dtype && a->tile == b->tile && a->outlier == b->outlier && a->scope == b->scope; }

/* May rows that pick the experts a and b be multiplied by one launch? Columns of a batch that are left out are an expert's own. */
static bool may_stack(const lq_device *d, const lq_linear *a, const lq_linear *b) {
    const lq_qtensor *q = a->q, *r = b->q;
    if (a->rows != b->rows || a->cols != b->cols || !q != !r || b->bias || (r && r->bias) || has_kernels(d, a) != has_kernels(d, b)) return false;
    if (q && (!same_act(&q->sch.act, &r->sch.act) || (r->sch.act.scope == 1 && r->sch.act.outlier > 0))) return false;
    if (!has_kernels(d, a)) return type_held(a) == type_held(b);
    const lq_device_matrix x = lq_device_shape(a->packed), y = lq_device_shape(b->packed);
    return !has_extras(r) && lq_device_alike(&x, &y) && x.up == y.up && x.shift == y.shift && !q->perm == !r->perm;
}

static bool role_stacks(const lq_device *d, const lq_layer *l, int role) {
    for (uint32_t e = 0; e < l->n_experts; e++)
        if (!may_stack(d, &l->experts[role], &l->experts[(size_t)e * LQ_EXPERT_ROLES + role])) return false;
    return l->n_experts <= LQ_DEVICE_EXPERTS && d->ops->route;
}

/* Static steps of all experts, for rows that pick one. */
static lq_status hold_fixes(up *u, const lq_layer *l, int role, lq_held_linear *out) {
    const lq_qtensor *q = l->experts[role].q;
    if (!q || q->sch.act.kind != LQ_ACT_STATIC) return LQ_OK;
    float *fixes = LQ_NEWN(float, l->n_experts);
    void *p = NULL;
    if (!fixes) return lq_oom(u->ctx, l->n_experts * sizeof *fixes);
    for (size_t e = 0; e < l->n_experts; e++) fixes[e] = l->experts[e * LQ_EXPERT_ROLES + (size_t)role].q->act_scale;
    lq_status st = lq_held_take(u->ctx, u->h, fixes, l->n_experts * sizeof *fixes, &p);
    lq_free(fixes);
    for (size_t e = 0; e < l->n_experts; e++) out[e * LQ_EXPERT_ROLES + (size_t)role].round.fixes = p;
    return st;
}

static lq_status hold_role(up *u, const lq_layer *l, int role, lq_held_linear *out) {
    const lq_linear *first = &l->experts[role];
    const lq_packed *p = has_kernels(u->h->d, first) ? first->packed : NULL;
    const bool stacks = first->rows && role_stacks(u->h->d, l, role);
    bool one_type = true;
    const size_t codes = p ? lq_device_bytes(p) : (size_t)first->rows * first->cols * lq_dtypes[type_held(first)].bytes, params = p ? (size_t)lq_device_param_bytes(p) : 0;
    const size_t perm = p && p->q.perm ? (size_t)first->cols * 4 : 0;
    void *room[3] = {NULL, NULL, NULL};
    if (stacks) LQ_TRY(lq_held_take(u->ctx, u->h, NULL, codes * l->n_experts + 16, &room[0]));
    if (stacks && params) LQ_TRY(lq_held_take(u->ctx, u->h, NULL, params * l->n_experts + 16, &room[1]));
    if (stacks && perm) LQ_TRY(lq_held_take(u->ctx, u->h, NULL, perm * l->n_experts, &room[2]));
    for (size_t e = 0; e < l->n_experts; e++) {
        lq_held_linear *to = &out[e * LQ_EXPERT_ROLES + (size_t)role];
        if (stacks) u->at.codes = (char *)room[0] + e * codes;
        if (params && stacks) u->at.params = (char *)room[1] + e * params;
        if (perm && stacks) u->at.perm = (char *)room[2] + e * perm;
        lq_status st = hold_linear(u, &l->experts[e * LQ_EXPERT_ROLES + (size_t)role], to);
        u->at.codes = u->at.params = u->at.perm = NULL;
        if (st) return st;
        to->stacked = stacks;
        one_type &= p || !stacks || to->w.w == (char *)room[0] + e * codes;
    }
    if (stacks) LQ_TRY(hold_fixes(u, l, role, out));
    u->h->picks &= (stacks && one_type) || !first->rows; /* one of another type lies apart */
    return LQ_OK;
}

static lq_status hold_vector(up *u, const float *v, uint32_t n, float **out) {
    void *p = NULL;
    if (v) LQ_TRY(lq_held_take(u->ctx, u->h, v, (size_t)n * 4, &p));
    *out = p;
    return LQ_OK;
}

static lq_status hold_layer(up *u, const lq_layer *l, int32_t b, lq_held_layer *out) {
    const lq_model *m = u->m;
    for (int r = 0; r < LQ_R_N; r++) LQ_TRY(hold_linear(u, &l->lin[r], &out->lin[r]));
    if (l->n_experts && !(out->experts = LQ_NEWN(lq_held_linear, (size_t)l->n_experts * LQ_EXPERT_ROLES))) return lq_oom(u->ctx, l->n_experts * sizeof *out->experts);
    for (int r = 0; r < LQ_EXPERT_ROLES && l->n_experts; r++) LQ_TRY(hold_role(u, l, r, out->experts));
    for (size_t i = 0; i < m->cat.n; i++) { /* norms have the catalog's length */
        const lq_row *r = &m->cat.rows[i];
        if (r->slot.block != b || r->slot.role >= LQ_R_N || lq_role_is_kv(r->slot.role)) continue;
        uint32_t n = (uint32_t)lq_row_elems(r), role = r->slot.role;
        if (r->part == LQ_PART_WEIGHT && l->norm[role] && !out->norm[role]) LQ_TRY(hold_vector(u, l->norm[role], n, &out->norm[role]));
        if (r->part == LQ_PART_BIAS && l->shift[role] && !out->shift[role]) LQ_TRY(hold_vector(u, l->shift[role], n, &out->shift[role]));
    }
    return LQ_OK;
}

/* ---- what is packed for a device alone: the CPU has no packed kernels for it, so it is loaded as stored ---- */

/* E4M3 that is multiplied by E4M3: weights alone are packed, and activations come as codes. */
static bool small_packs(const lq_device *d, const lq_linear *lin) {
    if (!lin->rows || lin->packed || !lin->q || !is_small(lin->q) || has_extras(lin->q) || !d->ops->act || !d->ops->product) return false;
    lq_scheme s = lin->q->sch;
    if (lin->q->perm && s.act.tile) return false; /* steps are of weight columns */
    s.act = (lq_act){0};
    return lq_packed_fits(&s, lin->rows, lin->cols);
}

static bool tables_pack(const lq_device *d, const lq_linear *lin) {
    const lq_qtensor *q = lin->q;
    return lin->rows && !lin->packed && q && q->sch.extra & LQ_X_LUT_PER_ROW && lq_packed_holds(&q->sch, lin->rows, lin->cols) && (!has_extras(q) || d->ops->sparse);
}

static lq_status pack_linear(up *u, lq_linear *lin) {
    const bool tables = tables_pack(u->h->d, lin);
    if (!tables && !small_packs(u->h->d, lin)) return LQ_OK;
    lq_qtensor q = *lin->q;
    lq_packed *p = LQ_NEW(lq_packed);
    if (!p) return lq_oom(u->ctx, sizeof *p);
    q.sch.act = (lq_act){0};
    lq_status st = lq_pack(u->ctx, &q, p);
    const lq_device_matrix m = st ? (lq_device_matrix){0} : lq_device_shape(p);
    if (!st && (tables || lq_device_steps(&m, lin->q->sch.act.tile))) {
        lin->packed = p;
        return LQ_OK;
    }
    if (!st) lq_packed_free(p);
    lq_free(p);
    return st ? lq_note(u->ctx, st, "tensor '%s'", lin->row->name) : LQ_OK;
}

/* What pack_linear made: matrices packed by the loader share their qtensor. */
static void unpack_linear(lq_linear *lin) {
    lq_packed *p = lin->packed && lin->q != &lin->packed->q ? (lq_packed *)lin->packed : NULL;
    if (!p) return;
    lq_packed_free(p);
    lq_free(p);
    lin->packed = NULL;
}

static lq_status hold_packing(up *u, lq_layer *l, int32_t b, lq_held_layer *out) {
    const size_t experts = (size_t)l->n_experts * LQ_EXPERT_ROLES;
    lq_status st = LQ_OK;
    for (int r = 0; !st && r < LQ_R_N; r++) st = pack_linear(u, &l->lin[r]);
    for (size_t e = 0; !st && e < experts; e++) st = pack_linear(u, &l->experts[e]);
    if (!st) st = hold_layer(u, l, b, out);
    for (int r = 0; r < LQ_R_N; r++) unpack_linear(&l->lin[r]);
    for (size_t e = 0; e < experts; e++) unpack_linear(&l->experts[e]);
    return st;
}

static lq_status hold_all(up *u) {
    lq_model *m = u->m;
    lq_held *h = u->h;
    for (int32_t b = -1; b < (int32_t)m->par.n_layers; b++) {
        lq_layer *l = b < 0 ? &m->outer : &m->layers[b];
        LQ_TRY(lq_model_load(u->ctx, m, b, LQ_LOAD_PACKED));
        h->step_bytes += lq_layer_step_bytes(m, l);
        LQ_TRY(hold_packing(u, l, b, b < 0 ? &h->outer : &h->layers[b]));
        lq_model_unload(m, b);
        LQ_TRY(lq_check_cancel(u->ctx));
    }
    return LQ_OK;
}

lq_status lq_model_hold(lq_ctx *ctx, lq_model *m, const lq_device *d) {
    if (!m->arch) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a model of unknown architecture cannot be run");
    if (!d->available()) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "device %s: %s", d->name, d->describe());
    if (!d->ops) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "device %s has no forward pass in this build", d->name);
    lq_held *h = LQ_NEW(lq_held);
    if (!h) return lq_oom(ctx, sizeof *h);
    *h = (lq_held){.d = d, .picks = true, .n_layers = m->par.n_layers, .layers = LQ_NEWN(lq_held_layer, m->par.n_layers)};
    lq_status st = h->layers ? hold_all(&(up){.ctx = ctx, .m = m, .h = h}) : lq_oom(ctx, m->par.n_layers * sizeof *h->layers);
    if (st) return lq_held_free(&h), st;
    m->held = h;
    lq_log(ctx, LQ_LOG_INFO, "%s: %s; %.1f MB of weights on it", d->name, d->describe(), (double)h->bytes / 1e6);
    if (h->decoded) lq_log(ctx, LQ_LOG_INFO, "%s: %u matrices that it has no kernel for are decoded to floats there", d->name, h->decoded);
    return LQ_OK;
}

bool lq_held_ahead(lq_held *h, bool on) {
    const bool can = h->d->ahead && h->d->ahead(on);
    h->ahead = on && can;
    return can;
}

void lq_held_free(lq_held **held) {
    lq_held *h = *held;
    if (!h) return;
    if (h->head) lq_run_free(h->head);
    lq_free(h->head);
    for (size_t i = 0; i < h->n_own; i++) h->d->release(h->own[i]);
    for (uint32_t b = 0; h->layers && b < h->n_layers; b++) lq_free(h->layers[b].experts);
    lq_free(h->layers);
    lq_free(h->own);
    lq_free(h);
    *held = NULL;
}
