/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The key-value cache: rows are rounded as they come, stored packed, and read back a tile at a time (f32: as they lie), so that
 * prefill and decoding see the same values. A head's rows follow each other: a decoded token reads one stream per head. Keys are stored
 * after the rotary turn. */
#ifndef LQ_KV_H
#define LQ_KV_H
#include "core/mem.h"

/*  f32, f16
 *  int8   per token and head: step = absmax / 127 as F16; or one fixed step per layer
 *  fp8    E4M3, step = absmax / 448 as F16; or fixed
 *  int4   runs of 32 in a head: 4-bit codes between a minimum and minimum + 15 steps, both F16. Keys (and queries, which leaves
 *         every q k as it is) are turned by a Hadamard matrix of the largest power of two in head_dim first: it spreads the few
 *         large channels that keys have, which KIVI meets with groups along time. Nothing waits in a residual window: a row is
 *         final when it is appended. algorithms.md 13. */
typedef enum lq_kv_kind { LQ_KV_F32, LQ_KV_F16, LQ_KV_INT8, LQ_KV_FP8, LQ_KV_INT4, LQ_KV_N } lq_kv_kind;
#define LQ_KV_CHOICES "f32|f16|int8|fp8|int4" /* in that order */
enum { LQ_KV_GROUP = 32, LQ_KV_TILE = 64 };   /* keys dequantized at a time */

typedef struct lq_kv {
    lq_kv_kind kind;
    uint32_t layers, max_ctx, heads, dim;
    size_t row_bytes;            /* of a token: of all its heads */
    uint8_t *keys, *values;      /* [layers][heads][max_ctx] of row_bytes / heads */
    const float *steps;          /* [layers][2] fixed steps of E4M3 keys and values (int8: times 448 / 127); NULL: per token and head; borrowed */
} lq_kv;
/* steps: INT8 and FP8 only. The layer of a cache with one is 0 whatever is asked for; its steps follow the layer. */
lq_status lq_kv_init(lq_ctx *ctx, lq_kv *kv, lq_kv_kind kind, uint32_t layers, uint32_t max_ctx, uint32_t heads, uint32_t dim, const float *steps);
void lq_kv_free(lq_kv *kv);
uint64_t lq_kv_bytes(const lq_kv *kv);
/* n tokens from position pos: k, v [n][heads * dim]. Parallel. */
void lq_kv_put(lq_kv *kv, uint32_t layer, uint32_t pos, uint32_t n, const float *k, const float *v);
/* out[n][dim]: keys (or values) of a head from position pos. */
void lq_kv_get(const lq_kv *kv, uint32_t layer, bool values, uint32_t pos, uint32_t n, uint32_t head, float *out);
/* F32: they lie there, [..][dim] from that position on. */
const float *lq_kv_floats(const lq_kv *kv, uint32_t layer, bool values, uint32_t pos, uint32_t head);
void lq_kv_copy(lq_kv *dst, const lq_kv *src, uint32_t n); /* the first n positions; the same kind and shape */
/* q[n][heads * dim], what the stored keys must be multiplied with, in place. Parallel. */
void lq_kv_queries(const lq_kv *kv, float *q, uint32_t n, uint32_t heads);
/* In place: x times the orthonormal Hadamard matrix of the largest power of two that divides dim, run by run. Its own inverse. */
void lq_kv_turn(float *x, uint32_t dim);
#endif
