/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The operations that an architecture's table is carried out with, on buffers wherever they lie: the CPU's memory, or a device's. The
 * interpreter (run.c, moe.c, outer.c) knows nothing else, so every machine runs the one model. Buffers are [n][width], fp32; a tensor of the model is
 * named by its role in r->l (r->expert: whose). Nothing fails at once: what went wrong is told by check. */
#ifndef LQ_OPS_H
#define LQ_OPS_H
#include "calib/run.h"

struct lq_ops {
    const char *name;
    bool far;                                   /* buffers are not the host's; T_K and T_V have some of their own */
    lq_status (*open)(lq_ctx *ctx, lq_run *r, uint32_t positions); /* what the run needs beside its buffers: rotary tables, scratch */
    void (*close)(lq_run *r);
    float *(*alloc)(lq_run *r, uint64_t n);
    void (*release)(lq_run *r, float *p);
    lq_status (*fit)(lq_ctx *ctx, lq_run *r, const lq_layer *l);
    /* A pass over n tokens of these spans begins: r->ids, places, stream, which is `hidden` where that is in reach; and ends: hidden[n] (NULL: not wanted) is what
     * the stream holds; check is part of it. */
    lq_status (*begin)(lq_ctx *ctx, lq_run *r, const int32_t *ids, const lq_span *spans, uint32_t n_spans, uint32_t n, float *hidden);
    lq_status (*end)(lq_ctx *ctx, lq_run *r, uint32_t n, float *hidden);
    /* Is this the pass that was recorded under key? It is queued again then. Else it is to be queued, which `passed` ends (whole: all of it was). Key 0: never. */
    bool (*again)(lq_run *r, uint64_t key);
    void (*passed)(lq_run *r, bool whole);
    lq_status (*check)(lq_ctx *ctx, lq_run *r); /* the first fault since the last call */

    void (*norm)(lq_run *r, lq_role role, const float *x, uint32_t d, uint32_t n, float *y); /* y may be x */
    void (*linear)(lq_run *r, lq_role role, const float *x, uint32_t n, float *y);           /* with its bias; LQ_R_HEAD: also a tied one */
    void (*embed)(lq_run *r, lq_role role, const int32_t *ids, uint32_t n, float *y);        /* rows of a matrix */
    void (*split)(lq_run *r, const lq_op *op, const float *x, uint32_t n, float *y);         /* a part of a fused matrix's output */
    void (*rope)(lq_run *r, float *x, uint32_t width, uint32_t n, const lq_span *spans);     /* in place */
    /* Keys and values of the chunk to where they are read, then q over them. q may be changed. */
    void (*attn)(lq_run *r, const lq_op *op, float *q, uint32_t n, float *out, const lq_span *spans, uint32_t n_spans);
    void (*glu)(lq_run *r, const float *gate, const float *up, uint32_t width, uint32_t n, float *y); /* up NULL: the activation alone */
    void (*add)(lq_run *r, float *y, float *x, float scale, uint32_t width, uint32_t n);     /* y += scale x (0: 1); x may be changed */
    void (*clamp)(lq_run *r, const float *x, float most, uint32_t width, uint32_t n, float *y);
    void (*token_gate)(lq_run *r, const float *x, const float *gate, uint32_t width, uint32_t n, float *y); /* gate[n] */
    void (*scale)(lq_run *r, float *x, float times, uint32_t width, uint32_t n);             /* in place */
    void (*cap)(lq_run *r, float *x, float div, float cap, uint32_t width, uint32_t n);      /* in place: x / div, cap tanh(x / cap); 0: not */
    /* A router's scores, to r->routing.p, which is the host's. */
    void (*scores)(lq_run *r, lq_role role, const float *x, uint32_t n);
    void (*routed)(lq_run *r, uint32_t n);      /* r->routing of the chunk stands */
    /* Rows routing.token[first ..] of x; y's same rows += routing.weight x (times resid_scale). */
    void (*gather)(lq_run *r, const float *x, uint32_t first, uint32_t n, uint32_t width, float *y);
    void (*scatter)(lq_run *r, const float *x, uint32_t first, uint32_t n, uint32_t width, float *y);
    /* Where experts can be chosen without the host (NULL: never; picks: for these n tokens): choose instead of scores and routed, then gather of n k rows, the ops of experts
     * over them as expert LQ_EXPERT_PICKED, and merge: each token's k rows of x, in ascending order of experts, times their gains, are added to y. */
    bool (*picks)(const lq_run *r, uint32_t n);
    void (*choose)(lq_run *r, lq_role role, const float *x, uint32_t n);
    void (*merge)(lq_run *r, const float *x, uint32_t n, uint32_t width, float *y);
};
enum { LQ_EXPERT_PICKED = 1 << 30 };            /* lq_run.expert: every row has one of its own */
extern const lq_ops lq_ops_cpu, lq_ops_device;

/* cos and sin [positions][rope dim / 2], times the rope's scale; the caller's to free. */
lq_status lq_rope_table(lq_ctx *ctx, const lq_rope *rope, uint32_t positions, float **cosines, float **sines);
#endif
