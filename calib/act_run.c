/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = x^ W^T with x^ the rounded activations of calib/act.h and W in codes, A(q) s - z per tile:
 *
 *   y[t][r] = sum over segments g of  step[t][g] * ( s[r][g] * sum_c code[t][c] A(q[r][c])  -  z' * sum_c code[t][c] ),
 *   z' = s z (zero CODE) or z (zero MIN);  a segment: columns that share a weight tile and an activation tile
 *
 * The inner sums of integer codes are exact: panels of at most lq_act_panel() columns through sgemm, where no partial sum
 * reaches 2^24, added in fp64. Everything outside them is fp64 in a fixed order, rounded once. FP8 and table grids: the inner
 * sum is fp32. Packed codes have a kernel for the integer sums and the formula around them, with the same bits. What is left out of the codes (outliers of LLM.int8, kept columns, sparse values, low rank) multiplies the
 * activations as they are. Sources: LLM.int8 (arXiv 2208.07339), ZeroQuant (2206.01861); algorithms.md 2, 3. */
#include "calib/act.h"
#include "calib/run.h"
#include "core/num.h"
#include "kernels/linalg.h"

#include <math.h>
#include <string.h>

enum { TOKENS = 64, ROWS = 128 }; /* of one product */

typedef struct seg { uint32_t c0, n; } seg;

typedef struct call {
    const lq_kernels *k;
    const lq_work *work;
    const lq_linear *lin;
    const lq_qtensor *q;
    lq_qtensor bare;            /* its dequantization is A(code), or, when `whole`, the weight without the extras */
    const float *x, *seen;      /* [n][cols]; seen: what is rounded to codes, x itself but for bitsandbytes */
    float *half;                /* seen, where it is not x */
    float *y, *code, *step;     /* [n][rows]; [n][cols] in stored order; [n][tiles] */
    uint32_t n, panel, tiles, exact;
    bool whole;
    uint8_t *apart;             /* [cols] */
    seg *segs;
    uint32_t n_segs;
    lq_packed_i *packed;        /* [blocks of TOKENS]: codes as packed weights multiply them; NULL: these are not packed */
    char *prepared;             /* what they point into */
    uint32_t *used, n_used;     /* packed: stored columns that hold an outlier in some token */
    uint32_t *out_at, *out_col; /* outliers of token t: out_col[out_at[t] .. out_at[t + 1]) */
    double *low;                /* [n][rank] b x */
    float *low_b;               /* [rank][cols] */
    uint32_t *bad;              /* [n] first column that is not finite, cols when none */
} call;

static uint32_t next_edge(uint32_t c, uint32_t tile, uint32_t cols) { return tile && cols - c > tile - c % tile ? c + tile - c % tile : cols; }

static uint32_t plane_tile(const lq_plane_desc *d) { return d->dtype == LQ_NONE ? 0 : d->tile_c; }

/* Are the tiles of a plane runs of columns that begin alike in every row? */
static bool regular(const lq_plane_desc *d, uint32_t cols) { return d->dtype == LQ_NONE || d->tile_r != LQ_FLAT || (d->tile_c && cols % d->tile_c == 0); }

static bool make_segs(call *a) {
    const lq_scheme *s = &a->q->sch;
    uint32_t cols = a->q->cols, scale = a->whole ? 0 : plane_tile(&s->scale), zero = a->whole || s->zero_kind == LQ_ZERO_NONE ? 0 : plane_tile(&s->zero);
    for (int pass = 0; pass < 2; pass++) {
        a->n_segs = 0;
        for (uint32_t c = 0, end; c < cols; c = end, a->n_segs++) {
            end = next_edge(c, scale, cols);
            if (next_edge(c, zero, cols) < end) end = next_edge(c, zero, cols);
            if (next_edge(c, s->act.tile, cols) < end) end = next_edge(c, s->act.tile, cols);
            if (pass) a->segs[a->n_segs] = (seg){c, end - c};
        }
        if (!pass && !(a->segs = LQ_NEWN(seg, a->n_segs))) return false;
    }
    return true;
}

static void make_bare(call *a) {
    const lq_scheme *s = &a->q->sch;
    a->whole = !regular(&s->scale, a->q->cols) || (s->zero_kind && !regular(&s->zero, a->q->cols)) || (a->q->perm && s->act.tile);
    a->exact = a->whole ? 0 : lq_act_panel(s);
    a->bare = *a->q;
    a->bare.sch.extra &= LQ_X_PERM | LQ_X_LUT_PER_ROW;
    if (a->whole) return;
    a->bare.sch.scale = (lq_plane_desc){0};
    a->bare.sch.zero = (lq_plane_desc){0};
    a->bare.sch.zero_kind = LQ_ZERO_NONE;
    a->bare.sch.extra &= ~(uint32_t)LQ_X_PERM;
    a->bare.perm = NULL;
}

static bool has_outliers(const call *a) { return a->q->sch.act.outlier > 0; }
static bool is_out(const call *a, float x, uint32_t c) { return !a->apart[c] && fabsf(x) >= a->q->sch.act.outlier; }

/* Columns that hold an outlier in any token belong to every token (bitsandbytes). */
static void spread_outliers(call *a, uint8_t *batch) {
    memset(batch, 0, a->q->cols);
    for (uint32_t t = 0; t < a->n; t++)
        for (uint32_t c = 0; c < a->q->cols; c++) batch[c] |= is_out(a, a->seen[(size_t)t * a->q->cols + c], c);
}

static bool list_outliers(call *a, const uint8_t *batch) {
    uint32_t cols = a->q->cols;
    if (!(a->out_at = LQ_NEWN(uint32_t, (size_t)a->n + 1))) return false;
    for (int pass = 0; pass < 2; pass++) {
        uint32_t n = 0;
        for (uint32_t t = 0; t < a->n; t++) {
            a->out_at[t] = n;
            for (uint32_t c = 0; c < cols; c++) {
                if (batch ? !batch[c] : !is_out(a, a->seen[(size_t)t * cols + c], c)) continue;
                if (pass) a->out_col[n] = c;
                n++;
            }
        }
        a->out_at[a->n] = n;
        if (!pass && !(a->out_col = LQ_NEWN(uint32_t, (size_t)n + 1))) return false;
    }
    return true;
}

static uint32_t stored_col(const call *a, uint32_t c) { /* outliers under a permutation are few */
    for (uint32_t i = 0; !a->whole && a->q->perm && i < a->q->cols; i++)
        if (a->q->perm[i] == c) return i;
    return c;
}

static bool list_used(call *a, uint8_t *seen) {
    if (!(a->used = LQ_NEWN(uint32_t, a->q->cols))) return false;
    memset(seen, 0, a->q->cols);
    for (uint32_t i = 0; i < a->out_at[a->n]; i++) {
        if (!seen[a->out_col[i]]) a->used[a->n_used++] = stored_col(a, a->out_col[i]);
        seen[a->out_col[i]] = 1;
    }
    return true;
}

static bool find_outliers(call *a) {
    uint8_t *batch = lq_alloc(a->q->cols);
    if (batch && a->q->sch.act.scope == 1) spread_outliers(a, batch);
    bool ok = batch && list_outliers(a, a->q->sch.act.scope == 1 ? batch : NULL) && (!a->lin->packed || list_used(a, batch));
    lq_free(batch);
    return ok;
}

static void quantize_token(void *arg, size_t t) {
    call *a = arg;
    const lq_qtensor *q = a->q;
    uint32_t cols = q->cols;
    const float *x = a->x + t * cols;
    float *code = a->code + t * cols, *mine = a->bare.perm || !q->perm ? code : lq_work_mine(a->work);
    a->bad[t] = lq_act_quantize(&q->sch.act, q->act_scale, a->apart, a->seen + t * cols, cols, mine, a->step + t * a->tiles);
    for (uint32_t i = has_outliers(a) ? a->out_at[t] : 0; has_outliers(a) && i < a->out_at[t + 1]; i++) mine[a->out_col[i]] = 0;
    for (uint32_t c = 0; mine != code && c < cols; c++) code[c] = mine[q->perm[c]];
    for (uint32_t k = 0; a->low && k < q->sch.rank; k++) a->low[t * q->sch.rank + k] = a->k->dot(a->low_b + (size_t)k * cols, x, cols);
}

/* ---- products ---- */

typedef struct block { /* tokens [t0, t0 + n) times rows [r0, r0 + nr) */
    uint32_t t0, n, r0, nr;
    uint32_t ld;       /* of acc: nr, or whole tiles */
    float *w;          /* [nr][cols]; packed: only the columns that add_outliers reads */
    double *sum, *acc; /* [n][nr] of a segment, [n][ld] of all */
    float *part;       /* [n][nr] */
} block;

/* sum[n][nr] = codes times A over the segment's columns. */
static void inner_sums(const call *a, const block *b, const seg *g) {
    uint32_t cols = a->q->cols, step = a->exact ? a->exact : g->n;
    memset(b->sum, 0, (size_t)b->n * b->nr * sizeof *b->sum);
    for (uint32_t c = g->c0; c < g->c0 + g->n; c += step) {
        uint32_t k = g->c0 + g->n - c < step ? g->c0 + g->n - c : step;
        lq_gemm_nt(a->code + (size_t)b->t0 * cols + c, cols, b->w + c, cols, b->part, b->nr, b->n, b->nr, k, false);
        for (size_t i = 0; i < (size_t)b->n * b->nr; i++) b->sum[i] += (double)b->part[i];
    }
}

static double code_sum(const call *a, uint32_t t, const seg *g) {
    double sum = 0;
    const float *code = a->code + (size_t)t * a->q->cols;
    for (uint32_t c = g->c0; c < g->c0 + g->n; c++) sum += (double)code[c];
    return sum;
}

static void add_segment(const call *a, const block *b, const seg *g) {
    const lq_qtensor *q = a->q;
    const lq_scheme *s = &q->sch;
    double scale[ROWS], zero[ROWS];
    bool has_zero = !a->whole && s->zero_kind != LQ_ZERO_NONE;
    inner_sums(a, b, g);
    for (uint32_t r = 0; r < b->nr; r++) {
        scale[r] = a->whole || s->scale.dtype == LQ_NONE ? 1 : (double)lq_plane_get(&s->scale, &q->scale, lq_plane_index(&s->scale, q->cols, b->r0 + r, g->c0));
        zero[r] = has_zero ? (double)lq_plane_get(&s->zero, &q->zero, lq_plane_index(&s->zero, q->cols, b->r0 + r, g->c0)) : 0;
        if (s->zero_kind == LQ_ZERO_CODE) zero[r] *= scale[r];
    }
    for (uint32_t t = 0; t < b->n; t++) {
        double step = (double)a->step[(size_t)(b->t0 + t) * a->tiles + (s->act.tile ? g->c0 / s->act.tile : 0)];
        double ones = has_zero ? code_sum(a, b->t0 + t, g) : 0, *acc = b->acc + (size_t)t * b->ld;
        const double *sum = b->sum + (size_t)t * b->nr;
        for (uint32_t r = 0; r < b->nr; r++) acc[r] += step * (scale[r] * sum[r] - zero[r] * ones);
    }
}

/* The weight of a code that bare holds as A(code). */
static double weight_of(const call *a, float v, uint32_t r, uint32_t c) {
    const lq_scheme *s = &a->q->sch;
    double scale = 1, zero = 0;
    if (a->whole) return (double)v;
    if (s->scale.dtype != LQ_NONE) scale = (double)lq_plane_get(&s->scale, &a->q->scale, lq_plane_index(&s->scale, a->q->cols, r, c));
    if (s->zero_kind != LQ_ZERO_NONE) zero = (double)lq_plane_get(&s->zero, &a->q->zero, lq_plane_index(&s->zero, a->q->cols, r, c));
    return s->zero_kind == LQ_ZERO_MIN ? scale * (double)v - zero : scale * ((double)v - zero);
}

static void add_outliers(const call *a, const block *b) {
    uint32_t cols = a->q->cols;
    for (uint32_t t = 0; t < b->n; t++)
        for (uint32_t i = a->out_at[b->t0 + t]; i < a->out_at[b->t0 + t + 1]; i++) {
            uint32_t c = stored_col(a, a->out_col[i]);
            double x = (double)a->x[(size_t)(b->t0 + t) * cols + a->out_col[i]], *acc = b->acc + (size_t)t * b->ld;
            for (uint32_t r = 0; r < b->nr; r++) acc[r] += x * weight_of(a, b->w[(size_t)r * cols + c], b->r0 + r, c);
        }
}

static void add_extras(const call *a, const block *b) {
    const lq_qtensor *q = a->q;
    uint32_t extra = q->sch.extra, rank = q->sch.rank;
    for (uint32_t t = 0; t < b->n; t++) {
        const float *x = a->x + (size_t)(b->t0 + t) * q->cols;
        for (uint32_t r = 0; r < b->nr; r++) {
            size_t row = b->r0 + r;
            double sum = 0;
            for (uint32_t i = 0; extra & LQ_X_OUTLIER_COLS && i < q->outlier_cols.n; i++)
                sum += (double)x[q->outlier_cols.idx[i]] * (double)lq_f16_f32(q->outlier_cols.v[row * q->outlier_cols.n + i]);
            bool sparse = extra & LQ_X_OUTLIERS && q->outliers.n;
            for (uint32_t i = sparse ? q->outliers.row[row] : 0; sparse && i < q->outliers.row[row + 1]; i++)
                if (!a->apart[q->outliers.col[i]]) sum += (double)x[q->outliers.col[i]] * (double)lq_f16_f32(q->outliers.v[i]);
            for (uint32_t k = 0; a->low && k < rank; k++) sum += a->low[(size_t)(b->t0 + t) * rank + k] * (double)lq_f16_f32(q->lr.a[row * rank + k]);
            b->acc[(size_t)t * b->ld + r] += sum;
        }
    }
}

static void used_codes(const call *a, const block *b) {
    for (uint32_t i = 0; i < a->n_used; i++)
        for (uint32_t r = 0; r < b->nr; r++)
            b->w[(size_t)r * a->q->cols + a->used[i]] = lq_grid_value(a->q, b->r0 + r, lq_packed_code(a->lin->packed, b->r0 + r, a->used[i]));
}

static void multiply(const call *a, const block *b) {
    if (a->packed) {
        a->k->packed_idot(a->lin->packed, b->r0 / LQ_TILE, b->ld / LQ_TILE, &a->packed[b->t0 / TOKENS], b->acc);
        return;
    }
    memset(b->acc, 0, (size_t)b->n * b->ld * sizeof *b->acc);
    for (const seg *g = a->segs; g < a->segs + a->n_segs; g++) add_segment(a, b, g);
}

static void product_slice(void *arg, size_t i) {
    const call *a = arg;
    double sum[TOKENS * ROWS], acc[TOKENS * ROWS];
    float part[TOKENS * ROWS];
    block b = {.r0 = (uint32_t)i * a->panel, .w = lq_work_mine(a->work), .sum = sum, .acc = acc, .part = part};
    b.nr = a->q->rows - b.r0 < a->panel ? a->q->rows - b.r0 : a->panel;
    b.ld = a->packed ? (b.nr + LQ_TILE - 1) / LQ_TILE * LQ_TILE : b.nr;
    if (a->packed) used_codes(a, &b);
    else a->k->dequant(&a->bare, b.r0, b.nr, b.w);
    for (b.t0 = 0; b.t0 < a->n; b.t0 += TOKENS) {
        b.n = a->n - b.t0 < TOKENS ? a->n - b.t0 : TOKENS;
        multiply(a, &b);
        if (has_outliers(a)) add_outliers(a, &b);
        if (a->q->sch.extra & (LQ_X_OUTLIERS | LQ_X_OUTLIER_COLS | LQ_X_LOWRANK)) add_extras(a, &b);
        for (uint32_t t = 0; t < b.n; t++)
            for (uint32_t r = 0; r < b.nr; r++) a->y[(size_t)(b.t0 + t) * a->q->rows + b.r0 + r] = (float)acc[t * b.ld + r];
    }
}

static void pack_tokens(void *arg, size_t i) {
    const call *a = arg;
    const lq_packed *p = a->lin->packed;
    uint32_t t0 = (uint32_t)i * TOKENS, n = a->n - t0 < TOKENS ? a->n - t0 : TOKENS;
    a->packed[i] = lq_packed_i_make(p, a->code + (size_t)t0 * a->q->cols, a->step + (size_t)t0 * a->tiles, n, a->prepared + i * lq_packed_i_bytes(p, TOKENS));
}

/* bitsandbytes takes codes from the activations' F16; outliers multiply as they are. What F16 cannot hold is an outlier in any case. */
static bool see_half(call *a) {
    size_t n = (size_t)a->n * a->q->cols;
    if (!(a->half = lq_calloc(n, sizeof *a->half))) return false;
    for (size_t i = 0; i < n; i++) {
        float h = lq_f16_f32(lq_f32_f16(a->x[i]));
        a->half[i] = isinf(h) ? a->x[i] : h;
    }
    a->seen = a->half;
    return true;
}

static bool room_for_packed(call *a) {
    size_t blocks = (a->n + TOKENS - 1) / TOKENS, each = lq_packed_i_bytes(a->lin->packed, a->n < TOKENS ? a->n : TOKENS);
    return (a->packed = LQ_NEWN(lq_packed_i, blocks)) && (a->prepared = lq_calloc(blocks, each));
}

static bool prepare(call *a) {
    const lq_qtensor *q = a->q;
    uint32_t rank = q->sch.extra & LQ_X_LOWRANK ? q->sch.rank : 0;
    a->tiles = lq_act_tiles(&q->sch.act, q->cols);
    make_bare(a);
    bool ok = (a->lin->packed ? room_for_packed(a) : make_segs(a)) && (a->code = lq_alloc((size_t)a->n * q->cols * 4)) && (a->step = LQ_NEWN(float, (size_t)a->n * a->tiles)) &&
              (a->apart = LQ_NEWN(uint8_t, q->cols)) && (a->bad = LQ_NEWN(uint32_t, a->n));
    if (!ok) return false;
    for (uint32_t i = 0; q->sch.extra & LQ_X_OUTLIER_COLS && i < q->outlier_cols.n; i++) a->apart[q->outlier_cols.idx[i]] = 1;
    a->seen = a->x;
    if (q->sch.act.scope == 1 && !see_half(a)) return false;
    if (has_outliers(a) && !find_outliers(a)) return false;
    if (!rank) return true;
    if (!(a->low = LQ_NEWN(double, (size_t)a->n * rank)) || !(a->low_b = LQ_NEWN(float, (size_t)rank * q->cols))) return false;
    for (size_t i = 0; i < (size_t)rank * q->cols; i++) a->low_b[i] = a->apart[i % q->cols] ? 0 : lq_f16_f32(q->lr.b[i]); /* kept columns are the whole weight */
    return true;
}

static void finish(call *a) {
    lq_free(a->half);
    lq_free(a->code);
    lq_free(a->step);
    lq_free(a->apart);
    lq_free(a->bad);
    lq_free(a->segs);
    lq_free(a->packed);
    lq_free(a->prepared);
    lq_free(a->used);
    lq_free(a->out_at);
    lq_free(a->out_col);
    lq_free(a->low);
    lq_free(a->low_b);
}

void lq_act_run(const lq_kernels *k, const lq_work *w, const lq_linear *lin, uint32_t panel, const float *x, uint32_t n, float *y) {
    call a = {.k = k, .work = w, .lin = lin, .q = lin->q, .x = x, .y = y, .n = n, .panel = panel < ROWS ? panel : ROWS};
    uint64_t work = (uint64_t)lin->rows * lin->cols;
    lq_fault *fault = w->fault + lq_worker();
    if (!prepare(&a)) {
        if (!fault->st) *fault = (lq_fault){LQ_ERR_RESOURCE, lin->row ? lin->row->name : NULL, 0};
        memset(y, 0, (size_t)n * lin->rows * sizeof *y);
    } else {
        lq_spread(n, (uint64_t)n * lin->cols, quantize_token, &a);
        for (uint32_t t = 0; t < n && !fault->st; t++)
            if (a.bad[t] < lin->cols) *fault = (lq_fault){LQ_ERR_QUALITY, lin->row ? lin->row->name : NULL, a.bad[t]};
        if (fault->st) memset(y, 0, (size_t)n * lin->rows * sizeof *y);
        else {
            if (a.packed) lq_spread((n + TOKENS - 1) / TOKENS, (uint64_t)n * lin->cols, pack_tokens, &a);
            lq_spread((lin->rows + a.panel - 1) / a.panel, work * n, product_slice, &a);
        }
    }
    finish(&a);
}
