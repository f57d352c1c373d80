/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* SparseGPT (Frantar, Alistarh 2023, arXiv 2301.00774) in the form of gptq_solve.c: with H = R R^T and E = W - Q,
 *
 *   a_j = w_j + sum over i < j of E_i R_ij / R_jj,   q_j = 0 where masked, else Q(a_j)
 *
 * A weight's price is (a_j R_jj)^2, what the loss grows by when it becomes 0 now. Unstructured: the cheapest of a block of BLOCK
 * columns, so many that every row keeps its exact share (the paper compares all rows of a block at once; here rows stay
 * independent); n:m: the cheapest of each group when the loop reaches it. Columns go in their order. */
#include "quant/prune.h"

#include "core/thread.h"
#include "kernels/kernels.h"
#include "quant/grid.h"
#include "quant/proxy.h"
#include "quant/select.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 128, ROWS = LQ_PROXY_ROWS };

const lq_opt lq_prune_options[] = {
    {"sparsity", NULL, LQ_OPT_REAL, offsetof(lq_prune, sparsity), "SHARE", "0.5", NULL, 0, 0.999, 0, "weights of every row that become 0"},
    {"pattern", NULL, LQ_OPT_CHOICE, offsetof(lq_prune, pattern), NULL, "none", LQ_PRUNE_PATTERNS, 0, 0, 0, "2:4, 4:8: half of every group instead (2of4, 4of8 in recipes)"},
    {0}};

uint32_t lq_prune_group(const lq_prune *p) { return p->pattern == 0 ? 0 : p->pattern & 1 ? 4 : 8; }

uint32_t lq_prune_count(const lq_prune *p, uint32_t cols) { return (uint32_t)(p->sparsity * cols + 1e-9); }

lq_status lq_prune_accept(lq_ctx *ctx, const lq_prune *p, uint32_t cols, const lq_scheme *s) {
    char name[64];
    uint32_t m = lq_prune_group(p);
    bool zero = s->zero_kind == LQ_ZERO_NONE || (s->zero_kind == LQ_ZERO_CODE && s->zero.dtype == LQ_U8);
    if (s->grid.kind == LQ_GRID_INT && (s->grid.bias < 0 || s->grid.bias >= 1 << s->grid.bits)) zero = false;
    if (s->grid.kind == LQ_GRID_LUT && (s->grid.bias == LQ_LUT_DATA || s->grid.bias == LQ_LUT_SIGN || s->grid.bias == LQ_LUT_IQ4)) zero = false;
    if (!zero || s->extra) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "scheme %s: pruned weights must be 0 exactly; symmetric integers, integer zeros and floats can", lq_scheme_name(s, name, sizeof name));
    if (m && cols % m) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%u columns are no groups of %u; use --pattern none", cols, m);
    return lq_grid_accept(ctx, s, cols);
}

void lq_prune_mask(const lq_prune *p, const float *score, uint32_t n, uint32_t count, uint8_t *mask) {
    uint32_t m = lq_prune_group(p);
    memset(mask, 0, n);
    if (!m) lq_select(score, n, count, false, 1, mask);
    for (uint32_t c = 0; m && c + m <= n; c += m)
        for (uint32_t k = 0; k < m / 2; k++) { /* a handful: the smallest again and again */
            uint32_t best = m;
            for (uint32_t i = 0; i < m; i++)
                if (!mask[c + i] && (best == m || score[c + i] < score[c + best])) best = i;
            mask[c + best] = 1;
        }
}

/* ---- Wanda ---- */

typedef struct wanda_job { const lq_prune *p; const lq_weights *w; const float *norm; float *out, *score; uint8_t *mask; } wanda_job;

static void wanda_row(void *arg, size_t r) {
    const wanda_job *j = arg;
    uint32_t cols = j->w->cols;
    float *score = j->score + cols * (size_t)lq_worker();
    uint8_t *mask = j->mask + cols * (size_t)lq_worker();
    const float *w = j->w->w + r * cols;
    for (uint32_t c = 0; c < cols; c++) score[c] = fabsf(w[c]) * j->norm[c];
    lq_prune_mask(j->p, score, cols, lq_prune_count(j->p, cols), mask);
    for (uint32_t c = 0; c < cols; c++) j->out[r * cols + c] = mask[c] ? 0 : w[c];
}

lq_status lq_prune_wanda(lq_ctx *ctx, const lq_prune *p, const lq_weights *w, const lq_stats *stats, lq_qtensor *q) {
    size_t cols = w->cols, workers = (size_t)lq_threads();
    float *norm = lq_calloc(2 * cols, sizeof *norm);
    wanda_job j = {p, w, norm, lq_calloc(w->rows * cols, sizeof(float)), lq_calloc(workers * cols, sizeof(float)), lq_alloc(workers * cols)};
    lq_status st = norm && j.out && j.score && j.mask ? LQ_OK : lq_oom(ctx, w->rows * cols * sizeof(float));
    double mean = 0;
    for (uint32_t c = 0; !st && stats && c < cols; c++) mean += lq_gram_at(&stats->gram, c, c) / (double)cols;
    for (uint32_t c = 0; !st && c < cols; c++) { /* the second half: what the fit of scales weighs errors with */
        double h = stats && mean > 0 ? lq_gram_at(&stats->gram, c, c) / mean : 1;
        norm[c] = (float)sqrt(h);
        norm[cols + c] = (float)(h + 0.01);
    }
    if (!st) lq_parallel_for(w->rows, wanda_row, &j);
    if (!st && q->sch.scale.dtype != LQ_NONE) st = lq_grid_fit(ctx, q, j.out, norm + cols, LQ_FIT_SEARCH_SIGNED);
    if (!st) lq_grid_round(q, j.out);
    lq_free(j.mask);
    lq_free(j.score);
    lq_free(j.out);
    lq_free(norm);
    return st;
}

/* ---- SparseGPT ---- */

typedef struct scratch {   /* of one worker */
    float *w, *e, *product;  /* [ROWS][k] */
    float *block;          /* [ROWS][BLOCK] */
    float *a;              /* [BLOCK][ROWS] */
    uint8_t *mask;         /* [BLOCK][ROWS] */
    void *mem;
} scratch;

typedef struct slice_sums { double wanda, loop, w; uint32_t guarded; } slice_sums;

typedef struct prune_job {
    const lq_prune *p;
    const lq_gptq_factor *f;
    const float *w;
    float *out;            /* [rows][k] the weights chosen */
    lq_qtensor *q;
    scratch *scratch;
    slice_sums *sums;
} prune_job;

typedef struct slice { const prune_job *j; scratch *s; uint32_t r0, nr; } slice;

static void mask_rows(slice *l, uint32_t b0, uint32_t i0, uint32_t n, uint32_t count) {
    float score[BLOCK];
    uint8_t mask[BLOCK];
    for (uint32_t r = 0; r < l->nr; r++) {
        for (uint32_t i = 0; i < n; i++) {
            double v = (double)l->s->a[(i0 + i) * ROWS + r] * l->j->f->pivot[b0 + i0 + i];
            score[i] = (float)fmin(v * v, 3e38);
        }
        lq_prune_mask(l->j->p, score, n, count, mask);
        for (uint32_t i = 0; i < n; i++) l->s->mask[(i0 + i) * ROWS + r] = mask[i];
    }
}

static void round_column(slice *l, uint32_t col, const float *a, const uint8_t *mask, float *v) {
    const lq_qtensor *q = l->j->q;
    const lq_scheme *s = &q->sch;
    for (uint32_t r = 0; r < l->nr; r += LQ_LANES) {
        lq_rounder round;
        float scale[LQ_LANES], zero[LQ_LANES] = {0};
        uint32_t code[LQ_LANES];
        lq_rounder_init(&round, q, l->r0 + r, 1);
        for (uint32_t x = 0; x < LQ_LANES; x++) {
            uint32_t row = l->r0 + r + x < q->rows ? l->r0 + r + x : q->rows - 1;
            scale[x] = s->scale.dtype == LQ_NONE ? 1 : lq_plane_get(&s->scale, &q->scale, lq_plane_index(&s->scale, q->cols, row, col));
            if (s->zero_kind != LQ_ZERO_NONE) zero[x] = lq_plane_get(&s->zero, &q->zero, lq_plane_index(&s->zero, q->cols, row, col));
        }
        lq_round_lanes(&round, a + r, scale, zero, code, v + r);
        for (uint32_t x = 0; x < LQ_LANES; x++)
            if (mask[r + x]) v[r + x] = 0;
    }
}

static void run_block(slice *l, uint32_t b0, uint32_t n) {
    const prune_job *j = l->j;
    uint32_t k = j->q->cols, m = lq_prune_group(j->p);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t r = 0; r < ROWS; r++) l->s->a[i * ROWS + r] = l->s->block[r * BLOCK + i];
    if (!m) mask_rows(l, b0, 0, n, lq_prune_count(j->p, b0 + n) - lq_prune_count(j->p, b0));
    for (uint32_t i = 0; i < n; i++) {
        float v[ROWS] = {0}, e[ROWS];
        if (m && i % m == 0) mask_rows(l, b0, i, m, 0);
        round_column(l, b0 + i, l->s->a + i * ROWS, l->s->mask + i * ROWS, v);
        for (uint32_t r = 0; r < ROWS; r++) e[r] = l->s->e[(size_t)r * k + b0 + i] = l->s->w[(size_t)r * k + b0 + i] - v[r];
        for (uint32_t c = i + 1; c < n; c++) {
            float feed = j->f->feed[(size_t)(b0 + i) * k + b0 + c], *a = l->s->a + c * ROWS;
            for (uint32_t r = 0; r < ROWS; r++) a[r] += e[r] * feed;
        }
    }
}

static void prune_slice(void *arg, size_t index) {
    const prune_job *j = arg;
    lq_qtensor *q = j->q;
    size_t k = q->cols;
    slice l = {.j = j, .s = j->scratch + lq_worker(), .r0 = (uint32_t)index * ROWS};
    double wanda[ROWS], loop[ROWS], all[ROWS];
    slice_sums sum = {0};
    l.nr = q->rows - l.r0 < ROWS ? q->rows - l.r0 : ROWS;
    memset(l.s->w, 0, ROWS * k * sizeof(float));
    memcpy(l.s->w, j->w + l.r0 * k, l.nr * k * sizeof(float));
    for (uint32_t b0 = 0; b0 < k; b0 += BLOCK) {
        uint32_t n = (uint32_t)k - b0 < BLOCK ? (uint32_t)k - b0 : BLOCK;
        for (uint32_t r = 0; r < ROWS; r++) memcpy(l.s->block + (size_t)r * BLOCK, l.s->w + r * k + b0, n * sizeof(float));
        lq_gemm_nn(l.s->e, k, j->f->feed + b0, k, l.s->block, BLOCK, ROWS, n, b0, 1, true);
        run_block(&l, b0, n);
    }
    lq_proxy_rows(j->f->h, q->cols, l.s->w, l.s->product, all);
    lq_proxy_rows(j->f->h, q->cols, l.s->e, l.s->product, loop);
    float *out = j->out + l.r0 * k;
    for (size_t i = 0; i < l.nr * k; i++) out[i] = l.s->w[i] - l.s->e[i];
    memset(l.s->e, 0, ROWS * k * sizeof(float));
    lq_kernels_best()->dequant(q, l.r0, l.nr, l.s->e);
    for (size_t i = 0; i < l.nr * k; i++) l.s->e[i] = l.s->w[i] - l.s->e[i];
    lq_proxy_rows(j->f->h, q->cols, l.s->e, l.s->product, wanda);
    for (uint32_t r = 0; r < l.nr; r++) {
        bool keep = !(loop[r] <= wanda[r]);
        if (keep) lq_kernels_best()->dequant(q, l.r0 + r, 1, out + r * k);
        sum.guarded += keep;
        sum.loop += keep ? wanda[r] : loop[r];
        sum.wanda += wanda[r];
        sum.w += all[r];
    }
    j->sums[index] = sum;
}

static bool scratch_init(scratch *s, size_t k) {
    float *f = s->mem = lq_calloc((3 * ROWS * k + 2 * ROWS * BLOCK) * sizeof(float) + ROWS * BLOCK, 1);
    if (!f) return false;
    s->w = f;
    s->e = f += ROWS * k;
    s->product = f += ROWS * k;
    s->block = f += ROWS * k;
    s->a = f += ROWS * BLOCK;
    s->mask = (uint8_t *)(f + ROWS * BLOCK);
    return true;
}

lq_status lq_prune_sparsegpt(lq_ctx *ctx, const lq_prune *p, const lq_gptq_factor *f, const float *w, lq_qtensor *q, lq_gptq_sums *sums) {
    size_t slices = (q->rows + ROWS - 1) / ROWS, workers = (size_t)lq_threads(), n = (size_t)q->rows * q->cols;
    prune_job j = {p, f, w, lq_calloc(n, sizeof(float)), q, LQ_NEWN(scratch, workers), LQ_NEWN(slice_sums, slices)};
    bool ok = j.out && j.scratch && j.sums;
    for (size_t i = 0; ok && i < workers; i++) ok = scratch_init(&j.scratch[i], q->cols);
    lq_status st = ok ? LQ_OK : lq_oom(ctx, n * sizeof(float));
    *sums = (lq_gptq_sums){0};
    if (!st) lq_parallel_for(slices, prune_slice, &j);
    if (!st) lq_grid_round(q, j.out);
    for (size_t i = 0; !st && i < slices; i++) {
        sums->rtn += j.sums[i].wanda;
        sums->gptq += j.sums[i].loop;
        sums->w += j.sums[i].w;
        sums->guarded += j.sums[i].guarded;
    }
    for (size_t i = 0; j.scratch && i < workers; i++) lq_free(j.scratch[i].mem);
    lq_free(j.sums);
    lq_free(j.scratch);
    lq_free(j.out);
    return st;
}

/* ---- what it saves ---- */

lq_status lq_prune_report(lq_ctx *ctx, const lq_prune *p, const lq_qtensor *q, lq_outcome *o) {
    float *row = lq_calloc(q->cols, sizeof *row);
    if (!row) return lq_oom(ctx, q->cols * sizeof *row);
    uint64_t zeros = 0, n = (uint64_t)q->rows * q->cols;
    for (uint32_t r = 0; r < q->rows; r++) {
        lq_kernels_best()->dequant(q, r, 1, row);
        for (uint32_t c = 0; c < q->cols; c++) zeros += row[c] == 0;
    }
    lq_free(row);
    uint64_t codes = (uint64_t)q->rows * (((uint64_t)q->cols * q->sch.grid.bits + 7) / 8), planes = lq_qtensor_bytes(q) - codes;
    uint64_t left = lq_prune_group(p) ? n / 2 : n - zeros, marks = lq_prune_group(p) == 4 ? n / 2 * 2 : n;
    o->zeros = (double)zeros / (double)n;
    o->bytes_packed = planes + (left * q->sch.grid.bits + marks + 7) / 8;
    return LQ_OK;
}
