/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* auto compares, linear by linear, the proxy loss (algorithms.md 0) of rounding W under H with that of W' = W P under
 * H' = P^-1 H P^-T, P what rotation does to the inputs (norm gains included): the same function, the same tr(W H W^T). Where
 * activations are rounded too, |W (x - Q(x))|^2 / |W x|^2 over a sample of tokens is added. */
#include "quant/rotate_choice.h"

#include "calib/act.h"
#include "quant/gather.h"
#include "quant/proxy.h"
#include "quant/recipe.h"

#include <math.h>
#include <string.h>

enum { ROWS = 8, LENGTH = 512, TOKENS = 128 };

lq_status lq_rotation_set(lq_ctx *ctx, lq_model *m, int choice, int64_t seed) {
    unsigned what = choice == LQ_ROTATION_HEADS ? LQ_ROTATE_HEADS : LQ_ROTATE_STREAM | LQ_ROTATE_HEADS;
    if (choice == LQ_ROTATION_HADAMARD && !lq_model_rotatable(ctx, m, LQ_ROTATE_STREAM) && lq_model_rotatable(ctx, m, LQ_ROTATE_HEADS)) {
        lq_log(ctx, LQ_LOG_WARN, "only the residual stream is rotated: %s", ctx->msg);
        what = LQ_ROTATE_STREAM;
    }
    lq_status st = lq_model_rotate(ctx, m, what, (uint64_t)seed);
    return st ? lq_note(ctx, st, "--rotate") : LQ_OK;
}

typedef struct court {
    lq_ctx *ctx;
    lq_model *plain, *turned;
    lq_recipe rtn;
    lq_verdict *v;
} court;

/* The relative loss of rounding w[rows][cols] as `row` is planned, under the mean of x x^T in h; -1: RTN has no such grid. */
static lq_status loss_of(court *c, const lq_row *row, const float *w, lq_stats *s, double *loss) {
    lq_weights in = {.slot = row->slot, .name = row->name, .rows = lq_row_rows(row), .cols = lq_row_cols(row), .w = w};
    lq_outcome o;
    lq_qtensor q = {0};
    lq_scheme plain = row->scheme;
    plain.act.kind = LQ_ACT_NONE;
    *loss = -1;
    if (c->rtn.method->accept(NULL, c->rtn.opts, in.rows, in.cols, &plain)) return LQ_OK;
    LQ_TRY(c->rtn.method->quantize(c->ctx, c->rtn.opts, &in, &plain, s, &q, &o));
    *loss = o.err_h;
    lq_qtensor_free(&q);
    return LQ_OK;
}

static lq_status turned_stats(court *c, const lq_row *row, const lq_stats *s, lq_stats *out) {
    uint32_t k = s->cols;
    double *g = lq_calloc((size_t)k * k, sizeof *g);
    lq_status st = g ? lq_stats_init(c->ctx, out, LQ_NEED_GRAM, k) : lq_oom(c->ctx, (size_t)k * k * sizeof *g);
    if (!st) lq_gram_full(&s->gram, g);
    if (!st) st = lq_rotation_moments(c->ctx, c->turned, row, g);
    for (uint32_t i = 0; i < k && !st; i++)
        for (uint32_t j = 0; j <= i; j++) lq_gram_set(&out->gram, i, j, g[(size_t)i * k + j]);
    out->n = out->gram.n = 1;
    lq_free(g);
    return st;
}

/* e[cols] = x - Q(x) as the linear would round it at run time; code, step: scratch of cols each. */
static void act_error(const lq_act *act, const float *x, uint32_t cols, float *code, float *step, float *e) {
    lq_act a = *act;
    a.kind = LQ_ACT_DYNAMIC; /* a static step is not known yet */
    uint32_t tile = a.tile ? a.tile : cols;
    lq_act_quantize(&a, 0, NULL, x, cols, code, step);
    for (uint32_t c = 0; c < cols; c++) e[c] = a.outlier > 0 && fabsf(x[c]) >= a.outlier ? 0 : x[c] - step[c / tile] * code[c];
}

/* |W e|^2 over |W x|^2, summed over the n tokens of x[n][cols]. */
static lq_status act_loss(lq_ctx *ctx, const lq_row *row, const float *w, const float *x, uint32_t n, double *loss) {
    uint32_t rows = lq_row_rows(row), cols = lq_row_cols(row);
    float *e = lq_calloc(((size_t)n + 2) * cols, sizeof *e), *y = lq_calloc((size_t)n * rows, sizeof *y);
    double sum[2] = {0};
    lq_status st = e && y ? LQ_OK : lq_oom(ctx, (size_t)n * (rows + cols) * sizeof *e);
    for (uint32_t t = 0; t < n && !st; t++) act_error(&row->scheme.act, x + (size_t)t * cols, cols, e + (size_t)n * cols, e + ((size_t)n + 1) * cols, e + (size_t)t * cols);
    for (int which = 0; which < 2 && !st; which++) {
        lq_matmul(which ? x : e, cols, w, cols, y, rows, n, rows, cols);
        for (size_t i = 0; i < (size_t)n * rows; i++) sum[which] += (double)y[i] * y[i];
    }
    *loss = sum[1] > 0 ? sum[0] / sum[1] : 0;
    lq_free(e);
    lq_free(y);
    return st;
}

/* The same before and after rotation; 0 where the linear's activations stay floats. */
static lq_status act_losses(court *c, const lq_row *row, const lq_row *other, const float *w, const float *turned_w, const lq_stats *s, double *before, double *after) {
    uint32_t n = s->n_samples < TOKENS ? s->n_samples : TOKENS;
    size_t size = (size_t)n * s->cols;
    *before = *after = 0;
    if (row->scheme.act.kind == LQ_ACT_NONE || !n) return LQ_OK;
    float *x = lq_calloc(size, sizeof *x);
    if (!x) return lq_oom(c->ctx, size * sizeof *x);
    for (uint32_t t = 0; t < n; t++) memcpy(x + (size_t)t * s->cols, s->samples + (size_t)(t * s->n_samples / n) * s->cols, s->cols * sizeof *x);
    lq_status st = act_loss(c->ctx, row, w, x, n, before);
    if (!st) st = lq_rotation_inputs(c->ctx, c->turned, other, x, n);
    if (!st) st = act_loss(c->ctx, row, turned_w, x, n, after);
    lq_free(x);
    return st;
}

static lq_status try_linear(court *c, const lq_row *row, lq_stats *s) {
    const lq_row *other = lq_catalog_find(&c->turned->cat, row->slot, LQ_PART_WEIGHT);
    uint64_t n = lq_row_elems(row);
    float *w = lq_calloc(n, sizeof *w), *turned_w = lq_calloc(n, sizeof *w);
    lq_stats turned = {0};
    double before = -1, after = -1, act[2] = {0};
    lq_status st = w && turned_w && other ? LQ_OK : lq_oom(c->ctx, n * sizeof *w);
    LQ_GO(st);
    LQ_GO(lq_model_read_f32(c->ctx, c->plain, row, w));
    LQ_GO(loss_of(c, row, w, s, &before));
    if (before < 0) goto done;
    LQ_GO(lq_model_read_f32(c->ctx, c->turned, other, turned_w));
    LQ_GO(turned_stats(c, other, s, &turned));
    LQ_GO(loss_of(c, row, turned_w, &turned, &after));
    LQ_GO(act_losses(c, row, other, w, turned_w, s, &act[0], &act[1]));
    c->v->plain += before + act[0];
    c->v->rotated += after + act[1];
    c->v->linears++;
    lq_log(c->ctx, LQ_LOG_DEBUG, "%s: loss %.5f + %.5f, rotated %.5f + %.5f", row->name, before, act[0], after, act[1]);
done:
    lq_stats_free(&turned);
    lq_free(w);
    lq_free(turned_w);
    return st;
}

static lq_status on_stage(void *user, const lq_stage *stage, const lq_stats *stats) {
    court *c = user;
    for (uint32_t i = 0; i < stage->n; i++)
        if (stage->lin[i]->row->quantize) LQ_TRY(try_linear(c, stage->lin[i]->row, (lq_stats *)stats));
    return LQ_OK;
}

/* A short sample of the text the run would calibrate on. */
static lq_status sample(lq_ctx *ctx, const lq_model *m, const lq_corpus_opts *opts, lq_rows *rows) {
    lq_corpus_opts few = *opts;
    lq_tokenizer *t = NULL;
    few.save_tokens = NULL;
    if (few.nsamples > ROWS) few.nsamples = ROWS;
    if (few.seqlen > LENGTH) few.seqlen = LENGTH;
    LQ_TRY(lq_tokenizer_open(ctx, m->src, &t));
    lq_status st = lq_corpus_build(ctx, t, m->src, &few, m->par.max_ctx, m->par.vocab, rows);
    lq_tokenizer_free(&t);
    return st;
}

static lq_status hear(court *c, int choice, int64_t seed, const lq_rotation_judge *j) {
    lq_rows rows = {0};
    lq_plan plan;
    lq_ctx quiet = {.cancel = c->ctx->cancel}; /* the run's own plan says it again */
    lq_status st;
    LQ_GO(lq_model_open(c->ctx, c->plain->src, false, &c->turned));
    LQ_GO(lq_rotation_set(c->ctx, c->turned, choice, seed));
    LQ_GO(lq_recipe_parse(c->ctx, "rtn:search", &c->rtn));
    if (lq_plan_make(&quiet, &c->plain->cat, j->plan, j->method, j->method_opts, j->format, &plan)) goto done; /* which will say so */
    bool acts = false;
    for (size_t i = 0; i < c->plain->cat.n; i++) acts = acts || (c->plain->cat.rows[i].quantize && c->plain->cat.rows[i].scheme.act.kind);
    LQ_GO(sample(c->ctx, c->plain, j->corpus, &rows));
    lq_gather g = {.rows = &rows, .needs = LQ_NEED_GRAM | (acts ? LQ_NEED_SAMPLES : 0), .cache_budget = j->cache_budget, .work_dir = j->work_dir, .on_stage = on_stage, .user = c};
    LQ_GO(lq_gather_run(c->ctx, c->plain, &g));
done:
    lq_rows_free(&rows);
    lq_recipe_free(&c->rtn);
    lq_model_free(&c->turned);
    return st;
}

lq_status lq_rotation_judged(lq_ctx *ctx, lq_model *m, int64_t seed, const lq_rotation_judge *judge, lq_verdict *out) {
    court c = {.ctx = ctx, .plain = m, .v = out};
    *out = (lq_verdict){0};
    int choice = LQ_ROTATION_HADAMARD;
    if (lq_model_rotatable(ctx, m, LQ_ROTATE_STREAM)) {
        lq_log(ctx, LQ_LOG_INFO, "--rotate auto: %s", ctx->msg);
        if (lq_model_rotatable(ctx, m, LQ_ROTATE_HEADS)) return LQ_OK;
        choice = LQ_ROTATION_HEADS;
    }
    LQ_TRY(hear(&c, choice, seed, judge));
    out->choice = out->linears && out->rotated < out->plain ? choice : LQ_ROTATION_NONE;
    lq_log(ctx, LQ_LOG_INFO, "--rotate auto: sum of relative losses over %u linears %.5f, rotated %.5f: %s", out->linears, out->plain, out->rotated,
           !out->choice ? "not rotated" : choice == LQ_ROTATION_HEADS ? "heads rotated" : "rotated");
    return LQ_OK;
}
