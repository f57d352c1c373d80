/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* -log p of given tokens without the logits of a whole text at once: panels of the vocabulary, each decoded and packed once for all tokens,
 *
 *   nll[t] = log sum over panels of exp(lse[panel][t])  -  logit[t][target[t]]
 *
 * Panels are the parallel split and follow from the shape; sums of a panel, and of the panels, are fp64 in a fixed order. */
#include "calib/forward.h"
#include "calib/held.h"
#include "calib/run.h"

#include "core/thread.h"
#include "kernels/linalg.h"
#include "kernels/packed.h"

#include <math.h>

enum { PANEL = 256, PARTS = 8, TOKENS = 512, SLICE = 64 }; /* rows of the head, fewer where that makes no PARTS panels; tokens of one product; tokens of a
                                                               head that rounds what it reads */

typedef struct panels {
    const lq_model *m;
    const lq_linear *head;
    const float *bias, *x;     /* [vocab] or NULL; [n][cols] */
    const int32_t *target;
    const lq_work *work;
    double *lse, *hit;         /* [panels][n], [n] */
    uint32_t n, panel, count;  /* tokens; rows of a panel, panels */
} panels;

static void cap_row(const lq_params *p, float *x, uint32_t n) {
    for (uint32_t c = 0; p->logit_div > 0 && c < n; c++) x[c] /= p->logit_div;
    for (uint32_t c = 0; p->logit_cap > 0 && c < n; c++) x[c] = p->logit_cap * tanhf(x[c] / p->logit_cap);
}

static void panel_task(void *arg, size_t i) {
    const panels *a = arg;
    const lq_linear *l = a->head;
    uint32_t r0 = (uint32_t)i * a->panel, nr = l->rows - r0 < a->panel ? l->rows - r0 : a->panel;
    float *logits = lq_work_mine(a->work), *rows = logits + (size_t)TOKENS * PANEL;
    const float *w = !l->q && l->dtype == LQ_F32 ? (const float *)l->w + (size_t)r0 * l->cols : rows;
    if (w == rows) lq_linear_rows(a->m->k, l, r0, nr, rows);
    for (uint32_t t0 = 0; t0 < a->n; t0 += TOKENS) {
        uint32_t n = a->n - t0 < TOKENS ? a->n - t0 : TOKENS;
        lq_gemm_nt(a->x + (size_t)t0 * l->cols, l->cols, w, l->cols, logits, nr, n, nr, l->cols, false);
        for (uint32_t t = 0; t < n; t++) {
            float *row = logits + (size_t)t * nr;
            uint32_t at = (uint32_t)a->target[t0 + t];
            if (a->bias) a->m->k->add(row, a->bias + r0, nr);
            cap_row(&a->m->par, row, nr);
            a->lse[i * a->n + t0 + t] = a->m->k->logsumexp(row, nr);
            if (at >= r0 && at - r0 < nr) a->hit[t0 + t] = row[at - r0];
        }
    }
}

static double join(const panels *a, uint32_t t) {
    double most = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < a->count; i++) {
        double v = a->lse[(size_t)i * a->n + t];
        if (isnan(v)) return v;
        most = fmax(most, v);
    }
    if (!isfinite(most)) return most;
    for (uint32_t i = 0; i < a->count; i++) sum += exp(a->lse[(size_t)i * a->n + t] - most);
    return most + log(sum);
}

static lq_status by_panels(lq_ctx *ctx, panels *a, double *nll) {
    lq_work work = {0};
    a->panel = (a->head->rows / PARTS + LQ_TILE) / LQ_TILE * LQ_TILE;
    if (a->panel > PANEL) a->panel = PANEL;
    a->count = (a->head->rows + a->panel - 1) / a->panel;
    a->work = &work;
    a->lse = LQ_NEWN(double, (size_t)a->count * a->n);
    a->hit = LQ_NEWN(double, a->n);
    lq_status st = a->lse && a->hit ? lq_work_fit(ctx, &work, (size_t)PANEL * (TOKENS + a->head->cols), 0) : lq_oom(ctx, (size_t)a->count * a->n * 8);
    if (!st) lq_parallel_for(a->count, panel_task, a);
    for (uint32_t t = 0; t < a->n && !st; t++) nll[t] = join(a, t) - a->hit[t];
    lq_free(a->lse);
    lq_free(a->hit);
    lq_work_free(&work);
    return st;
}

/* A head that rounds its activations is the business of its own kernels. */
static lq_status by_slices(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, const int32_t *target, double *nll) {
    float *logits = LQ_NEWN(float, (size_t)SLICE * m->par.vocab);
    lq_status st = logits ? LQ_OK : lq_oom(ctx, (size_t)SLICE * m->par.vocab * 4);
    for (uint32_t t0 = 0; t0 < n && !st; t0 += SLICE) {
        uint32_t k = n - t0 < SLICE ? n - t0 : SLICE;
        st = lq_logits(ctx, m, hidden + (size_t)t0 * m->par.hidden, k, logits);
        for (uint32_t t = 0; t < k && !st; t++) {
            const float *row = logits + (size_t)t * m->par.vocab;
            nll[t0 + t] = m->k->logsumexp(row, m->par.vocab) - row[target[t0 + t]];
        }
    }
    lq_free(logits);
    return st;
}

lq_status lq_score(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, const int32_t *target, double *nll) {
    const lq_linear *head = &m->outer.lin[m->par.tied ? LQ_R_EMBED : LQ_R_HEAD];
    if (m->held) return lq_held_nll(ctx, m, hidden, n, target, nll);
    if (!m->outer.loaded) return lq_fail(ctx, LQ_ERR_INTERNAL, "the head is not loaded");
    if (!n) return LQ_OK;
    if (head->q && head->q->sch.act.kind) return by_slices(ctx, m, hidden, n, target, nll);
    panels a = {.m = m, .head = head, .bias = m->outer.lin[LQ_R_HEAD].bias, .x = hidden, .target = target, .n = n};
    if (!a.bias && head->q) a.bias = head->q->bias;
    float *in = m->outer.lin[LQ_R_PROJ_OUT].rows ? LQ_NEWN(float, (size_t)n * head->cols) : NULL;
    if (m->outer.lin[LQ_R_PROJ_OUT].rows && !in) return lq_oom(ctx, (size_t)n * head->cols * 4);
    lq_status st = in ? lq_head_input(ctx, m, hidden, n, in) : LQ_OK;
    if (in) a.x = in;
    if (!st) st = by_panels(ctx, &a, nll);
    lq_free(in);
    return st;
}
