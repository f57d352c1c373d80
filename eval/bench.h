/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* How fast a loaded model runs, beside the bandwidth that memory gives in the same run. */
#ifndef LQ_BENCH_H
#define LQ_BENCH_H
#include "calib/forward.h"

enum { LQ_BENCH_MOST = 16 }; /* contexts, batches */

typedef struct lq_bench_opts {
    uint32_t ctx[LQ_BENCH_MOST], n_ctx;     /* tokens of a prompt, which are then the context of decoding */
    uint32_t batch[LQ_BENCH_MOST], n_batch; /* sequences decoded at once */
    uint32_t steps;                         /* decoding steps timed, one by one */
    uint32_t prompts;                       /* prompts timed */
    uint64_t seed;                          /* of the token ids */
    lq_kv_opts kv;
} lq_bench_opts;

typedef struct lq_bench_row {
    bool decode;               /* else a prompt: what the first token waits for */
    bool ahead;                /* on a device: kernels began early */
    uint32_t ctx, batch, reps;
    double least, median, most; /* seconds of a repetition: a whole prompt with its logits, one step of all sequences; most: 99 of a hundred take no longer */
    uint64_t bytes;            /* decode: of weights, keys and values read in a step; prompt: 0 */
    double bandwidth;          /* decode: bytes / least over the read bandwidth (a device's: the larger of reading and copying), 1 = all of it */
    uint32_t kernels;          /* decode on a device: kernels of a step; else 0 */
    double joules;             /* per token; negative: cannot be read here */
    double clock[LQ_CLOCKS], head; /* seconds of a repetition, mean: blocks by class, logits */
} lq_bench_row;

typedef struct lq_bench {
    lq_bench_row row[LQ_BENCH_MOST * (2 * LQ_BENCH_MOST + 1)];
    uint32_t n;
    uint64_t weights;          /* bytes of weights a step reads */
    double loop[2];            /* bytes per second, best of all tries: every line touched; libc's memchr. On a device: read; copied, both ways counted */
    double read;               /* the larger */
    double load[3];            /* load average at the end; negative: unknown */
} lq_bench;

/* A device whose kernels may begin early decodes both ways, first without. Room for the model's context is clipped to what it has, with a log line. m's tensors must be loaded. */
lq_status lq_bench_run(lq_ctx *ctx, const lq_model *m, const lq_bench_opts *o, lq_bench *out);
static inline double lq_bench_rate(const lq_bench_row *r, double seconds) { return (r->decode ? r->batch : r->ctx) / seconds; } /* tokens/s */
#endif
