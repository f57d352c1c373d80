/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "eval/diff.h"

#include "core/pack.h"
#include "core/thread.h"

#include <stdio.h>
#include <string.h>

enum { ROWS = 64, PART = 1 << 16 };

const char *const lq_diff_kinds[] = {"same", "differs", "shape", "only in A", "only in B"};

static const lq_row *twin(const lq_model *m, const lq_row *r) {
    if (r->slot.role != LQ_R_UNKNOWN) return lq_catalog_find(&m->cat, r->slot, r->part);
    for (size_t i = 0; i < m->cat.n; i++)
        if (m->cat.rows[i].slot.role == LQ_R_UNKNOWN && !strcmp(m->cat.rows[i].name, r->name)) return &m->cat.rows[i];
    return NULL;
}

static void type_text(const lq_row *r, char out[64]) {
    if (r->scheme.grid.bits && r->dtype == LQ_NONE) lq_scheme_name(&r->scheme, out, 64);
    else snprintf(out, 64, "%s", lq_dtypes[r->dtype].name);
}

static bool same_shape(const lq_row *a, const lq_row *b) {
    if (a->ndim != b->ndim) return false;
    for (uint32_t i = 0; i < a->ndim; i++)
        if (a->shape[i] != b->shape[i]) return false;
    return true;
}

static bool same_order(const lq_qtensor *a, const lq_qtensor *b) {
    return !a->perm == !b->perm && (!a->perm || !memcmp(a->perm, b->perm, (size_t)a->cols * 4));
}

typedef struct pair { const lq_qtensor *a, *b; int64_t *n; } pair;

static void count_part(void *arg, size_t i) {
    const pair *p = arg;
    uint32_t r1 = p->a->rows - (uint32_t)i * ROWS < ROWS ? p->a->rows : (uint32_t)(i + 1) * ROWS;
    for (uint32_t r = (uint32_t)i * ROWS; r < r1; r++)
        for (uint32_t c = 0; c < p->a->cols; c++)
            p->n[i] += lq_code_get(p->a->codes + r * p->a->row_bytes, p->a->sch.grid.bits, c) != lq_code_get(p->b->codes + r * p->b->row_bytes, p->b->sch.grid.bits, c);
}

static lq_status code_difference(lq_ctx *ctx, const lq_qtensor *a, const lq_qtensor *b, int64_t *out) {
    const lq_grid *x = &a->sch.grid, *y = &b->sch.grid;
    if (x->kind != y->kind || x->bits != y->bits || x->bias != y->bias || !same_order(a, b)) return LQ_OK;
    size_t parts = (a->rows + ROWS - 1) / ROWS;
    pair p = {a, b, LQ_NEWN(int64_t, parts)};
    if (!p.n) return lq_oom(ctx, parts * sizeof *p.n);
    lq_parallel_for(parts, count_part, &p);
    *out = 0;
    for (size_t i = 0; i < parts; i++) *out += p.n[i];
    lq_free(p.n);
    return LQ_OK;
}

static bool in_codes(const lq_row *r) { return r->scheme.grid.bits && r->part == LQ_PART_WEIGHT && r->ndim == 2; }

static lq_status compare_codes(lq_ctx *ctx, lq_model *a, lq_model *b, const lq_row *ra, const lq_row *rb, lq_diff_row *out) {
    lq_qtensor x = {0}, y = {0};
    lq_status st;
    out->codes = -1;
    if (!in_codes(ra) || !in_codes(rb)) return LQ_OK;
    LQ_GO(lq_model_read_q(ctx, a, ra, &x));
    LQ_GO(lq_model_read_q(ctx, b, rb, &y));
    st = code_difference(ctx, &x, &y, &out->codes);
done:
    lq_qtensor_free(&x);
    lq_qtensor_free(&y);
    return st;
}

static bool is_weight(const lq_row *r) { return r->dtype == LQ_NONE || lq_dtype_is_weight(r->dtype); }

/* Integers and the like: byte for byte. */
static lq_status compare_bytes(lq_ctx *ctx, lq_model *a, lq_model *b, const lq_row *ra, const lq_row *rb, lq_diff_row *out) {
    size_t n = (size_t)lq_row_elems(ra) * lq_dtypes[ra->dtype].bytes;
    bool same = ra->dtype == rb->dtype;
    void *x = lq_alloc(n), *y = lq_alloc(n);
    lq_status st = x && y ? LQ_OK : lq_oom(ctx, n);
    if (!st && same) st = lq_model_read_stored(ctx, a, ra, x);
    if (!st && same) st = lq_model_read_stored(ctx, b, rb, y);
    if (!st && (!same || memcmp(x, y, n))) out->kind = LQ_DIFF_VALUES;
    lq_free(x);
    lq_free(y);
    return st;
}

typedef struct floats { const float *x, *y; size_t n; lq_loss *parts; } floats;

static void measure_part(void *arg, size_t i) {
    const floats *f = arg;
    size_t from = i * PART;
    lq_loss_measure(&f->parts[i], f->x + from, f->y + from, f->n - from < PART ? f->n - from : PART);
}

static lq_status measure(lq_ctx *ctx, const float *x, const float *y, size_t n, lq_loss *out) {
    size_t parts = (n + PART - 1) / PART;
    floats f = {x, y, n, LQ_NEWN(lq_loss, parts + 1)};
    if (!f.parts) return lq_oom(ctx, parts * sizeof *f.parts);
    lq_parallel_for(parts, measure_part, &f);
    for (size_t i = 0; i < parts; i++) lq_loss_add(out, &f.parts[i]);
    lq_free(f.parts);
    return LQ_OK;
}

static lq_status compare(lq_ctx *ctx, lq_model *a, lq_model *b, const lq_row *ra, const lq_row *rb, lq_diff_row *out) {
    if (!same_shape(ra, rb)) {
        out->kind = LQ_DIFF_SHAPE;
        return LQ_OK;
    }
    if (!is_weight(ra) || !is_weight(rb)) return compare_bytes(ctx, a, b, ra, rb, out);
    size_t n = (size_t)lq_row_elems(ra);
    float *x = lq_calloc(n, sizeof *x), *y = lq_calloc(n, sizeof *y);
    lq_status st = x && y ? LQ_OK : lq_oom(ctx, n * sizeof *x);
    if (!st) st = lq_model_read_f32(ctx, a, ra, x);
    if (!st) st = lq_model_read_f32(ctx, b, rb, y);
    if (!st) st = measure(ctx, x, y, n, &out->loss);
    lq_free(x);
    lq_free(y);
    if (!st) st = compare_codes(ctx, a, b, ra, rb, out);
    if (out->loss.changed) out->kind = LQ_DIFF_VALUES;
    return st;
}

lq_status lq_diff_make(lq_ctx *ctx, lq_model *a, lq_model *b, lq_diff *out) {
    *out = (lq_diff){.rows = LQ_NEWN(lq_diff_row, a->cat.n + b->cat.n + 1)};
    if (!out->rows) return lq_oom(ctx, (a->cat.n + b->cat.n) * sizeof *out->rows);
    for (size_t i = 0; i < a->cat.n; i++) {
        const lq_row *ra = &a->cat.rows[i], *rb = twin(b, ra);
        lq_diff_row *d = &out->rows[out->n++];
        *d = (lq_diff_row){.name = ra->name, .kind = rb ? LQ_DIFF_SAME : LQ_DIFF_ONLY_A, .codes = -1};
        type_text(ra, d->type_a);
        if (rb) type_text(rb, d->type_b);
        d->same_type = rb && !strcmp(d->type_a, d->type_b);
        out->types += rb && !d->same_type;
        if (rb) LQ_TRY(compare(ctx, a, b, ra, rb, d));
        lq_loss_add(&out->loss, &d->loss);
        out->count[d->kind]++;
        LQ_TRY(lq_check_cancel(ctx));
    }
    for (size_t i = 0; i < b->cat.n; i++) {
        const lq_row *rb = &b->cat.rows[i];
        if (twin(a, rb)) continue;
        lq_diff_row *d = &out->rows[out->n++];
        *d = (lq_diff_row){.name = rb->name, .kind = LQ_DIFF_ONLY_B, .codes = -1};
        type_text(rb, d->type_b);
        out->count[d->kind]++;
    }
    return LQ_OK;
}

void lq_diff_free(lq_diff *d) {
    lq_free(d->rows);
    *d = (lq_diff){0};
}
