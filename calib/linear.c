/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = x W^T + b on whatever the linear holds. One token, or a few and a packed matrix: GEMV on the stored form, blocks of tokens one after the other. More: panels of rows are
 * decoded into cache-sized scratch, each once, and multiplied with all tokens; panels are the parallel split and follow from the shape. */
#include "calib/forward.h"
#include "calib/run.h"
#include "kernels/ref/ref.h"

#include <string.h>

enum { PANEL = 128 << 10, PANEL_MIN = 32, PANEL_MAX = 128, GEMV_ROWS = 64 }; /* floats; rows */
enum { BLOCK = 128, FEW_FLOATS = 4, FEW_DIGITS = 1 }; /* tokens prepared at once for packed codes; that floats multiply as they are; that become digits */

static uint32_t panel_rows(const lq_linear *lin) {
    uint32_t want = PANEL / lin->cols;
    if (want < PANEL_MIN) want = PANEL_MIN;
    if (want > PANEL_MAX) want = PANEL_MAX;
    uint32_t parts = (lin->rows + want - 1) / want;
    return ((lin->rows + parts - 1) / parts + LQ_TILE - 1) / LQ_TILE * LQ_TILE; /* all alike: no thin last panel */
}

size_t lq_linear_scratch(const lq_linear *lin) {
    size_t panel = lin->rows && (lin->q || lin->dtype != LQ_F32) ? (size_t)panel_rows(lin) * lin->cols : 0;
    return lin->q && lin->q->sch.act.outlier > 0 ? panel + 2 * panel : panel; /* and doubles of columns that outliers multiply: all, at worst */
}

static size_t aligned(size_t n) { return (n + 63) / 64 * 64; }
static uint32_t rank_of(const lq_qtensor *q) { return q->sch.extra & LQ_X_LOWRANK ? q->sch.rank : 0; }

uint64_t lq_linear_bytes(const lq_linear *lin) {
    const lq_packed *p = lin->packed;
    if (p) {
        lq_scheme codes = lin->q->sch;
        codes.extra &= ~(uint32_t)LQ_X_ADDED;
        return (uint64_t)p->tiles * (p->tile_bytes + p->segs * p->seg_bytes) + lq_qtensor_bytes(lin->q) - lq_scheme_bytes(&codes, lin->rows, lin->cols);
    }
    return lin->q ? lq_qtensor_bytes(lin->q) : (uint64_t)lin->rows * lq_dtype_row_bytes(lin->dtype, lin->cols);
}

static size_t acts_bytes(const lq_packed *p, uint32_t n) {
    size_t floats = lq_packed_x_bytes(p, n), digits = lq_packed_d_bytes(p, n < FEW_DIGITS ? n : FEW_DIGITS);
    return aligned(floats > digits ? floats : digits);
}

size_t lq_linear_shared(const lq_linear *lin, uint32_t n) {
    if (lin->q && lin->q->sch.act.kind) return lq_act_shared(lin, n);
    if (n > BLOCK) n = BLOCK;
    return !lin->packed ? 0 : acts_bytes(lin->packed, n) + (size_t)n * rank_of(lin->q) * sizeof(double);
}

static bool fit_shared(lq_work *w, size_t bytes) {
    if (w->bytes >= bytes) return true;
    lq_free(w->shared);
    w->shared = lq_alloc(bytes);
    w->bytes = w->shared ? bytes : 0;
    return w->shared;
}

lq_status lq_work_fit(lq_ctx *ctx, lq_work *w, size_t per, size_t shared) {
    if (!fit_shared(w, shared)) return lq_oom(ctx, shared);
    per = (per + 15) / 16 * 16;
    if (w->v && w->per >= per && w->workers >= lq_threads()) return LQ_OK;
    if (per < w->per) per = w->per;
    lq_free(w->v);
    lq_free(w->fault);
    w->v = lq_calloc(per * (size_t)lq_threads() + 1, 4);
    w->fault = LQ_NEWN(lq_fault, (size_t)lq_threads());
    if (!w->v || !w->fault) return lq_work_free(w), lq_oom(ctx, per * 4);
    w->per = per;
    w->workers = lq_threads();
    return LQ_OK;
}

float *lq_work_mine(const lq_work *w) { return w->v + (size_t)lq_worker() * w->per; }

lq_status lq_work_check(lq_ctx *ctx, lq_work *w) {
    lq_fault f = {0};
    for (int i = w->workers - 1; i >= 0; i--) {
        if (w->fault[i].st) f = w->fault[i];
        w->fault[i] = (lq_fault){0};
    }
    if (!f.st) return LQ_OK;
    const char *name = f.name ? f.name : "a linear";
    if (f.st == LQ_ERR_RESOURCE) return lq_fail(ctx, f.st, "%s: no memory for its rounded activations", name);
    return lq_fail(ctx, f.st, "%s: its activations are to be rounded and are not finite in column %u", name, f.col);
}

void lq_work_free(lq_work *w) {
    lq_free(w->v);
    lq_free(w->fault);
    lq_free(w->shared);
    *w = (lq_work){0};
}

void lq_linear_rows(const lq_kernels *k, const lq_linear *l, uint32_t r0, uint32_t nr, float *out) {
    if (l->packed) {
        k->packed_dequant(l->packed, r0 / LQ_TILE, (nr + LQ_TILE - 1) / LQ_TILE, out);
        if (l->q->sch.extra & LQ_X_ADDED) lq_dequant_extras(l->q, r0, nr, out, k->decode);
    } else if (l->q) k->dequant(l->q, r0, nr, out);
    else k->decode(l->dtype, (const char *)l->w + r0 * lq_dtype_row_bytes(l->dtype, l->cols), out, (size_t)nr * l->cols);
}

void lq_linear_row(const lq_kernels *k, const lq_linear *lin, uint32_t r, float *mine, float *out) {
    if (!lin->packed) {
        lq_linear_rows(k, lin, r, 1, out);
        return;
    }
    uint32_t r0 = r - r % LQ_TILE;
    lq_linear_rows(k, lin, r0, lin->rows - r0 < LQ_TILE ? lin->rows - r0 : LQ_TILE, mine);
    memcpy(out, mine + (size_t)(r - r0) * lin->cols, lin->cols * sizeof *out);
}

typedef struct apply {
    const lq_kernels *k;
    const lq_work *work;
    const lq_linear *lin;
    const float *x;
    float *y;
    uint32_t n, panel;
    lq_packed_x px;             /* x for packed codes */
    lq_packed_d digits;         /* instead of it where they are near */
    double *low;                /* [n][rank] b x */
} apply;

static void gemv_slice(void *arg, size_t i) {
    const apply *a = arg;
    const lq_linear *l = a->lin;
    uint32_t r0 = (uint32_t)i * GEMV_ROWS, nr = l->rows - r0 < GEMV_ROWS ? l->rows - r0 : GEMV_ROWS;
    size_t stride = l->q ? 0 : lq_dtype_row_bytes(l->dtype, l->cols);
    for (uint32_t t = 0; t < a->n; t++) { /* the rows stay in a cache from one token to the next */
        const float *x = a->x + (size_t)t * l->cols;
        float *y = a->y + (size_t)t * l->rows + r0;
        if (l->q) a->k->gemv(l->q, r0, nr, x, y);
        else a->k->gemv_fp(l->dtype, (const char *)l->w + r0 * stride, stride, nr, l->cols, x, y);
    }
}

static uint32_t block_rows(uint32_t n) { return n > LQ_TILE ? GEMV_ROWS / 2 : GEMV_ROWS; }

static void low_slice(void *arg, size_t k) {
    const apply *a = arg;
    const lq_qtensor *q = a->lin->q;
    float *b = lq_work_mine(a->work);
    a->k->decode(LQ_F16, q->lr.b + k * q->cols, b, q->cols);
    for (uint32_t t = 0; t < a->n; t++) a->low[(size_t)t * q->sch.rank + k] = a->k->dot(b, a->x + (size_t)t * q->cols, q->cols);
}

static void tile_slice(void *arg, size_t i) {
    const apply *a = arg;
    const uint32_t rows = block_rows(a->n), tiles = rows / LQ_TILE;
    const lq_packed *p = a->lin->packed;
    const lq_qtensor *q = a->lin->q;
    uint32_t t0 = (uint32_t)i * tiles, nt = p->tiles - t0 < tiles ? p->tiles - t0 : tiles, r0 = t0 * LQ_TILE, nr = q->rows - r0 < rows ? q->rows - r0 : rows;
    if (a->digits.near) a->k->packed_digits(p, t0, nt, &a->digits, a->y, q->rows);
    else a->k->packed_gemv(p, t0, nt, &a->px, a->y, q->rows);
    for (uint32_t t = 0; q->sch.extra & LQ_X_ADDED && t < a->n; t++) {
        float *y = a->y + (size_t)t * q->rows + r0;
        if (a->low) lq_gemv_low(q, r0, nr, 0, q->sch.rank, a->low + (size_t)t * q->sch.rank, y);
        lq_gemv_sparse(q, r0, nr, a->x + (size_t)t * q->cols, y);
    }
}

static void x_slice(void *arg, size_t t) {
    const apply *a = arg;
    lq_packed_x_put(a->lin->packed, a->x, (uint32_t)t, &a->px);
}

static void block_tokens(apply *a) {
    const lq_packed *p = a->lin->packed;
    uint32_t rank = rank_of(&p->q);
    bool digits = a->n <= FEW_DIGITS && a->k->packed_digits != lq_packed_digits_c && lq_packed_whole(p) > 0; /* the definition is the slower one */
    if (digits) a->digits = lq_packed_d_make(p, a->k->digits, a->x, a->n, a->work->shared);
    a->low = rank ? (double *)(void *)((char *)a->work->shared + acts_bytes(p, a->n)) : NULL;
    if (!a->digits.near) {
        a->px = lq_packed_x_of(p, a->x, a->n, a->work->shared);
        if (a->px.x != a->x || a->px.sum) lq_spread(a->n, (uint64_t)a->n * p->q.cols, x_slice, a);
    }
    if (rank) lq_spread(rank, (uint64_t)rank * a->n * p->q.cols, low_slice, a);
    lq_spread((p->q.rows + block_rows(a->n) - 1) / block_rows(a->n), (uint64_t)p->q.rows * p->q.cols * a->n, tile_slice, a);
}

static void packed_tokens(const apply *a) {
    for (uint32_t t0 = 0; t0 < a->n; t0 += BLOCK) {
        apply b = *a;
        b.n = a->n - t0 < BLOCK ? a->n - t0 : BLOCK;
        b.x += (size_t)t0 * a->lin->cols;
        b.y += (size_t)t0 * a->lin->rows;
        block_tokens(&b);
    }
}

static void panel_slice(void *arg, size_t i) {
    const apply *a = arg;
    const lq_linear *l = a->lin;
    uint32_t r0 = (uint32_t)i * a->panel, nr = l->rows - r0 < a->panel ? l->rows - r0 : a->panel;
    float *w = lq_work_mine(a->work);
    lq_linear_rows(a->k, l, r0, nr, w);
    lq_gemm_nt(a->x, l->cols, w, l->cols, a->y + r0, l->rows, a->n, nr, l->cols, false);
}

static const float *bias_of(const lq_linear *l) { return l->bias ? l->bias : l->q ? l->q->bias : NULL; }

static void bias_slice(void *arg, size_t i) {
    const apply *a = arg;
    a->k->add(a->y + i * a->lin->rows, bias_of(a->lin), a->lin->rows);
}

void lq_linear_run(const lq_kernels *k, const lq_work *w, const lq_linear *lin, const float *x, uint32_t n, float *y) {
    apply a = {.k = k, .work = w, .lin = lin, .x = x, .y = y, .n = n, .panel = panel_rows(lin)};
    uint64_t work = (uint64_t)lin->rows * lin->cols;
    if (lin->q && lin->q->sch.act.kind) lq_act_run(k, w, lin, a.panel, x, n, y);
    else if (lin->packed && n <= k->few) packed_tokens(&a);
    else if (n <= (lin->q ? 1 : FEW_FLOATS)) lq_spread((lin->rows + GEMV_ROWS - 1) / GEMV_ROWS, work * n, gemv_slice, &a);
    else if (!lin->q && lin->dtype == LQ_F32) lq_matmul(x, lin->cols, lin->w, lin->cols, y, lin->rows, n, lin->rows, lin->cols);
    else lq_spread((lin->rows + a.panel - 1) / a.panel, work * n, panel_slice, &a);
    if (bias_of(lin)) lq_spread(n, (uint64_t)n * lin->rows, bias_slice, &a);
}

lq_status lq_linear_apply(lq_ctx *ctx, const lq_kernels *k, const lq_linear *lin, const float *x, uint32_t n, float *y) {
    lq_work w = {0};
    if (!lin->rows || (!lin->w && !lin->q)) return lq_fail(ctx, LQ_ERR_INTERNAL, "a linear that is not loaded");
    if (!n) return LQ_OK;
    if (n > 1 || lin->q) LQ_TRY(lq_work_fit(ctx, &w, lq_linear_scratch(lin), lq_linear_shared(lin, n)));
    lq_linear_run(k, &w, lin, x, n, y);
    lq_status st = lq_work_check(ctx, &w);
    lq_work_free(&w);
    return st;
}
