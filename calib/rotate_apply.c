/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The products of a rotation: rows and columns of one tensor, in fp64, on fixed slices. */
#include "calib/rotate.h"
#include "core/num.h"
#include "core/thread.h"

#include <string.h>

enum { ROWS = 32, COLS = 8 };

typedef struct job {
    const lq_rotation *r;
    const lq_params *par;
    lq_turn turn;
    const float *gain;          /* [cols] or NULL */
    const float *balance;       /* [kv heads x head_dim] or NULL: the value heads are divided by it */
    uint32_t rows, cols;
    float *w;                   /* [rows][cols] */
    double *wide;               /* [rows][cols] when columns are turned too; else NULL */
    double *scratch;            /* per worker: per */
    size_t per;
} job;

static void by_head(const lq_orthogonal *q, double *v, uint32_t n, double *scratch) {
    for (uint32_t at = 0; at + q->n <= n; at += q->n) lq_orthogonal_apply(q, v + at, scratch);
}

/* The inputs of a row of weights. */
static void turn_inputs(const job *j, double *v, double *scratch) {
    if (j->gain)
        for (uint32_t c = 0; c < j->cols; c++) v[c] *= j->gain[c];
    if (j->turn.in_stream) lq_orthogonal_apply(&j->r->stream, v, scratch);
    if (j->turn.in_heads) by_head(&j->r->heads, v, j->cols, scratch);
}

static void row_slice(void *arg, size_t i) {
    const job *j = arg;
    uint32_t r0 = (uint32_t)i * ROWS, r1 = j->rows - r0 < ROWS ? j->rows : r0 + ROWS;
    double *mine = j->scratch + j->per * (size_t)lq_worker();
    for (uint32_t r = r0; r < r1; r++) {
        float *w = j->w + (size_t)r * j->cols;
        double *v = j->wide ? j->wide + (size_t)r * j->cols : mine;
        for (uint32_t c = 0; c < j->cols; c++) v[c] = w[c];
        turn_inputs(j, v, mine + j->cols);
        for (uint32_t c = 0; !j->wide && c < j->cols; c++) w[c] = (float)v[c];
    }
}

/* The value heads among the outputs. */
static void turn_values(const job *j, double *v, double *scratch) {
    const lq_orthogonal *q = &j->r->heads;
    uint32_t n = j->turn.split == LQ_OP_LINEAR ? j->rows : lq_part_rows(j->par, LQ_R_V);
    for (uint32_t at = 0; at + q->n <= n; at += q->n) {
        double *head = v + lq_split_row(j->par, j->turn.split, LQ_R_V, at);
        for (uint32_t c = 0; c < q->n; c++) head[c] /= (double)j->balance[at + c];
        lq_orthogonal_apply(q, head, scratch);
    }
}

static void column_slice(void *arg, size_t i) {
    const job *j = arg;
    uint32_t c0 = (uint32_t)i * COLS, n = j->cols - c0 < COLS ? j->cols - c0 : COLS;
    double *v = j->scratch + j->per * (size_t)lq_worker(), *scratch = v + (size_t)COLS * j->rows;
    for (uint32_t r = 0; r < j->rows; r++)
        for (uint32_t c = 0; c < n; c++) v[(size_t)c * j->rows + r] = j->wide[(size_t)r * j->cols + c0 + c];
    for (uint32_t c = 0; c < n; c++) {
        if (j->turn.out_stream) lq_orthogonal_apply(&j->r->stream, v + (size_t)c * j->rows, scratch);
        if (j->turn.out_heads) turn_values(j, v + (size_t)c * j->rows, scratch);
    }
    for (uint32_t r = 0; r < j->rows; r++)
        for (uint32_t c = 0; c < n; c++) j->w[(size_t)r * j->cols + c0 + c] = (float)v[(size_t)c * j->rows + r];
}

static const lq_row *turned_row(const lq_model *m, int32_t block, bool inputs) {
    for (size_t i = 0; i < m->cat.n; i++) {
        const lq_row *row = &m->cat.rows[i];
        if (row->slot.block != block || row->part != LQ_PART_WEIGHT || !row->linear) continue;
        lq_turn t = lq_rotation_turn(m, row);
        if (inputs ? t.in_heads : t.out_heads) return row;
    }
    return NULL;
}

static lq_status read_gain(lq_ctx *ctx, lq_model *m, const lq_row *row, lq_turn t, float **out);

/* s[c] = sqrt(|v_c| / |o_c|) of every value channel, v_c its row with the norm's gain, o_c the columns that read it: v_c / s and s o_c
 * compute the same. A rotation gives all channels of a head the same step, on both sides, and by Cauchy and Schwarz the product
 * of the two mean squares is least where v_c and o_c are alike. */
static lq_status read_balance(lq_ctx *ctx, lq_model *m, int32_t block, float **out) {
    const lq_row *v = turned_row(m, block, false), *o = turned_row(m, block, true);
    uint32_t n = lq_part_rows(&m->par, LQ_R_V), d = m->par.head_dim, per = m->par.n_heads / m->par.n_kv_heads;
    lq_turn t = v ? lq_rotation_turn(m, v) : (lq_turn){0};
    float *gain = NULL, *wv = v ? lq_calloc(lq_row_elems(v), sizeof *wv) : NULL, *wo = o ? lq_calloc(lq_row_elems(o), sizeof *wo) : NULL;
    float *s = *out = LQ_NEWN(float, n);
    lq_status st = s && wv && wo ? read_gain(ctx, m, v, t, &gain) : lq_oom(ctx, n * sizeof *s);
    if (!st) st = lq_model_read_raw(ctx, m, v, wv);
    if (!st) st = lq_model_read_raw(ctx, m, o, wo);
    for (uint32_t i = 0; i < n && !st; i++) {
        const float *row = wv + (size_t)lq_split_row(&m->par, t.split, LQ_R_V, i) * lq_row_cols(v);
        double vv = 0, oo = 0;
        for (uint32_t c = 0; c < lq_row_cols(v); c++) vv += (double)row[c] * row[c] * (gain ? (double)gain[c] * gain[c] : 1);
        for (uint32_t r = 0; r < lq_row_rows(o); r++)
            for (uint32_t q = 0; q < per; q++) {
                double x = (double)wo[(size_t)r * lq_row_cols(o) + ((size_t)(i / d) * per + q) * d + i % d];
                oo += x * x;
            }
        s[i] = vv > 0 && oo > 0 ? (float)sqrt(sqrt(vv * per / oo)) : 1;
        if (!(s[i] > 1e-15f && s[i] < 1e15f)) s[i] = 1;
    }
    lq_free(gain);
    lq_free(wv);
    lq_free(wo);
    return st;
}

/* The columns of what reads the heads: every query head of a value head alike. */
static lq_status read_head_gain(lq_ctx *ctx, lq_model *m, const lq_row *row, float **out) {
    uint32_t d = m->par.head_dim, per = m->par.n_heads / m->par.n_kv_heads, k = lq_row_cols(row);
    float *s = NULL;
    lq_status st = (*out = LQ_NEWN(float, k)) ? read_balance(ctx, m, row->slot.block, &s) : lq_oom(ctx, k * sizeof *s);
    for (uint32_t c = 0; c < k && !st; c++) (*out)[c] = s[c / d / per * d + c % d];
    lq_free(s);
    return st;
}

static lq_status read_gain(lq_ctx *ctx, lq_model *m, const lq_row *row, lq_turn t, float **out) {
    *out = NULL;
    if (t.in_heads) return read_head_gain(ctx, m, row, out);
    if (!t.gain) return LQ_OK;
    int32_t block = t.gain == LQ_R_FINAL_NORM ? -1 : row->slot.block;
    const lq_row *norm = lq_catalog_find(&m->cat, (lq_slot){block, t.gain, -1}, LQ_PART_WEIGHT);
    uint64_t n = norm ? lq_row_elems(norm) : 0;
    if (n != lq_row_cols(row)) return lq_fail(ctx, LQ_ERR_INTERNAL, "%s: its norm has %llu gains", row->name, (unsigned long long)n);
    if (!(*out = LQ_NEWN(float, n))) return lq_oom(ctx, n * 4);
    LQ_TRY(lq_model_read_raw(ctx, m, norm, *out));
    for (uint64_t i = 0; m->par.norm_plus_one && i < n; i++) (*out)[i] += 1;
    return LQ_OK;
}

static lq_status turn_all(lq_ctx *ctx, job *j) {
    bool columns = j->turn.out_stream || j->turn.out_heads;
    j->per = 2 * (size_t)j->cols;
    if (columns && (COLS + 1) * (size_t)j->rows > j->per) j->per = (COLS + 1) * (size_t)j->rows;
    j->scratch = lq_calloc(j->per * (size_t)lq_threads(), sizeof *j->scratch);
    if (columns) j->wide = lq_calloc((size_t)j->rows * j->cols, sizeof *j->wide);
    if (!j->scratch || (columns && !j->wide)) return lq_oom(ctx, (size_t)j->rows * j->cols * sizeof *j->wide);
    lq_parallel_for((j->rows + ROWS - 1) / ROWS, row_slice, j);
    if (columns) lq_parallel_for((j->cols + COLS - 1) / COLS, column_slice, j);
    return LQ_OK;
}

lq_status lq_rotation_apply(lq_ctx *ctx, lq_model *m, const lq_row *row, float *w) {
    lq_turn t = lq_rotation_turn(m, row);
    float *gain = NULL;
    if (!lq_turn_any(t)) return LQ_OK;
    if (t.one) {
        for (uint64_t i = 0; i < lq_row_elems(row); i++) w[i] = m->par.norm_plus_one ? 0 : 1;
        return LQ_OK;
    }
    lq_status st = read_gain(ctx, m, row, t, &gain);
    float *balance = NULL;
    if (!st && t.out_heads) st = read_balance(ctx, m, row->slot.block, &balance);
    job j = {.r = m->rotation, .par = &m->par, .turn = t, .gain = gain, .balance = balance, .rows = lq_row_rows(row), .cols = lq_row_cols(row), .w = w};
    if (!st) st = turn_all(ctx, &j);
    lq_free(j.scratch);
    lq_free(j.wide);
    lq_free(balance);
    lq_free(gain);
    return st;
}

/* ---- second moments of inputs ---- */

typedef struct moments { const job *j; double *g; uint32_t k; } moments;

static void moment_slice(void *arg, size_t i) {
    const moments *m = arg;
    uint32_t r0 = (uint32_t)i * ROWS, r1 = m->k - r0 < ROWS ? m->k : r0 + ROWS;
    double *scratch = m->j->scratch + m->j->per * (size_t)lq_worker();
    for (uint32_t r = r0; r < r1; r++) turn_inputs(m->j, m->g + (size_t)r * m->k, scratch);
}

static void transpose(double *g, uint32_t k) {
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t j = 0; j < i; j++) {
            double v = g[(size_t)i * k + j];
            g[(size_t)i * k + j] = g[(size_t)j * k + i];
            g[(size_t)j * k + i] = v;
        }
}

/* What rotation does to inputs of `row`; the caller frees scratch and *gain. */
static lq_status input_job(lq_ctx *ctx, lq_model *m, const lq_row *row, lq_turn t, float **gain, job *j) {
    uint32_t k = lq_row_cols(row);
    *j = (job){.r = m->rotation, .par = &m->par, .turn = t, .cols = k, .per = 2 * (size_t)k};
    j->turn.out_stream = j->turn.out_heads = false;
    LQ_TRY(read_gain(ctx, m, row, t, gain));
    for (uint32_t c = 0; *gain && c < k; c++) (*gain)[c] = (*gain)[c] != 0 ? 1 / (*gain)[c] : 0; /* the input was multiplied by it, the rotated one is not */
    j->gain = *gain;
    j->scratch = lq_calloc(j->per * (size_t)lq_threads(), sizeof *j->scratch);
    return j->scratch ? LQ_OK : lq_oom(ctx, j->per * sizeof *j->scratch);
}

lq_status lq_rotation_moments(lq_ctx *ctx, lq_model *m, const lq_row *row, double *g) {
    lq_turn t = lq_rotation_turn(m, row);
    uint32_t k = lq_row_cols(row);
    float *gain = NULL;
    job j = {0};
    if (!t.in_stream && !t.in_heads) return LQ_OK;
    lq_status st = input_job(ctx, m, row, t, &gain, &j);
    for (int side = 0; side < 2 && !st; side++) {
        lq_parallel_for((k + ROWS - 1) / ROWS, moment_slice, &(moments){&j, g, k});
        transpose(g, k);
    }
    lq_free(j.scratch);
    lq_free(gain);
    return st;
}

lq_status lq_rotation_inputs(lq_ctx *ctx, lq_model *m, const lq_row *row, float *x, uint32_t n) {
    lq_turn t = lq_rotation_turn(m, row);
    float *gain = NULL;
    job j = {0};
    if (!t.in_stream && !t.in_heads) return LQ_OK;
    lq_status st = input_job(ctx, m, row, t, &gain, &j);
    j.w = x;
    j.rows = n;
    if (!st) lq_parallel_for((n + ROWS - 1) / ROWS, row_slice, &j);
    lq_free(j.scratch);
    lq_free(gain);
    return st;
}
