/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Token by token through the KV cache: greedy, or sampled from softmax(logits / temp) with PCG32. */
#ifndef LQ_GENERATE_H
#define LQ_GENERATE_H
#include "calib/forward.h"
#include "eval/loaded.h"

typedef struct lq_gen_opts {
    uint32_t n;                 /* tokens to make at most */
    lq_kv_opts kv;
    double temp;                /* 0: greedy (the first largest logit) */
    uint64_t seed;
    /* Called with each piece of text as it becomes whole UTF-8; NULL: not streamed. */
    void (*emit)(void *user, const char *text, size_t n);
    void *user;
} lq_gen_opts;

typedef struct lq_gen {
    lq_ids ids;                 /* what was made, the stopping token not among it */
    lq_buf text;
    bool stopped;               /* by an end token, not by n */
    double prefill_seconds, decode_seconds;
} lq_gen;
/* prompt: 1 or more ids. The context ends the text early, with a log line. */
lq_status lq_generate(lq_ctx *ctx, const lq_loaded *l, const lq_ids *prompt, const lq_gen_opts *o, lq_gen *out);
void lq_gen_free(lq_gen *g);
#endif
