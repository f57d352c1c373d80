/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A model's tensors on a device (kernels/cuda/cuda.h): what ops_device.c multiplies with. */
#ifndef LQ_HELD_H
#define LQ_HELD_H
#include "calib/forward.h"
#include "calib/run.h"
#include "kernels/cuda/cuda.h"

typedef struct lq_held_linear {
    uint32_t rows, cols;
    bool packed;             /* m, else w */
    lq_device_matrix m;
    lq_device_dense w;
    lq_device_sparse extra;  /* rows 0: none */
    bool splits;             /* products take what rounding leaves out as well (lq_device_rest) */
    bool valued;             /* activations are rounded to values, not to codes */
    lq_device_round round;   /* act.kind NONE: activations are not rounded; rest and mark are the run's */
    float *bias;             /* [rows] or NULL */
    bool stacked;            /* an expert's: the same role's of all others are alike and lie one behind the other */
} lq_held_linear;

typedef struct lq_held_layer {
    lq_held_linear lin[LQ_R_N], *experts; /* as in lq_layer */
    float *norm[LQ_R_N], *shift[LQ_R_N];
} lq_held_layer;

typedef struct lq_held {
    const lq_device *d;
    lq_held_layer *layers, outer;
    uint32_t n_layers;
    void **own;              /* every pointer to device memory */
    size_t n_own, room;
    uint64_t bytes, step_bytes; /* on the device; what a step of decoding reads */
    uint32_t decoded;        /* matrices held as floats that are stored in codes */
    struct { uint32_t ld, segs, left, mark, cols, rows, values; } round; /* largest of the linears that round their activations; left: ld of those that split; mark, cols,
                                                                          * rows: of those that leave outliers out, of those by a product of their own; values: columns of those `valued` */
    lq_run *head;            /* for lq_logits; NULL until then */
    bool picks;              /* every block's experts are stacked: rows may pick theirs on the device */
    bool apart;              /* operations are not joined: for tests and to measure what joining gives */
    bool ahead;              /* kernels begin early: lq_held_ahead */
} lq_held;

/* Every tensor of the model to a device, block by block: no more than one block is in the host's memory; nothing loaded is left there. Matrices of codes lie
 * as the device multiplies them; those that it has no kernel for are decoded to F16 (F32 where that is too small), and the log says how many. m->held is
 * then set: lq_state_new and lq_logits run there. LQ_ERR_UNSUPPORTED: no such device here, rounded activations that it cannot round. */
lq_status lq_model_hold(lq_ctx *ctx, lq_model *m, const lq_device *d);
void lq_held_free(lq_held **h); /* part of lq_model_free */
/* lq_device.ahead, for passes that are recorded too. It is the device's: every model's on it. False: it cannot. */
bool lq_held_ahead(lq_held *h, bool on);
/* Device memory that h owns: n bytes, of `from` unless NULL. */
lq_status lq_held_take(lq_ctx *ctx, lq_held *h, const void *from, size_t n, void **out);

/* Keys and values on a device, of one or several sequences. */
typedef struct lq_held_kv {
    const lq_device *d;
    uint32_t refs, layers, sequences;
    size_t row_bytes;        /* of keys (or values) of a token of one layer, without steps */
    lq_device_kv kv[];       /* [layers] */
} lq_held_kv;
lq_status lq_held_kv_new(lq_ctx *ctx, const lq_model *m, lq_kv_kind kind, bool fixed, uint32_t layers, uint32_t room, uint32_t sequences, lq_held_kv **out);
void lq_held_kv_free(lq_held_kv **kv); /* one reference */
uint64_t lq_held_kv_bytes(const lq_held_kv *kv); /* of a sequence */
/* The first n positions of a sequence, through the host. */
lq_status lq_held_kv_copy(lq_ctx *ctx, lq_held_kv *dst, uint32_t to, const lq_held_kv *src, uint32_t from, uint32_t n);

/* lq_forward_batch on a device, and the likeliest token after each sequence: next[n], the lower of equals; only they come back. next may be ids. */
lq_status lq_held_next(lq_ctx *ctx, lq_state *const *s, const int32_t *ids, uint32_t n, int32_t *next);
/* Its second half, of a run's own stream: room for it (n at most the run's chunk); head and choice queued, so that they may be recorded; what was chosen, once the
 * pass has ended. */
lq_status lq_held_choosing(lq_ctx *ctx, lq_run *r, uint32_t n);
void lq_held_choose(lq_run *r, uint32_t n);
lq_status lq_held_chosen(lq_ctx *ctx, lq_run *r, uint32_t n, int32_t *best);

lq_status lq_held_logits(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, float *logits);
/* nll[n] of the targets. */
lq_status lq_held_nll(lq_ctx *ctx, const lq_model *m, const float *hidden, uint32_t n, const int32_t *target, double *nll);
#endif
