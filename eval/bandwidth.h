/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What this machine's memory gives to a reader, and what its sockets have used. */
#ifndef LQ_BANDWIDTH_H
#define LQ_BANDWIDTH_H
#include "core/mem.h"

typedef struct lq_bandwidth {
    uint8_t *v;                /* at least four times the last cache */
    size_t bytes;
    double loop[2];            /* bytes per second, the best so far: every line touched in order; memchr for what is not there */
} lq_bandwidth;
lq_status lq_bandwidth_init(lq_ctx *ctx, lq_bandwidth *b);
void lq_bandwidth_try(lq_bandwidth *b); /* both loops some times, one after the other, on all threads */
void lq_bandwidth_free(lq_bandwidth *b);

double lq_joules(void);        /* used by all packages since some moment (RAPL); negative: cannot be read */
#endif
