/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GPTQ's loop in LDLQ form. With H = R R^T and E = W - Q, tr(E H E^T) = |E R|^2, and column j of E R is
 *
 *   (E R)_j = R_jj (a_j - q_j),   a_j = w_j + sum over i < j of E_i R_ij / R_jj
 *
 * so rounding a_j is the greedy choice. W is never modified and the updates to a block of columns are one product with the
 * errors of all earlier ones. Same codes as Frantar et al. 2022 in exact arithmetic. Source: algorithms.md 5.2, 26 F.
 *
 * A task is a slice of LQ_PROXY_ROWS rows: its errors, both losses and the choice between GPTQ and plain rounding stay
 * inside it, so memory does not grow with the number of rows. */
#include "quant/gptq_solve.h"

#include "core/pack.h"
#include "core/thread.h"
#include "quant/grid.h"
#include "quant/proxy.h"

#include <string.h>

enum { ROWS = LQ_PROXY_ROWS, LANES = LQ_LANES, MAX_BLOCK = 256 };

typedef struct scratch {      /* of one worker */
    float *w;                 /* [ROWS][k] processing order */
    float *e;                 /* [ROWS][k] errors, processing order */
    float *column, *product;  /* [ROWS][k] column order */
    float *scale, *zero;      /* [tiles][ROWS] */
    float *a;                 /* [ROWS][block] what is rounded */
    float *feed;              /* [block][block] transposed: feed[j][i] of the block */
    lq_rounder *round;        /* [ROWS / LANES]: tables per row */
    uint16_t *codes;          /* [ROWS][k] column order */
    void *mem;
} scratch;

typedef struct slice_sums {
    double rtn, gptq, w, damped;
    uint32_t guarded;
} slice_sums;

typedef struct solve_job {
    const lq_gptq_factor *f;
    const float *w;
    uint32_t block, group, tiles; /* columns per tile; tiles a row may touch */
    bool straddle;      /* a tile may end inside a row: rows are cut at different columns */
    bool guard;
    lq_qtensor *q;
    scratch *scratch;   /* [workers] */
    slice_sums *sums;   /* [slices] */
} solve_job;

typedef struct slice {
    const solve_job *j;
    scratch *s;
    uint32_t r0, nr;
    double loss[ROWS];
} slice;

/* Scale and zero of the t-th tile that row r touches. */
static void load_tile(slice *l, uint32_t t, uint32_t r) {
    const solve_job *j = l->j;
    const lq_qtensor *q = j->q;
    const lq_scheme *s = &q->sch;
    size_t row = l->r0 + r, first = row * q->cols, at = j->straddle ? first / j->group + t : 0;
    bool in = r < l->nr && (!j->straddle || at * j->group < first + q->cols);
    if (in && !j->straddle && s->scale.dtype != LQ_NONE) at = lq_plane_index(&s->scale, q->cols, (uint32_t)row, t * j->group);
    l->s->scale[t * ROWS + r] = in && s->scale.dtype != LQ_NONE ? lq_plane_get(&s->scale, &q->scale, at) : 1;
    l->s->zero[t * ROWS + r] = in && s->zero_kind != LQ_ZERO_NONE ? lq_plane_get(&s->zero, &q->zero, at) : 0;
}

static void load(slice *l) {
    const solve_job *j = l->j;
    const lq_qtensor *q = j->q;
    size_t k = q->cols;
    memset(l->s->w, 0, ROWS * k * sizeof(float));
    for (uint32_t r = 0; r < l->nr; r++)
        for (size_t i = 0; i < k; i++) l->s->w[r * k + i] = j->w[(l->r0 + r) * k + j->f->perm[i]];
    for (uint32_t t = 0; t < j->tiles; t++)
        for (uint32_t r = 0; r < ROWS; r++) load_tile(l, t, r);
    for (uint32_t i = 0; i < ROWS / LANES; i++)
        if (i == 0 || q->n_lut > 1) lq_rounder_init(&l->s->round[i], q, l->r0 + i * LANES, 1);
        else l->s->round[i] = l->s->round[0];
}

/* Tile of a column, counted from the row's first; index into scale and zero. */
static size_t tile_of(const solve_job *j, uint32_t row, uint32_t col) {
    if (!j->straddle) return col / j->group;
    size_t first = (size_t)row * j->q->cols;
    return (first + col) / j->group - first / j->group;
}

/* Scales and zeros of a column for LANES rows from r: where they lie, or gathered into at. */
static void planes_at(const slice *l, uint32_t col, uint32_t r, const float **scale, const float **zero, float at[2][LANES]) {
    size_t i = tile_of(l->j, l->r0 + r, col) * ROWS + r;
    *scale = l->s->scale + i;
    *zero = l->s->zero + i;
    if (!l->j->straddle) return;
    for (uint32_t x = 0; x < LANES; x++) {
        i = tile_of(l->j, l->r0 + r + x, col) * ROWS + r + x;
        at[0][x] = l->s->scale[i];
        at[1][x] = l->s->zero[i];
    }
    *scale = at[0];
    *zero = at[1];
}

/* Columns [b0, b0 + n) of LANES rows from r: rounds them one by one, feeding each error to the rest of the block. */
static void run_lanes(slice *l, uint32_t b0, uint32_t n, uint32_t r) {
    const solve_job *j = l->j;
    size_t k = j->q->cols;
    float e[MAX_BLOCK][LANES];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t col = j->f->perm[b0 + i], code[LANES];
        const float *feed = l->s->feed + (size_t)i * j->block, *scale, *zero;
        float a[LANES], value[LANES], at[2][LANES];
        for (int x = 0; x < LANES; x++) a[x] = l->s->a[(r + (uint32_t)x) * j->block + i];
        for (uint32_t p = 0; p < i; p++)
            for (int x = 0; x < LANES; x++) a[x] += e[p][x] * feed[p];
        planes_at(l, col, r, &scale, &zero, at);
        lq_round_lanes(&l->s->round[r / LANES], a, scale, zero, code, value);
        for (int x = 0; x < LANES; x++) {
            size_t row = r + (uint32_t)x;
            double miss = ((double)a[x] - (double)value[x]) * j->f->pivot[b0 + i];
            e[i][x] = l->s->w[row * k + b0 + i] - value[x];
            l->s->e[row * k + b0 + i] = e[i][x];
            l->s->codes[row * k + col] = (uint16_t)code[x];
            l->loss[row] += miss * miss;
        }
    }
}

static void feed_back(slice *l) {
    const solve_job *j = l->j;
    uint32_t k = j->q->cols;
    for (uint32_t b0 = 0; b0 < k; b0 += j->block) {
        uint32_t n = k - b0 < j->block ? k - b0 : j->block;
        for (uint32_t r = 0; r < ROWS; r++) memcpy(l->s->a + (size_t)r * j->block, l->s->w + (size_t)r * k + b0, n * sizeof(float));
        lq_gemm_nn(l->s->e, k, j->f->feed + b0, k, l->s->a, j->block, ROWS, n, b0, 1, true);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t p = 0; p < i; p++) l->s->feed[(size_t)i * j->block + p] = j->f->feed[(size_t)(b0 + p) * k + b0 + i];
        for (uint32_t r = 0; r < l->nr; r += LANES) run_lanes(l, b0, n, r);
    }
}

/* Errors of plain rounding in column order; codes: NULL, or where to put the codes, [LANES][k]. LANES rows from r. */
static void round_plain(slice *l, uint32_t r, float *e, uint16_t *codes) {
    const solve_job *j = l->j;
    size_t k = j->q->cols, rows = l->nr - r < LANES ? l->nr - r : LANES;
    const float *w = j->w + (l->r0 + r) * k, *scale, *zero;
    for (uint32_t c = 0; c < k; c++) {
        float x[LANES] = {0}, value[LANES], at[2][LANES];
        uint32_t code[LANES];
        for (size_t i = 0; i < rows; i++) x[i] = w[i * k + c];
        planes_at(l, c, r, &scale, &zero, at);
        lq_round_lanes(&l->s->round[r / LANES], x, scale, zero, code, value);
        for (size_t i = 0; i < rows; i++) {
            if (codes) codes[i * k + c] = (uint16_t)code[i];
            else e[i * k + c] = x[i] - value[i];
        }
    }
}

static void measure(slice *l, double *rtn, double *gptq, double *w) {
    const solve_job *j = l->j;
    size_t k = j->q->cols;
    float *c = l->s->column, *g = l->s->product;
    memset(c, 0, ROWS * k * sizeof *c);
    memcpy(c, j->w + l->r0 * k, l->nr * k * sizeof *c);
    lq_proxy_rows(j->f->h, j->q->cols, c, g, w);
    for (uint32_t r = 0; r < l->nr; r += LANES) round_plain(l, r, c + r * k, NULL);
    lq_proxy_rows(j->f->h, j->q->cols, c, g, rtn);
    for (uint32_t r = 0; r < l->nr; r++)
        for (size_t i = 0; i < k; i++) c[r * k + j->f->perm[i]] = l->s->e[r * k + i];
    lq_proxy_rows(j->f->h, j->q->cols, c, g, gptq);
}

/* The codes of plain rounding for the rows where it lost less. */
static void keep_better(slice *l, const double *rtn, double *gptq, slice_sums *sum) {
    size_t k = l->j->q->cols;
    uint16_t *plain = (uint16_t *)(void *)l->s->product; /* [LANES][k] */
    for (uint32_t r0 = 0; r0 < l->nr; r0 += LANES) {
        bool have = false;
        for (uint32_t r = r0; r < l->nr && r < r0 + LANES; r++) {
            if (gptq[r] <= rtn[r]) continue;
            if (!have) round_plain(l, r0, NULL, plain);
            have = true;
            memcpy(l->s->codes + r * k, plain + (r - r0) * k, k * sizeof *plain);
            gptq[r] = rtn[r];
            sum->guarded++;
        }
    }
}

static void solve_slice(void *arg, size_t index) {
    const solve_job *j = arg;
    lq_qtensor *q = j->q;
    slice l = {.j = j, .s = j->scratch + lq_worker(), .r0 = (uint32_t)index * ROWS};
    slice_sums sum = {0};
    double rtn[ROWS], gptq[ROWS], w[ROWS];
    l.nr = q->rows - l.r0 < ROWS ? q->rows - l.r0 : ROWS;
    load(&l);
    feed_back(&l);
    measure(&l, rtn, gptq, w);
    if (j->guard) keep_better(&l, rtn, gptq, &sum);
    for (uint32_t r = 0; r < l.nr; r++) {
        const uint16_t *codes = l.s->codes + (size_t)r * q->cols;
        lq_codes_pack(q->codes + (l.r0 + r) * q->row_bytes, q->sch.grid.bits, q->cols, codes);
        sum.rtn += rtn[r];
        sum.gptq += gptq[r];
        sum.w += w[r];
        sum.damped += l.loss[r];
    }
    j->sums[index] = sum;
}

static bool scratch_init(scratch *s, size_t k, size_t tiles, size_t block) {
    size_t floats = 4 * ROWS * k + 2 * tiles * ROWS + ROWS * block + block * block, rounders = ROWS / LANES * sizeof(lq_rounder);
    float *f = s->mem = lq_calloc(floats * sizeof(float) + rounders + ROWS * k * sizeof(uint16_t), 1);
    if (!f) return false;
    s->w = f;
    s->e = f += ROWS * k;
    s->column = f += ROWS * k;
    s->product = f += ROWS * k;
    s->scale = f += ROWS * k;
    s->zero = f += tiles * ROWS;
    s->a = f += tiles * ROWS;
    s->feed = f += ROWS * block;
    s->round = (lq_rounder *)(void *)(f + block * block);
    s->codes = (uint16_t *)(void *)(s->round + ROWS / LANES);
    return true;
}

lq_status lq_gptq_solve(lq_ctx *ctx, const lq_gptq_factor *f, const float *w, uint32_t block, bool guard, lq_qtensor *q, lq_gptq_sums *sums) {
    size_t slices = (q->rows + ROWS - 1) / ROWS, workers = (size_t)lq_threads();
    solve_job j = {.f = f, .w = w, .guard = guard, .q = q};
    j.block = block < 1 ? 1 : block > MAX_BLOCK ? MAX_BLOCK : block;
    j.group = q->sch.scale.tile_c && q->sch.scale.dtype != LQ_NONE ? q->sch.scale.tile_c : q->cols;
    j.straddle = q->sch.scale.tile_r == LQ_FLAT && q->cols % j.group;
    j.tiles = (q->cols + j.group - 1) / j.group + j.straddle;
    j.sums = lq_calloc(slices, sizeof *j.sums);
    j.scratch = lq_calloc(workers, sizeof *j.scratch);
    bool ok = j.sums && j.scratch;
    for (size_t i = 0; ok && i < workers; i++) ok = scratch_init(&j.scratch[i], q->cols, j.tiles, j.block);
    lq_status st = ok ? LQ_OK : lq_oom(ctx, (size_t)4 * ROWS * q->cols * sizeof(float) * workers);
    *sums = (lq_gptq_sums){0};
    if (!st) lq_parallel_for(slices, solve_slice, &j);
    for (size_t i = 0; !st && i < slices; i++) {
        sums->rtn += j.sums[i].rtn;
        sums->gptq += j.sums[i].gptq;
        sums->w += j.sums[i].w;
        sums->damped += j.sums[i].damped;
        sums->guarded += j.sums[i].guarded;
    }
    for (size_t i = 0; j.scratch && i < workers; i++) lq_free(j.scratch[i].mem);
    lq_free(j.scratch);
    lq_free(j.sums);
    return st;
}
