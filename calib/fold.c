/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* W x = (W diag(s)) (x / s). x / s is made where x is: by the norm's gain and bias, or the rows and bias of the linear before.
 * Multiplying by a power of two rounds nothing, so such a fold changes no bit of the block's output; any other factor is exact
 * for what is stored as codes (they are decided later) and for a gain, whose rounded new value defines the factor. */
#include "calib/fold.h"

#include "core/num.h"
#include "core/thread.h"

#include <math.h>

enum { SLICE = 64 };

typedef struct touched { /* a stored tensor that a site scales: v[i * stride + at] for each of n rows, by s or 1/s */
    float *v;
    const lq_row *row;
    bool divided;
    uint32_t n;           /* rows of a reader; 1: a vector or a producer's matrix, whose row is the channel */
    uint32_t cols;        /* values of a channel in a producer's matrix; 1: a vector */
} touched;

typedef struct place {    /* everything a site touches in a block */
    touched gain;         /* v NULL: none */
    touched *part;        /* [n] */
    uint32_t n;
    lq_op_kind how;       /* of the producer */
    lq_role part_role;
} place;

static const lq_row *row_of(const lq_model *m, int32_t b, lq_role role, int32_t expert, lq_part part) {
    return lq_catalog_find(&m->cat, (lq_slot){.block = b, .role = (uint16_t)role, .expert = (int16_t)expert}, part);
}

static void add(place *p, touched t) {
    if (t.v && t.row) p->part[p->n++] = t;
}

static void add_readers(place *p, const lq_layer *l, const lq_site *s, int32_t expert) {
    for (uint32_t i = 0; i < s->n; i++) {
        bool every = lq_role_is_expert(s->reader[i]) && expert < 0;
        for (int32_t e = every ? 0 : expert; e < (every ? (int32_t)l->n_experts : expert + 1); e++) {
            const lq_linear *lin = lq_layer_linear(l, s->reader[i], e);
            add(p, (touched){.v = lin->w, .row = lin->row, .n = lin->rows, .cols = lin->cols});
        }
    }
}

static lq_status find_places(lq_ctx *ctx, const lq_model *m, int32_t b, int32_t expert, const lq_site *s, place *p) {
    const lq_layer *l = &m->layers[b];
    size_t most = (size_t)s->n * (l->n_experts ? l->n_experts : 1) + 2;
    *p = (place){.how = LQ_OP_LINEAR, .part_role = s->producer, .part = LQ_NEWN(touched, most)};
    if (!p->part) return lq_oom(ctx, most * sizeof *p->part);
    if (s->kind == LQ_SITE_NORM) {
        p->gain = (touched){.v = l->norm[s->producer], .row = row_of(m, b, s->producer, -1, LQ_PART_WEIGHT), .divided = true, .n = 1, .cols = 1};
        add(p, (touched){.v = l->shift[s->producer], .row = row_of(m, b, s->producer, -1, LQ_PART_BIAS), .divided = true, .n = 1, .cols = 1});
    } else {
        lq_role holder = lq_arch_holder(m->arch, &m->par, s->producer, &p->how);
        const lq_linear *lin = lq_layer_linear(l, holder, expert);
        add(p, (touched){.v = lin->w, .row = lin->row, .divided = true, .n = 1, .cols = lin->cols});
        add(p, (touched){.v = lin->bias, .row = row_of(m, b, holder, lq_role_is_expert(holder) ? expert : -1, LQ_PART_BIAS), .divided = true, .n = 1, .cols = 1});
    }
    add_readers(p, l, s, lq_role_is_expert(s->producer) ? expert : -1);
    return LQ_OK;
}

/* Channel j of a producer is row (and bias element) of its holder. */
static uint32_t channel_row(const lq_model *m, const place *p, uint32_t j) { return lq_split_row(&m->par, p->how, p->part_role, j); }

static float one(const lq_model *m) { return m->par.norm_plus_one ? 1.0f : 0.0f; }

static float rounded(lq_dtype t, float v) {
    char bytes[8];
    float back;
    lq_dtype_encode(t, &v, bytes, 1);
    lq_dtype_decode(t, bytes, &back, 1);
    return back;
}

static bool constrained(const touched *t) { return !t->row->quantize && t->row->out_dtype != LQ_F32; }

static bool stays(const touched *t, float v, float f) {
    double want = t->divided ? (double)v / (double)f : (double)v * (double)f;
    return (double)rounded(t->row->out_dtype, (float)want) == want;
}

/* Does every kept value of column or channel j stay what it is in its type? */
static bool fits(const lq_model *m, const place *p, const lq_site *s, uint32_t j, float f) {
    for (uint32_t i = 0; i < p->n; i++) {
        const touched *t = &p->part[i];
        if (!constrained(t)) continue;
        if (t->divided) {
            const float *v = t->v + (size_t)channel_row(m, p, j) * t->cols;
            for (uint32_t c = 0; c < t->cols; c++)
                if (!stays(t, v[c], f)) return false;
            continue;
        }
        for (uint32_t c = 0; c < t->cols; c++)
            for (uint32_t r = 0; r < t->n && lq_site_scale(&m->par, s, c) == j; r++)
                if (!stays(t, t->v[(size_t)r * t->cols + c], f)) return false;
    }
    return true;
}

static float new_gain(const lq_model *m, const touched *gain, uint32_t j, float f) {
    return rounded(gain->row->out_dtype, gain->v[j] / f - one(m)) + one(m);
}

static float settled(const lq_model *m, const place *p, const lq_site *s, uint32_t j, bool pow2, bool check, float f) {
    if (!(f >= 1e-4f)) f = f < 1e-4f ? 1e-4f : 1; /* NaN: 1 */
    if (f > 1e4f) f = 1e4f;
    if (pow2) f = (float)ldexp(1, (int)lrint(log2((double)f)));
    if (p->gain.v) {
        float g = p->gain.v[j], g2 = new_gain(m, &p->gain, j, f);
        f = g != 0 && g2 != 0 && isfinite(g2) ? g / g2 : 1;
        if (!(f >= 0x1p-14f && f <= 0x1p14f)) f = 1;
    }
    return !check || f == 1 || fits(m, p, s, j, f) ? f : 1;
}

lq_status lq_fold_settle(lq_ctx *ctx, const lq_model *m, int32_t block, int32_t expert, const lq_site *site, bool pow2, float *s) {
    place p;
    bool check = false;
    LQ_TRY(find_places(ctx, m, block, expert, site, &p));
    for (uint32_t i = 0; i < p.n; i++) check = check || constrained(&p.part[i]);
    for (uint32_t j = 0; j < site->scales; j++) s[j] = settled(m, &p, site, j, pow2 || check, check, s[j]);
    lq_free(p.part);
    return LQ_OK;
}

typedef struct columns { const lq_params *par; const lq_site *site; const touched *t; const float *s; } columns;
static void scale_rows(void *arg, size_t i) {
    const columns *a = arg;
    for (uint32_t r = (uint32_t)i * SLICE; r < (i + 1) * SLICE && r < a->t->n; r++) {
        float *v = a->t->v + (size_t)r * a->t->cols;
        for (uint32_t c = 0; c < a->t->cols; c++) v[c] *= a->s[lq_site_scale(a->par, a->site, c)];
    }
}

lq_status lq_fold_apply(lq_ctx *ctx, lq_model *m, int32_t block, int32_t expert, const lq_site *site, const float *s) {
    place p;
    LQ_TRY(find_places(ctx, m, block, expert, site, &p));
    for (uint32_t j = 0; p.gain.v && j < site->scales; j++)
        if (s[j] != 1) p.gain.v[j] = new_gain(m, &p.gain, j, s[j]);
    for (uint32_t i = 0; i < p.n; i++) {
        const touched *t = &p.part[i];
        if (!t->divided) lq_parallel_for((t->n + SLICE - 1) / SLICE, scale_rows, &(columns){&m->par, site, t, s});
        for (uint32_t j = 0; t->divided && j < site->scales; j++)
            for (uint32_t c = 0; c < t->cols; c++) t->v[(size_t)channel_row(m, &p, j) * t->cols + c] /= s[j];
    }
    lq_free(p.part);
    return LQ_OK;
}

lq_status lq_fold_kept(lq_ctx *ctx, const lq_model *m, int32_t block, int32_t expert, const lq_site *site, lq_status (*fn)(void *user, const lq_row *row), void *user) {
    place p;
    LQ_TRY(find_places(ctx, m, block, expert, site, &p));
    lq_status st = p.gain.v ? fn(user, p.gain.row) : LQ_OK;
    for (uint32_t i = 0; i < p.n && !st; i++)
        if (!p.part[i].row->quantize) st = fn(user, p.part[i].row);
    lq_free(p.part);
    return st;
}

/* Where a row's values are in its loaded block, and whether they are gains stored as w of 1 + w; NULL: nowhere. */
static float *values_of(const lq_model *m, const lq_row *row, bool *plus_one) {
    *plus_one = false;
    if (row->slot.block < 0 || (uint32_t)row->slot.block >= m->par.n_layers || row->slot.role >= LQ_R_N) return NULL;
    const lq_layer *l = &m->layers[row->slot.block];
    if (lq_role_is_expert((lq_role)row->slot.role) && (row->slot.expert < 0 || (uint32_t)row->slot.expert >= l->n_experts)) return NULL;
    const lq_linear *lin = lq_layer_linear(l, row->slot.role, row->slot.expert);
    if (lin->row == row) return lin->w;
    if (row->part == LQ_PART_BIAS) return lin->row ? lin->bias : l->shift[row->slot.role];
    *plus_one = m->par.norm_plus_one;
    return l->norm[row->slot.role];
}

lq_status lq_fold_store(lq_ctx *ctx, const lq_model *m, const lq_row *row, lq_buf *out) {
    bool plus_one;
    uint64_t n = lq_row_elems(row);
    size_t bytes = n * lq_dtypes[row->out_dtype].bytes;
    const float *v = values_of(m, row, &plus_one);
    if (!v) return lq_fail(ctx, LQ_ERR_INTERNAL, "%s: is not loaded", row->name);
    float *copy = lq_calloc(n, 4);
    char *coded = lq_alloc(bytes);
    lq_status st = copy && coded ? LQ_OK : lq_oom(ctx, bytes);
    for (uint64_t i = 0; !st && i < n; i++) copy[i] = plus_one ? v[i] - 1 : v[i];
    if (!st) lq_dtype_encode(row->out_dtype, copy, coded, n);
    if (!st && !lq_buf_add(out, coded, bytes)) st = lq_oom(ctx, bytes);
    lq_free(copy);
    lq_free(coded);
    return st;
}

lq_status lq_fold_restore(lq_ctx *ctx, lq_model *m, const lq_row *row, const void *p, size_t n) {
    bool plus_one;
    float *v = values_of(m, row, &plus_one);
    if (!v || n != lq_row_elems(row) * lq_dtypes[row->out_dtype].bytes) return lq_fail(ctx, LQ_ERR_FORMAT, "%s: a journalled tensor does not fit the model", row->name);
    void *aligned = lq_alloc(n); /* in a journal unit it stands at any offset */
    if (!aligned) return lq_oom(ctx, n);
    lq_dtype_decode(row->out_dtype, memcpy(aligned, p, n), v, lq_row_elems(row));
    lq_free(aligned);
    for (uint64_t i = 0; plus_one && i < lq_row_elems(row); i++) v[i] += 1;
    return LQ_OK;
}
