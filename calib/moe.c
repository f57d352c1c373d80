/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Mixture of experts (Shazeer et al. 2017, arXiv 1701.06538; Jiang et al. 2024, arXiv 2401.04088). Per token
 *
 *   p = softmax(R h), fp32;  S = the k largest p;  g_e = p_e, or p_e / sum over S p;   y = sum over e in S of g_e E_e(h)
 *
 * as transformers has it: the sum of the chosen p runs from the largest down, of equal probabilities the lower expert is taken
 * (torch.topk leaves that open), experts are added in ascending order. Tokens are grouped by expert: gathered, run together,
 * scattered; a group holds its tokens in order, so the result depends on shapes only. */
#include "calib/ops.h"

#include <string.h>

enum { SLICE = 16 }; /* tokens */

lq_status lq_routing_init(lq_ctx *ctx, lq_routing *g, const lq_params *p, uint32_t tokens) {
    size_t chosen = (size_t)tokens * p->top_k;
    *g = (lq_routing){.experts = p->n_experts, .k = p->top_k};
    if (!p->n_experts) return LQ_OK;
    bool ok = (g->p = LQ_NEWN(float, (size_t)tokens * g->experts)) && (g->pick = LQ_NEWN(uint32_t, chosen)) && (g->gain = LQ_NEWN(float, chosen)) &&
              (g->start = LQ_NEWN(uint32_t, g->experts + 2)) && (g->token = LQ_NEWN(uint32_t, chosen)) && (g->weight = LQ_NEWN(float, chosen));
    if (ok) return LQ_OK;
    lq_routing_free(g);
    return lq_oom(ctx, (size_t)tokens * g->experts * 4 + chosen * 16);
}

void lq_routing_free(lq_routing *g) {
    lq_free(g->p);
    lq_free(g->pick);
    lq_free(g->gain);
    lq_free(g->start);
    lq_free(g->token);
    lq_free(g->weight);
    *g = (lq_routing){0};
}

static uint32_t largest(const float *p, uint32_t n, const uint32_t *taken, uint32_t n_taken) {
    uint32_t best = UINT32_MAX;
    for (uint32_t e = 0; e < n; e++) {
        bool free = true;
        for (uint32_t i = 0; i < n_taken && free; i++) free = taken[i] != e;
        if (free && (best == UINT32_MAX || p[e] > p[best])) best = e;
    }
    return best;
}

typedef struct choice { const lq_run *r; uint32_t n; } choice;
static void choose_slice(void *arg, size_t i) {
    const choice *a = arg;
    const lq_routing *g = &a->r->routing;
    for (uint32_t t = (uint32_t)i * SLICE; t < (i + 1) * SLICE && t < a->n; t++) {
        float *p = g->p + (size_t)t * g->experts, *gain = g->gain + (size_t)t * g->k, sum = 0;
        uint32_t *pick = g->pick + (size_t)t * g->k;
        a->r->k->softmax(p, g->experts, 1);
        for (uint32_t j = 0; j < g->k; j++) {
            pick[j] = largest(p, g->experts, pick, j);
            sum += gain[j] = p[pick[j]];
        }
        for (uint32_t j = 0; j < g->k && a->r->par->norm_topk; j++) gain[j] /= sum;
    }
}

/* Counting sort of the n * k choices by expert; inside an expert tokens ascend. */
static void group(lq_routing *g, uint32_t n) {
    memset(g->start, 0, (g->experts + 2) * sizeof *g->start);
    for (size_t i = 0; i < (size_t)n * g->k; i++) g->start[g->pick[i] + 2]++;
    for (uint32_t e = 2; e < g->experts + 2; e++) g->start[e] += g->start[e - 1];
    for (size_t i = 0; i < (size_t)n * g->k; i++) {
        uint32_t at = g->start[g->pick[i] + 1]++;
        g->token[at] = (uint32_t)(i / g->k);
        g->weight[at] = g->gain[i];
    }
}

void lq_run_route(lq_run *r, const lq_layer *l, const lq_op *route, uint32_t n) {
    r->l = l;
    r->ops->scores(r, route->role, r->t[route->in[0]], n);
    lq_spread((n + SLICE - 1) / SLICE, (uint64_t)n * r->routing.experts * r->routing.k, choose_slice, &(choice){r, n});
    group(&r->routing, n);
    r->ops->routed(r, n);
}

uint32_t lq_run_gather(lq_run *r, const lq_op *route, uint32_t expert, const float **weight) {
    const lq_routing *g = &r->routing;
    uint32_t first = g->start[expert], n = g->start[expert + 1] - first;
    r->expert = expert;
    if (weight) *weight = g->weight + first;
    r->ops->gather(r, r->t[route->in[0]], first, n, r->width[route->out], r->t[route->out]);
    return n;
}

static const lq_op *merge_of(const lq_op *op) {
    while (op->kind != LQ_OP_MERGE) op++;
    return op;
}

/* Rows of the choices instead of groups of tokens: the host knows neither. */
static void picked_experts(lq_run *r, const lq_layer *l, uint32_t layer, const lq_op *route, const lq_op *merge, uint32_t n) {
    const lq_op *table = r->arch->block;
    uint8_t out = merge->out & ~LQ_OUT_ADD;
    uint32_t rows = n * r->par->top_k;
    r->l = l;
    r->ops->choose(r, route->role, r->t[route->in[0]], n);
    r->ops->gather(r, r->t[route->in[0]], 0, rows, r->width[route->out], r->t[route->out]);
    r->expert = LQ_EXPERT_PICKED;
    lq_run_ops(r, l, layer, (uint32_t)(route + 1 - table), (uint32_t)(merge - table), rows, NULL, 0);
    r->ops->merge(r, r->t[merge->in[0]], n, r->width[out], r->t[out]);
    r->expert = 0;
}

const lq_op *lq_run_experts(lq_run *r, const lq_layer *l, uint32_t layer, const lq_op *route, uint32_t n) {
    const lq_op *merge = merge_of(route), *table = r->arch->block;
    uint8_t out = merge->out & ~LQ_OUT_ADD;
    if (r->ops->picks && r->ops->picks(r, n)) {
        picked_experts(r, l, layer, route, merge, n);
        return merge;
    }
    lq_run_route(r, l, route, n);
    for (uint32_t e = 0; e < r->routing.experts; e++) {
        uint32_t m = lq_run_gather(r, route, e, NULL);
        if (!m) continue;
        lq_run_ops(r, l, layer, (uint32_t)(route + 1 - table), (uint32_t)(merge - table), m, NULL, 0);
        r->ops->scatter(r, r->t[merge->in[0]], r->routing.start[e], m, r->width[out], r->t[out]);
    }
    return merge;
}
