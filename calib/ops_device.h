/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Inside calib: what a run on a device has, and the row of operations that wait there a little so that neighbours can be one launch. */
#ifndef LQ_OPS_DEVICE_H
#define LQ_OPS_DEVICE_H
#include "calib/held.h"
#include "calib/ops.h"

enum { LQ_QUEUE = 24 };

typedef enum lq_queued_kind { LQ_QUEUED_NORM, LQ_QUEUED_LINEAR, LQ_QUEUED_ROPE, LQ_QUEUED_ATTN, LQ_QUEUED_GLU, LQ_QUEUED_ADD } lq_queued_kind;
typedef struct lq_queued {
    lq_queued_kind kind;
    const lq_op *op;                /* of the block's table; NULL: outside of the blocks */
    const float *in[3];             /* ATTN: q, k, v; GLU: gate, up (NULL: 1) */
    float *out;                     /* ROPE: in place; ADD: added to */
    uint32_t n, width;              /* tokens; floats per token of out */
    const lq_held_linear *lin;
    const float *bias;              /* [width] or NULL */
    lq_device_norm norm;
    struct { uint32_t rot; bool pairs; const float *cos, *sin; } turn;
    lq_device_tokens at;
    lq_device_attn attn;
    lq_device_kv kv;
    float scale;
} lq_queued;

typedef struct lq_device_run {
    const lq_device *d;
    lq_held *h;
    const char *fault;
    int32_t *ids, *places, *target; /* of a pass, on the device; places[i]: row of the learned positions */
    uint32_t *pos, *seq;            /* [room] */
    uint32_t room;                  /* tokens of ids .. seq */
    uint32_t stream_room, reach, choices;
    float *stream;                  /* [stream_room][hidden] */
    uint32_t *host;                 /* [4][room] ids .. seq before they are put */
    struct { float *cos, *sin; } turn[2];
    int8_t *codes;                  /* rounded activations of a chunk, for idot */
    float *step, *rest, *product, *value; /* value: [chunk][columns] rounded activations as floats */
    int32_t *sum;
    uint8_t *mark;
    lq_device_rest left;            /* of a chunk, where products split */
    float *p, *weight;              /* of experts: scores; gains of the choices */
    int32_t *token, *pick;          /* their rows; [2][rows] their experts, where rows pick theirs */
    bool picking;                   /* between choose and merge */
    float *logits;                  /* of HEAD_TOKENS tokens: the head's run; of `choices` others: lq_held_choose */
    double *nll;
    int32_t *best;
    void *pass;                     /* recorded, of `key` */
    uint64_t key, seen;
    bool recording;
    lq_queued queue[LQ_QUEUE];      /* operations that wait to be joined, */
    uint32_t queued;                /* so many */
    uint8_t *marks;                 /* [LQ_DEVICE_MARKS] what the device did from each mark on (LQ_CLOCK_*), where r->clock is asked for; the last: nothing more */
    uint32_t n_marks;
} lq_device_run;

static inline const lq_device *lq_device_of(const lq_run *r) { return r->m->held->d; }
static inline const lq_device_ops *lq_device_table(const lq_run *r) { return r->m->held->d->ops; }

/* Keeps the first fault. */
static inline void lq_device_did(lq_run *r, const char *wrong) {
    if (wrong && !r->dev->fault) r->dev->fault = wrong;
}

/* What is queued from here on is of this class: a mark where it changes, if somebody wants to know (r->clock). */
void lq_device_class(lq_run *r, int clock);
/* q waits, unless it is outside of the blocks, of more tokens than a joint product takes, or nothing is to be joined. */
void lq_queue_push(lq_run *r, const lq_queued *q);
/* All that waits is queued on the device. */
void lq_queue_flush(lq_run *r);
/* A linear at once. */
void lq_device_linear(lq_run *r, const lq_held_linear *l, const float *bias, const float *x, uint32_t n, float *y);
#endif
